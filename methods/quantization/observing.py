"""What the matrices of a model see on calibration text: the statistics that searches need of it.

    for seen in observe(model, layers, tokens, IntAsym(bits=2), count=512):
        roots = seen.roots()                        # of what seen.layers, or one expert of it, see

The output error of a group of weights is |X d|^2 = d' H d, where d is the change of its weights,
X (n, g) what it sees and H = X'X. So a group needs g x g numbers, however many the tokens, and no
tensor of tokens x channels x groups is ever made. Instead of H searches use a root of it, R with
R'R = H: |R d|^2 takes one pass fewer and cannot turn negative. Where the tokens are fewer than the
group is wide, X is such a root itself and H is not formed: per channel, 512 tokens of 11008
channels are 22 MB and their H would be 485.

Experts see the tokens that are sent to them. Those that lie in one parameter are watched where the
parameter is multiplied, whichever function of the library does that. Not here: the searches
(`clip`, `awq`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.data import Tokens
from harness.models import Matrix, Model, read_text_config, run_trunk
from methods.quantization.clip import one_thread_each
from methods.quantization.formats import Grouped, Span

TOKENS_AT_ONCE = 4096  # in the forward passes over the calibration text

# What configurations call the experts that a token is sent to.
_SENT_TO = ("num_experts_per_tok", "moe_top_k", "moe_k", "top_k_experts", "num_experts_per_token")


@dataclass
class Observed:
    """What a layer sees on calibration tokens, cut as its weights are.

    For each span of groups either `grams` (G, g, g) float64, the sum of X'X, or, where the tokens
    are fewer than a group is wide, `rows`: parts of X (n, G, g) float32. `sizes` (I,) float64: the
    sum of |x| over all tokens, sampled or not, of which there were `seen`. All on the host.
    """

    layers: list[str]  # the layers that share this input
    spans: list[Span]
    count: int  # tokens that will be sampled; of an expert about so many
    expert: int | None = None  # of the layers; None: they have none
    grams: dict[int, Tensor] = field(default_factory=dict)
    rows: dict[int, list[Tensor]] = field(default_factory=dict)
    seen: int = 0
    sizes: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = torch.zeros(self.spans[-1].stop, dtype=torch.float64)

    @property
    def nbytes(self) -> int:
        parts = [*self.grams.values(), *(part for rows in self.rows.values() for part in rows)]
        return sum(part.nbytes for part in parts)

    def see(self, rows: Tensor, chosen: Tensor) -> None:
        """Take in what is read (n, I), and of it the sample at the positions `chosen` (m,)."""
        self.seen += len(rows)
        self.sizes += rows.abs().sum(0, dtype=torch.float32).cpu()
        sample = rows[chosen.to(rows.device)].float().cpu()
        if not bool(sample.isfinite().all()):
            which = "" if self.expert is None else f", expert {self.expert}"
            raise ModelError(
                f"layer {self.layers[0]}{which}: its input has NaN or Inf on the calibration text"
            )
        if len(sample):
            self.add(sample)

    def add(self, sample: Tensor) -> None:
        """Take in some of the sampled tokens: (n, I) float32."""
        for index, span in enumerate(self.spans):
            groups = span.cut(sample)
            if self.count < span.width:
                self.rows.setdefault(index, []).append(groups.clone())
                continue
            by_group = groups.transpose(0, 1).double()
            gram = by_group.mT @ by_group
            self.grams[index] = self.grams[index] + gram if index in self.grams else gram

    def roots(self) -> list[Tensor]:
        """For each span R with R'R = H: (G, k, g) float32."""
        with one_thread_each():
            return [self._root(index, span) for index, span in enumerate(self.spans)]

    def _root(self, index: int, span: Span) -> Tensor:
        if index in self.rows:
            return torch.cat(self.rows[index]).transpose(0, 1).contiguous()
        if index not in self.grams:  # a layer that was never called: every range is as good
            return torch.zeros(span.groups, 1, span.width)
        values, vectors = torch.linalg.eigh(self.grams[index])
        root: Tensor = values.clamp(min=0).sqrt()[..., None] * vectors.mT
        return root.float()


@torch.no_grad()
def observe(
    model: Model, layers: Mapping[str, Matrix], tokens: Tokens, format: Grouped, count: int
) -> list[Observed]:
    """What `layers` of `model` see on `count` evenly spread tokens (all, where there are fewer).

    Layers that read one tensor (gate and up) are observed once. Of experts each is observed on
    about `count` of the tokens that are sent to it. Raises ModelError, naming the layer, where it
    sees NaN or Inf.
    """
    ids, watcher = tokens.ids, _Watcher(layers, tokens, format, count, _count_sent(model.network))
    with ExitStack() as hooks:
        for name, matrix in layers.items():
            if not matrix.experts:
                hook = partial(watcher.see_module, name)
                hooks.enter_context(matrix.module.register_forward_pre_hook(hook))
        hooks.enter_context(_watched_experts(model.network, layers, watcher.see_expert))
        for batch in torch.split(ids, max(1, TOKENS_AT_ONCE // ids.shape[1])):
            # The trunk only: the head's logits are the largest tensor of all and nobody reads them.
            run_trunk(model.network, batch.to(model.device))
            watcher.last = None
    return watcher.finish()


class _Watcher:
    """Gathers what layers read, one tensor that several of them read only once."""

    def __init__(
        self,
        layers: Mapping[str, Matrix],
        tokens: Tokens,
        format: Grouped,
        count: int,
        sent_to: int,
    ) -> None:
        self.layers, self.format = layers, format
        self.total = tokens.ids.numel()
        self.count = min(count, self.total)
        self.chosen = torch.arange(self.count) * self.total // self.count
        self.sent_to = sent_to
        self.observed: dict[tuple[str, int | None], Observed] = {}
        self.last: tuple[Tensor, Observed] | None = None  # the tensor read last, and by whom

    def see_module(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._see(name, None, inputs[0])

    def see_expert(self, name: str, expert: int, read: Tensor) -> None:
        self._see(name, expert, read)

    def _see(self, name: str, expert: int | None, read: Tensor) -> None:
        if self.last is not None and read is self.last[0] and self.last[1].expert == expert:
            if name not in self.last[1].layers:
                self.last[1].layers.append(name)
            return
        mine = self._get(name, expert)
        self.last = (read, mine)
        rows = read.reshape(-1, read.shape[-1])
        if expert is None:
            here = self.chosen[(self.chosen >= mine.seen) & (self.chosen < mine.seen + len(rows))]
            mine.see(rows, here - mine.seen)
            return
        # How many tokens an expert will see is not known before: every so many of what is expected.
        expected = self.total * self.sent_to // self.layers[name].experts
        stride = max(1, expected // self.count)
        mine.see(rows, torch.arange(-mine.seen % stride, len(rows), stride))

    def _get(self, name: str, expert: int | None) -> Observed:
        if (name, expert) not in self.observed:
            spans = self.format.spans(self.layers[name].in_features)
            self.observed[name, expert] = Observed([name], spans, self.count, expert)
        return self.observed[name, expert]

    def finish(self) -> list[Observed]:
        """What was seen; layers and experts that were never called saw nothing."""
        done = {(name, each.expert) for each in self.observed.values() for name in each.layers}
        for name, matrix in self.layers.items():
            for expert in range(matrix.experts) if matrix.experts else (None,):
                if (name, expert) not in done:
                    self._get(name, expert)
        return list(self.observed.values())


def _count_sent(network: PreTrainedModel) -> int:
    """To how many experts a token is sent; 1 where the configuration does not say."""
    config = read_text_config(network.config)
    counts = (getattr(config, name, None) for name in _SENT_TO)
    return next((count for count in counts if isinstance(count, int)), 1)


@contextmanager
def _watched_experts(
    network: PreTrainedModel,
    layers: Mapping[str, Matrix],
    see: Callable[[str, int, Tensor], None],
) -> Iterator[None]:
    """Inside, `see(layer, expert, read)` is called where experts in one parameter are multiplied.

    Tensors without data are not told apart, so that of them nothing is seen.
    """
    fused = {name: matrix for name, matrix in layers.items() if matrix.experts}
    if not fused or any(isinstance(each.stored, FakeTensor) for each in fused.values()):
        yield
        return
    # One expert after the other, in plain products: grouped kernels hide which rows are whose.
    configs = {id(m.config): m.config for m in network.modules() if hasattr(m, "is_transposed")}
    before = {key: config._experts_implementation for key, config in configs.items()}
    for config in configs.values():
        config._experts_implementation = "eager"
    try:
        with _Products(fused, see):
            yield
    finally:
        for key, config in configs.items():
            config._experts_implementation = before[key]


# Functions that multiply, and where their arguments have what is read and the weight.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    **dict.fromkeys((nn.functional.linear, torch.matmul, torch.mm, torch.bmm), (0, 1)),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm), (0, 1)),
    **dict.fromkeys((torch.baddbmm, torch.addmm), (1, 2)),
}


class _Products(TorchFunctionMode):
    """Calls `see` for products with (a part of) a fused parameter, found by where its data lies."""

    def __init__(
        self, fused: Mapping[str, Matrix], see: Callable[[str, int, Tensor], None]
    ) -> None:
        super().__init__()
        self._fused, self._see = fused, see

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        place = _PRODUCTS.get(func)
        if place is not None and len(args) > place[1]:
            self._note(args[place[0]], args[place[1]])
        return func(*args, **(kwargs or {}))

    def _note(self, read: Tensor, weight: Tensor) -> None:
        for name, matrix in self._fused.items():
            stored = matrix.stored
            offset = weight.data_ptr() - stored.data_ptr()
            if not 0 <= offset < stored.nbytes:
                continue
            first = offset * matrix.experts // stored.nbytes
            if weight.numel() < stored.numel():
                self._see(name, first, read)
                return
            for expert, rows in enumerate(read):  # all at once: zeros where a token is not theirs
                self._see(name, expert, rows[rows.any(-1)])
            return
