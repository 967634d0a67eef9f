"""The clip search: per group of weights, the range whose rounding hurts the layer's output least.

BitDistiller's asymmetric clipping (arXiv 2402.10631, section 3.1): the max and the min of a group
are shrunk independently, and the pair is kept for which the group's part of the layer's output, on
a sample of calibration tokens, moves least.

The output error of a group is |X d|^2 = d' H d, where d is the change of its weights, X (n, g) what
it sees and H = X'X. So a group needs g x g numbers, however many the tokens, and no tensor of
tokens x channels x groups is ever made. Instead of H the search uses a root of it, R with R'R = H:
|R d|^2 takes one pass fewer and cannot turn negative. Where the tokens are fewer than the group is
wide, X is such a root itself and H is not formed: per channel, 512 tokens of 11008 channels are 22
MB and their H would be 485.

In this file: what is searched (`find_searchable`), what it is searched on (`observe`), the search
(`search`). Not here: the stages and the value that is kept (`inits`). `awq` observes layers as this
search does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from harness.core.errors import ModelError
from harness.data import Tokens
from harness.models import Model, linears, run_trunk
from methods.quantization.formats import Grouped, Span, bounds

# What models call the query, key and value projections of an attention module.
_SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("q_lin", "k_lin", "v_lin"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("q", "k", "v"),
)
_FUSED = ("qkv_proj", "query_key_value", "Wqkv", "qkv", "c_attn")

TOKENS_AT_ONCE = 4096  # in the forward passes over the calibration text
# Weights whose candidates are tried together: on a CPU few enough that all temporaries stay in the
# cache, on a GPU enough to fill it.
_AT_ONCE = {"cpu": 2**18}
_AT_ONCE_ELSEWHERE = 2**24

T = TypeVar("T")


def find_searchable(model: Model) -> dict[str, nn.Linear]:
    """The linear layers whose ranges are searched, by name: all but the query and key projections.

    Those are left out, as by AWQ and BitDistiller: their outputs meet in a product, so that the
    error of either alone says little. They are found by structure: the children of one module that
    are named exactly as a query, a key and a value projection are (table above). A fused projection
    is left out whole: which of its rows are values differs from model to model.
    """
    layers = linears(model.network)
    left_out: set[str] = set()
    for children in group_siblings(layers):
        if (names := separate(children)) is not None:
            left_out |= {children[name] for name in names[:2]}
        # An attention module also has an output projection; a lone layer of that name is another.
        left_out |= {children[name] for name in _FUSED if name in children and len(children) > 1}
    return {name: linear for name, linear in layers.items() if name not in left_out}


def group_siblings(layers: Iterable[str]) -> list[dict[str, str]]:
    """For each module that holds some of `layers`: their names in it -> their full names."""
    owners: dict[str, dict[str, str]] = {}
    for name in layers:
        owner, _, child = name.rpartition(".")
        owners.setdefault(owner, {})[child] = name
    return list(owners.values())


def separate(children: Mapping[str, str]) -> tuple[str, str, str] | None:
    """What a module calls its query, key and value projections; None where it has not all three."""
    return next((names for names in _SEPARATE if children.keys() >= set(names)), None)


@dataclass
class Observed:
    """What a layer sees on calibration tokens, cut as its weights are.

    For each span of groups either `grams` (G, g, g) float64, the sum of X'X, or, where the tokens
    are fewer than a group is wide, `rows`: parts of X (n, G, g) float32. `sizes` (I,) float64: the
    sum of |x| over all tokens, sampled or not, of which there were `seen`. All on the host.
    """

    layers: list[str]  # the layers that share this input
    spans: list[Span]
    count: int  # tokens that will be sampled
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
        with _one_thread_each():
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
    model: Model, layers: dict[str, nn.Linear], tokens: Tokens, format: Grouped, count: int
) -> list[Observed]:
    """What `layers` of `model` see on `count` evenly spread tokens (all, where there are fewer).

    Layers that read one tensor (gate and up) are observed once. Raises ModelError, naming the
    layer, where it sees NaN or Inf.
    """
    ids, total = tokens.ids, tokens.ids.numel()
    count = min(count, total)
    chosen = torch.arange(count) * total // count
    observed: dict[str, Observed] = {}
    last: tuple[Tensor, Observed] | None = None  # the tensor that was read last, and by whom

    def see(name: str, linear: nn.Module, inputs: tuple[Any, ...]) -> None:
        nonlocal last
        read: Tensor = inputs[0]
        if last is not None and read is last[0]:
            if name not in last[1].layers:
                last[1].layers.append(name)
            return
        if name not in observed:
            spans = format.spans(layers[name].in_features)
            observed[name] = Observed([name], spans, count)
        mine = observed[name]
        last = (read, mine)
        rows = read.reshape(-1, read.shape[-1])
        here = chosen[(chosen >= mine.seen) & (chosen < mine.seen + len(rows))] - mine.seen
        mine.seen += len(rows)
        mine.sizes += rows.abs().sum(0, dtype=torch.float32).cpu()
        sample = rows[here.to(rows.device)].float().cpu()
        if not bool(sample.isfinite().all()):
            raise ModelError(f"layer {name}: its input has NaN or Inf on the calibration text")
        if len(sample):
            mine.add(sample)

    with ExitStack() as hooks:
        for name, linear in layers.items():
            hooks.enter_context(linear.register_forward_pre_hook(partial(see, name)))
        for batch in torch.split(ids, max(1, TOKENS_AT_ONCE // ids.shape[1])):
            # The blocks only: the head's logits are the largest tensor of all and nobody reads
            # them.
            run_trunk(model.network, batch.to(model.device))
            last = None
    silent = layers.keys() - {name for group in observed.values() for name in group.layers}
    for name in silent:
        observed[name] = Observed([name], format.spans(layers[name].in_features), count)
    return list(observed.values())


@torch.no_grad()
def search(
    weight: Tensor, roots: list[Tensor], format: Grouped, grid: int, steps: int
) -> tuple[Tensor, Tensor, float, float]:
    """The best range of each group of `weight` (O, I), given a root of what each span sees.

    Max and min are tried at 1 - i/grid of their size for i < steps each; of equal errors the first
    wins, max outside and min inside. Candidates are rounded to the weight's dtype, so that clamping
    the weights gives exactly the range that was tried. Returns low and high (O, G) in the weight's
    dtype, and the squared output error before and after.
    """
    lows, highs, before, after = [], [], 0.0, 0.0
    for span, root in zip(format.spans(weight.shape[-1]), roots, strict=True):
        groups = span.cut(weight).transpose(0, 1)  # (G, O, g)
        low, high = torch.empty_like(groups[..., 0]), torch.empty_like(groups[..., 0])
        parts = list(_parts(groups))
        jobs = [
            partial(
                _search_part, groups[part], root[part[0]].to(weight.device), format, grid, steps
            )
            for part in parts
        ]
        for part, best in zip(parts, each(jobs, weight.device), strict=True):
            low[part], high[part] = best.low, best.high
            before, after = before + best.before, after + best.after
        lows.append(low.T)
        highs.append(high.T)
    return torch.cat(lows, 1), torch.cat(highs, 1), before, after


def clamp(weight: Tensor, format: Grouped, low: Tensor, high: Tensor) -> Tensor:
    """`weight` (O, I) with each group clamped to its range; low, high (O, G)."""
    spans = format.spans(weight.shape[-1])
    sizes = [span.groups for span in spans]
    parts = [
        span.cut(weight).clamp(least[..., None], most[..., None]).flatten(-2)
        for span, least, most in zip(
            spans, torch.split(low, sizes, 1), torch.split(high, sizes, 1), strict=True
        )
    ]
    return torch.cat(parts, dim=-1)


@dataclass
class _Best:
    low: Tensor
    high: Tensor
    before: float
    after: float


@torch.no_grad()  # of its own: grad mode does not reach other threads
def _search_part(weight: Tensor, root: Tensor, format: Grouped, grid: int, steps: int) -> _Best:
    """`search` for some groups and rows: weight (G, O, g), root (G, k, g)."""
    groups, project = weight.float().contiguous(), root.mT.contiguous()
    factors = [1 - step / grid for step in range(steps)]
    low, high = bounds(groups)
    lows = [(low * factor).to(weight.dtype).float() for factor in factors]
    highs = [(high * factor).to(weight.dtype).float() for factor in factors]
    errors = torch.empty(steps * steps, *groups.shape[:-1], device=weight.device)
    for index, error in enumerate(errors):
        change = format.quantize_dequantize(
            groups, lows[index % steps], highs[index // steps]
        ).sub_(groups)
        torch.sum((change @ project).square_(), -1, out=error)
    least = errors.amin(0)
    # Not argmin, which does not say which of equals it returns.
    order = torch.arange(len(errors), device=weight.device).view(-1, 1, 1)
    first = torch.where(errors == least, order, len(errors)).amin(0)

    def pick(candidates: list[Tensor], chosen: Tensor) -> Tensor:
        return torch.cat(candidates, -1).gather(-1, chosen[..., None])[..., 0].to(weight.dtype)

    before, after = float(errors[0].double().sum()), float(least.double().sum())
    return _Best(pick(lows, first % steps), pick(highs, first // steps), before, after)


def at_once(device: str) -> int:
    """Weights whose candidates are tried together on a type of device."""
    return _AT_ONCE.get(device, _AT_ONCE_ELSEWHERE)


def _parts(groups: Tensor) -> Iterator[tuple[slice, slice]]:
    """Blocks of groups and rows of (G, O, g) that are searched together."""
    budget = at_once(groups.device.type)
    count, rows, width = groups.shape
    tall = max(1, min(rows, budget // width))
    wide = max(1, budget // (tall * width))
    for group in range(0, count, wide):
        for row in range(0, rows, tall):
            yield slice(group, group + wide), slice(row, row + tall)


def each(jobs: Sequence[Callable[[], T]], device: torch.device) -> Iterator[T]:
    """The results of the jobs in order; on a CPU one job a core, each on one thread.

    Results do not depend on the number of threads.
    """
    if device.type != "cpu":
        yield from (job() for job in jobs)
        return
    with _one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda job: job(), jobs)


@contextmanager
def _one_thread_each() -> Iterator[int]:
    """Operations inside run on one thread; gives the number of threads that they had.

    Many threads on each small operation meet hundreds of thousands of times, and where other
    processes use the cores too, as on a shared node, every meeting waits for a thread that is not
    running: measured, twelve times slower for a search and 200 times for a root.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)
