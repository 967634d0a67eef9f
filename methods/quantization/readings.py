"""What the matrices of a network read while it runs, experts too: each tensor once.

    with watch(layers, see) as watcher:        # see(reading, rows (n, I)) is called
        network(ids)
    watcher.list_readings()

Experts that lie in one parameter are watched where it is multiplied (`harness.models.products`).
Not here: what is made of the readings (`observing`, methods).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.models import Matrix, Model, count_vocabulary, meet_products


@dataclass(eq=False)
class Reading:
    """An input that some layers share: gate and up; query, key and value.

    expert: which of the layers' experts reads it; None: they have none.
    """

    layers: list[str]
    expert: int | None = None


See: TypeAlias = Callable[[Reading, Tensor], None]
"""Called with a reading and what is read in one call of its layers: (n, I), in the model's dtype.

In the first call the reading may not have all its layers yet.
"""


@contextmanager
def watch(layers: Mapping[str, Matrix], see: See) -> Iterator[Watcher]:
    """Inside, `see` is called with whatever `layers` read."""
    watcher = Watcher(layers, see)
    with ExitStack() as hooks:
        for name, matrix in layers.items():
            if not matrix.experts:
                hook = partial(watcher.see_module, name)
                hooks.enter_context(matrix.module.register_forward_pre_hook(hook))
        hooks.enter_context(_watched_experts(layers, watcher.see))
        yield watcher


class Watcher:
    """Tells `see` of what layers read: a tensor that several of them read, once."""

    def __init__(self, layers: Mapping[str, Matrix], see: See) -> None:
        self._layers, self._tell = layers, see
        self._readings: dict[tuple[str, int | None], Reading] = {}
        self._last: tuple[Tensor, Reading] | None = None  # the tensor read last, and by whom

    def see_module(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.see(name, None, inputs[0])

    def see(self, name: str, expert: int | None, read: Tensor) -> None:
        if self._last is not None and read is self._last[0] and self._last[1].expert == expert:
            if name not in self._last[1].layers:
                self._last[1].layers.append(name)
            return
        reading = self._get(name, expert)
        self._last = (read, reading)
        self._tell(reading, read.reshape(-1, read.shape[-1]))

    def forget(self) -> None:
        """Hold no tensor between two batches."""
        self._last = None

    def list_readings(self) -> list[Reading]:
        """All of them; layers and experts that were never called read nothing."""
        done = {(name, each.expert) for each in self._readings.values() for name in each.layers}
        for name, matrix in self._layers.items():
            for expert in range(matrix.experts) if matrix.experts else (None,):
                if (name, expert) not in done:
                    self._get(name, expert)
        return list(self._readings.values())

    def _get(self, name: str, expert: int | None) -> Reading:
        if (name, expert) not in self._readings:
            self._readings[name, expert] = Reading([name], expert)
        return self._readings[name, expert]


@contextmanager
def _watched_experts(
    layers: Mapping[str, Matrix], see: Callable[[str, int, Tensor], None]
) -> Iterator[None]:
    """Inside, `see(layer, expert, read)` is called where experts in one parameter are multiplied.

    Of tensors without data nothing is seen: which token is sent where is unknown. Raises ModelError
    where a module runs and does not multiply by its experts in a way that is known.
    """
    fused = [matrix for matrix in layers.values() if matrix.experts]
    if not fused or any(isinstance(each.stored, FakeTensor) for each in fused):
        yield
        return
    met = set[str]()

    def meet(matrix: Matrix, expert: int | None, read: Tensor) -> Tensor:
        met.add(matrix.name)
        if expert is not None:
            see(matrix.name, expert, read)
            return read
        for each, rows in enumerate(read):  # all at once: zeros where a token is not theirs
            see(matrix.name, each, rows[rows.any(-1)])
        return read

    def check(matrix: Matrix, module: nn.Module, inputs: Any, output: Any) -> None:
        if matrix.name not in met:
            raise ModelError(
                f"{type(module).__name__} multiplies by {matrix.name} in a way that is not known "
                "here, so that what is read there cannot be seen"
            )

    with ExitStack() as hooks:
        for matrix in fused:
            hook = partial(check, matrix)
            hooks.enter_context(matrix.module.register_forward_hook(hook))
        hooks.enter_context(meet_products(fused, meet, apart=True))
        yield


@torch.no_grad()
def find_norms(network: PreTrainedModel, readers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """The norms of a network in the order of their calls, each with those of `readers` that read
    the very tensor that it wrote; by name."""
    written: dict[int, tuple[str, Tensor]] = {}  # by id; held, so that no id is used twice
    norms: dict[str, list[str]] = {}

    def write(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            norms.setdefault(name, [])
            written[id(output)] = name, output

    def read(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and id(inputs[0]) in written:
            norms[written[id(inputs[0])][0]].append(name)

    with ExitStack() as hooks:
        for name, module in network.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 1:
                hooks.enter_context(module.register_forward_hook(partial(write, name)))
        for name, module in readers.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(read, name)))
        _run_few(network)
    return norms


@torch.no_grad()
def read_logits(model: Model) -> Tensor:
    """The logits of a few tokens, computed in float32 from the weights as they are: (1, T, V).

    In bfloat16 a model may be further from itself than from what it is compared with: the logits of
    SmolLM2-135M, whose first hidden states are large, are 0.4 of their deviation off float32's.
    Wide weights are made of one module at a time.
    """
    with ExitStack() as hooks:
        for module in model.network.modules():
            if own := dict(module.named_parameters(recurse=False)):
                hooks.enter_context(module.register_forward_pre_hook(_widen))
                back = partial(_put_back, own)
                hooks.enter_context(module.register_forward_hook(back, always_call=True))
        return _run_few(model.network).float()


def _widen(module: nn.Module, inputs: Any) -> None:
    for name, each in module.named_parameters(recurse=False):
        if each.is_floating_point():
            setattr(module, name, nn.Parameter(each.float(), requires_grad=False))


def _put_back(own: dict[str, nn.Parameter], module: nn.Module, inputs: Any, output: Any) -> None:
    for name, each in own.items():
        setattr(module, name, each)


def _run_few(network: PreTrainedModel) -> Tensor:
    place = network.get_input_embeddings().weight.device
    ids = torch.arange(8, device=place)[None] % count_vocabulary(network)
    logits: Tensor = network(input_ids=ids, use_cache=False).logits
    return logits
