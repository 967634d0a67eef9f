"""The clip search: per group of weights, the range whose rounding hurts the layer's output least.

BitDistiller's asymmetric clipping (arXiv 2402.10631, section 3.1): the max and the min of a group
are shrunk independently, and the pair is kept for which the group's part of the layer's output, on
a sample of calibration tokens, moves least.

In this file: what is searched (`find_searchable`), the search (`search`). Not here: what the layers
see (`observing`), the stages and the value that is kept (`inits`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from harness.models import Matrix, Model, matrices
from methods.quantization.formats import Grouped, bounds
from methods.quantization.spans import keep_freed_memory

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

# Weights whose candidates are tried together: on a CPU few enough that all temporaries stay in the
# cache, on a GPU enough to fill it.
_AT_ONCE = {"cpu": 2**19}
_AT_ONCE_ELSEWHERE = 2**24

T = TypeVar("T")


def find_searchable(model: Model) -> dict[str, Matrix]:
    """The matrices whose ranges are searched, by name: all but the query and key projections.

    Those are left out, as by AWQ and BitDistiller: their outputs meet in a product, so that the
    error of either alone says little. They are found by structure: the children of one module that
    are named exactly as a query, a key and a value projection are (table above). A fused projection
    is left out whole: which of its rows are values differs from model to model.
    """
    layers = matrices(model.network)
    left_out: set[str] = set()
    for children in group_siblings(layers):
        if (names := separate(children)) is not None:
            left_out |= {children[name] for name in names[:2]}
        # An attention module also has an output projection; a lone layer of that name is another.
        left_out |= {children[name] for name in _FUSED if name in children and len(children) > 1}
    return {name: matrix for name, matrix in layers.items() if name not in left_out}


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
        parts = list(_parts(groups, steps))
        # Each group's once, however many parts its rows are cut into.
        projections = {
            start: _Projection.of(root[start:stop].to(weight.device))
            for start, stop in {(part[0].start, part[0].stop) for part in parts}
        }
        jobs = [
            partial(_search_part, groups[part], projections[part[0].start], format, grid, steps)
            for part in parts
        ]
        for part, best in zip(parts, each(jobs, weight.device), strict=True):
            low[part], high[part] = best.low, best.high
            before, after = before + best.before, after + best.after
        lows.append(low.T)
        highs.append(high.T)
    return torch.cat(lows, 1), torch.cat(highs, 1), before, after


def clamp(weight: Tensor, format: Grouped, low: Tensor, high: Tensor) -> Tensor:
    """`weight` (..., O, I) with each group clamped to its range; low, high (..., O, G)."""
    spans = format.spans(weight.shape[-1])
    sizes = [span.groups for span in spans]
    parts = [
        span.cut(weight).clamp(least[..., None], most[..., None]).flatten(-2)
        for span, least, most in zip(
            spans, torch.split(low, sizes, -1), torch.split(high, sizes, -1), strict=True
        )
    ]
    return torch.cat(parts, dim=-1)


@dataclass
class _Best:
    low: Tensor
    high: Tensor
    before: float
    after: float


@dataclass
class _Projection:
    """What a change of weights does to the outputs: a root (G, k, g), held for products with it."""

    root: Tensor
    packed: list[Tensor]  # of each group, in oneDNN's own form; empty where that is not used

    @classmethod
    def of(cls, root: Tensor) -> _Projection:
        # Of the libraries that torch multiplies float32 with on a CPU the usual one, MKL, does half
        # of what a processor can where that is not Intel's; oneDNN is as fast on all of them.
        packs = root.device.type == "cpu" and torch.backends.mkldnn.is_available()
        packs &= root.shape[2] ** 2 <= at_once("cpu")  # else rows are few
        return cls(root, [each.contiguous().to_mkldnn() for each in root] if packs else [])

    def __call__(self, change: Tensor) -> Tensor:
        """(G, n, g) -> (G, n, k): the change of the outputs, turned as the root is."""
        if not self.packed or change.shape[1] < change.shape[2]:  # packing would cost more
            return change @ self.root.mT
        moved = [
            linear(each.to_mkldnn(), packed).to_dense()
            for each, packed in zip(change, self.packed, strict=True)
        ]
        return torch.stack(moved) if len(moved) > 1 else moved[0][None]


@torch.no_grad()  # of its own: grad mode does not reach other threads
def _search_part(
    weight: Tensor, project: _Projection, format: Grouped, grid: int, steps: int
) -> _Best:
    """`search` for some groups and rows: weight (G, O, g). All minima with one maximum at once."""
    groups = weight.float().contiguous()
    factors = [1 - step / grid for step in range(steps)]
    low, high = bounds(groups)
    lows, highs = (
        torch.stack([(end * factor).to(weight.dtype).float() for factor in factors], 1)
        for end in (low, high)
    )  # (G, steps, O, 1)
    repeated = groups[:, None].expand(-1, steps, -1, -1)
    errors = torch.empty(len(groups), steps, steps, groups.shape[1], device=weight.device)
    for index in range(steps):
        most = highs[:, index : index + 1].expand_as(lows)
        change = format.quantize_dequantize(repeated, lows, most).sub_(repeated)
        moved = project(change.flatten(1, 2)).square_()
        torch.sum(moved.unflatten(1, change.shape[1:3]), -1, out=errors[:, index])
    errors = errors.flatten(1, 2)
    least = errors.amin(1)
    # Not argmin, which does not say which of equals it returns.
    order = torch.arange(errors.shape[1], device=weight.device)[:, None]
    first = torch.where(errors == least[:, None], order, len(order)).amin(1)

    def pick(candidates: Tensor, chosen: Tensor) -> Tensor:
        return candidates[..., 0].gather(1, chosen[:, None])[:, 0].to(weight.dtype)

    before, after = float(errors[:, 0].double().sum()), float(least.double().sum())
    return _Best(pick(lows, first % steps), pick(highs, first // steps), before, after)


def at_once(device: str) -> int:
    """Weights whose candidates are tried together on a type of device."""
    return _AT_ONCE.get(device, _AT_ONCE_ELSEWHERE)


def _parts(groups: Tensor, steps: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of groups and rows of (G, O, g) that are searched together, `steps` candidates of each
    at once; rows cut evenly."""
    budget = max(1, at_once(groups.device.type) // steps)
    count, rows, width = groups.shape
    tall = max(1, min(rows, budget // width))
    tall = -(-rows // -(-rows // tall))
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
    keep_freed_memory()
    with one_thread_each() as threads, ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda job: job(), jobs)


@contextmanager
def one_thread_each() -> Iterator[int]:
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
