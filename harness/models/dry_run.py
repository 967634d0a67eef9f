"""What a stage would hold in memory at its peak, found by running its code on tensors without data.

    with dry_run() as live:
        network = load_weightless(live, base).network       # belongs to the part "parameters"
        network(ids)
    live.peak()                               # Memory(parameters=…, activations=…, …)

Inside `dry_run` every operation gives a tensor that has a shape, a dtype and a storage of known
size, but no data; `Live` notes when each storage is made and when it is freed. So nothing is
guessed from a model's configuration, and a model of any size takes seconds and no memory. Not seen
are a device's context (half a GiB), the workspaces of its libraries, buffers through which
processes exchange data (NCCL's, one or two GiB of eight), and the allocator's fragments.

Not here: the estimate of any stage (a module `memory` beside the stages registers theirs), how many
GPUs a stage needs (`harness.run.memory`), weights on the host (`footprint`).
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, singledispatch
from types import ModuleType
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.core.stage import Input, Stage, closure
from harness.core.values import find_value_type
from harness.models.compat import (
    FakeTensorMode,
    TorchDispatchMode,
    masking_utils,
    outside_of_modes,
    tree_leaves,
)
from harness.models.devices import computing_on
from harness.models.layers import find_ends, matrices
from harness.models.model import DTYPES, Model
from harness.models.stage import Pretrained, meta_network

OwnWeights: TypeAlias = Literal["nothing", "linears", "all"]
"""What of a model's weights is not shared with the published model that it was made from."""


@singledispatch
def estimate_memory(
    stage: Stage[Any], gpus: int | None = None, device: str = "cuda"
) -> Memory | None:
    """What each of the `gpus` processes that share a stage holds at its peak, before it is run.

    None for `gpus`: as many as the stage asks for. None as an answer: next to nothing besides its
    inputs. A stage's class registers its own, in a module that the stage's does not import: what
    is said of memory is no part of the code behind a result.
    """
    return None


def has_estimate(stage: Stage[Any]) -> bool:
    """Whether a stage's class has an estimate of its own, which is not made: that takes a while."""
    return estimate_memory.dispatch(type(stage)) is not estimate_memory.dispatch(object)


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds at a stage's peak, by part; the parts add up to it."""

    parameters: int = 0  # weights at rest: the base, copies of it in other dtypes, masters
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0  # made by a network's blocks: what backward needs, and their temporaries
    teacher: int = 0  # weights that only a teacher has
    other: int = 0  # logits, what a loss or a rounding takes, caches

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


PARTS = tuple(field.name for field in dataclasses.fields(Memory))


@dataclass(eq=False, slots=True)
class _Storage:
    size: int
    part: str


class Live(TorchDispatchMode):
    """Notes each storage from its making to its end, and the part that it belongs to."""

    def __init__(self) -> None:
        super().__init__()
        self._parts = ["other"]
        self._storages: dict[int, _Storage] = {}
        self._events: list[tuple[_Storage, int]] = []  # +1 made, -1 let go

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is made inside belongs to the part `name`."""
        self._parts.append(name)
        try:
            yield
        finally:
            self._parts.pop()

    def inside(self, name: str, *modules: nn.Module) -> None:
        """From now on what the modules make as they run belongs to the part `name`."""

        def labelled(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return forward(*args, **kwargs)

        for module in modules:
            module.forward = partial(labelled, module.forward)

    def assign(self, name: str, tensor: Tensor) -> None:
        """A tensor's storage belongs to the part `name`, and has from its making."""
        self._storages[tensor.untyped_storage()._cdata].part = name

    def size(self, tensors: Iterable[Tensor], part: str) -> int:
        """Bytes of the storages behind `tensors`, each once, that belong to a part."""
        storages = {id(s): s for s in (self._storages[t.untyped_storage()._cdata] for t in tensors)}
        return sum(storage.size for storage in storages.values() if storage.part == part)

    def peak(self, scale: Mapping[str, float] | None = None) -> Memory:
        """The parts at the moment of the largest sum, each times its `scale` (1 where missing).

        What belongs to none of `Memory`'s parts lies elsewhere and does not count.
        """
        factors = {name: (scale or {}).get(name, 1.0) for name in PARTS}
        now = most = 0.0
        held, held_at_peak = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0)
        for storage, sign in self._events:
            if storage.part in factors:
                held[storage.part] += sign * storage.size
                now += sign * storage.size * factors[storage.part]
                if now > most:
                    most, held_at_peak = now, dict(held)
        return Memory(**{name: round(held_at_peak[name] * factors[name]) for name in PARTS})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1  # a number that code asks of a tensor: there is none, any will do
        if func is torch.ops.aten.index.Tensor and _masked(args[1]):
            result = _everything(*args)
        elif func is torch.ops.aten._grouped_mm.default:
            result = _multiply_groups(*args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = noted = _Storage(storage.nbytes(), self._parts[-1])
            self._events.append((noted, 1))
            weakref.finalize(storage, self._end, key).atexit = False

    def _end(self, key: int) -> None:
        self._events.append((self._storages.pop(key), -1))


@contextmanager
def dry_run() -> Iterator[Live]:
    """Operations inside compute shapes only; what they hold is noted."""
    # On the CPU, whose fused attention keeps what a GPU's does; `meta` would multiply it out.
    # The library takes such tensors for a sign of compilation, and then masks what needs no mask.
    untraced = replaced(masking_utils, "is_tracing", lambda *_: False)
    with computing_on("cpu"), untraced, FakeTensorMode(), Live() as live:
        yield live


@contextmanager
def replaced(module: ModuleType, name: str, thing: Any) -> Iterator[None]:
    """A module's `name` is `thing` inside."""
    before = getattr(module, name)
    setattr(module, name, thing)
    try:
        yield
    finally:
        setattr(module, name, before)


def weightless(base: Pretrained) -> PreTrainedModel:
    """Inside `dry_run`: the network of a model as `base` would load it, from its configuration."""
    with outside_of_modes():
        network = meta_network(base.source, base.trust_remote_code, base.digest)
    if base.attention == "eager":  # the others keep as much as the default
        network.set_attn_implementation("eager")
    new_parameters: dict[int, nn.Parameter] = {}  # tied ones stay tied
    for module in network.modules():
        for name, old in list(module.named_parameters(recurse=False)):
            if id(old) not in new_parameters:
                new = torch.empty(old.shape, dtype=DTYPES.get(base.dtype, old.dtype))
                new_parameters[id(old)] = nn.Parameter(new, requires_grad=False)
            setattr(module, name, new_parameters[id(old)])
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    return network.eval()


def load_weightless(live: Live, base: Pretrained, part: str = "parameters") -> Model:
    """A model without data in its weights, which belong to `part`. It has no tokenizer."""
    with live.part(part):
        network = weightless(base)
    return Model(network, cast(Any, None))


def renew_matrices(model: Model, ends: Collection[str] = ()) -> None:
    """Give every matrix of the blocks a weight of its own, as a search or a rounding does, and
    those of embeddings and head that are named."""
    outside = {name: each for name, each in find_ends(model.network).items() if name in ends}
    for matrix in (*matrices(model.network).values(), *outside.values()):
        matrix.replace(torch.empty_like(matrix.weight))


@singledispatch
def list_new_ends(stage: Stage[Any]) -> tuple[str, ...]:
    """The embedding and the head, by name, that a stage's model has of its own beside those of its
    input; of two names of one parameter, one. A stage's class registers its own."""
    return ()


def find_new_ends(model: Input[Model]) -> tuple[str, ...]:
    """Embedding and head that a model does not share with the published one, by name."""
    above = closure([model]) if isinstance(model, Stage) else ()
    return tuple(sorted({name for stage in above for name in list_new_ends(stage)}))


def find_own_weights(model: Input[Model]) -> OwnWeights:
    """What a model does not share with the published one, which a run holds beside it."""
    if not isinstance(model, Stage) or isinstance(model, Pretrained):
        return "nothing"
    stored_stages = (stage for stage in closure([model]) if stage.stored)
    return (
        "all"
        if any(find_value_type(type(stage)) is Model for stage in stored_stages)
        else "linears"
    )


def _masked(indices: Any) -> bool:
    return indices[0] is not None and indices[0].dtype == torch.bool


def _multiply_groups(
    first: Tensor, second: Tensor, offs: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """The product of groups of rows, as experts multiply; without data only bfloat16 has one."""
    by_group = first.dim() == second.dim() == 2 and offs is not None
    groups = offs.shape if by_group and offs is not None else first.shape[:-2]
    return first.new_empty(*groups, first.shape[-2], second.shape[-1])


def _everything(tensor: Tensor, indices: list[Tensor]) -> Tensor:
    """`tensor[mask]` for a mask whose values nobody knows: as large as it can be."""
    mask = indices[0]
    return tensor.new_empty(mask.numel(), *tensor.shape[mask.ndim :])
