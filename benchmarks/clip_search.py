"""How long the clip search takes on one layer, and how long the straightforward way takes.

    python benchmarks/clip_search.py [--threads 2] [--format nf --bits 3 --group-size 128]

The straightforward way multiplies the sampled tokens out, tokens x rows x groups, for each
candidate; it is timed on the small layer only and must choose the same ranges. Random weights and
activations: the work does not depend on the values.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from methods.quantization import clip
from methods.quantization.formats import Format, Grouped, bounds
from methods.quantization.spans import Span

TOKENS, GRID, STEPS = 512, 20, 10
Search: TypeAlias = Callable[[Tensor, Tensor, Grouped], tuple[Tensor, Tensor]]


def straightforward(weight: Tensor, inputs: Tensor, format: Grouped) -> tuple[Tensor, Tensor]:
    """The ranges (O, G) by the outputs themselves: weight (O, I), inputs (n, I)."""
    (span,) = format.spans(weight.shape[1])
    groups, seen = span.cut(weight), span.cut(inputs)  # (O, G, g), (n, G, g)
    low, high = bounds(groups)
    best = torch.full_like(low, torch.inf)
    best_low, best_high = low, high
    wanted = _outputs(groups, seen)
    for i in range(STEPS):
        for j in range(STEPS):
            most, least = high * (1 - i / GRID), low * (1 - j / GRID)
            rounded = format.quantize(groups.clamp(least, most).flatten(1)).view_as(groups)
            error = (_outputs(rounded, seen) - wanted).square().mean(1)[..., None]
            better = error < best
            best = torch.where(better, error, best)
            best_low = torch.where(better, least, best_low)
            best_high = torch.where(better, most, best_high)
    return best_low[..., 0], best_high[..., 0]


def _outputs(groups: Tensor, seen: Tensor) -> Tensor:
    """(O, G, g), (n, G, g) -> (O, n, G), 64 rows at a time."""
    return torch.cat([(part[:, None] * seen).sum(-1) for part in torch.split(groups, 64)])


def fast(weight: Tensor, inputs: Tensor, format: Grouped) -> tuple[Tensor, Tensor]:
    spans: list[Span] = format.spans(weight.shape[1])
    observed = clip.Observed(["layer"], spans, len(inputs))
    observed.add(inputs)
    low, high, _, _ = clip.search(weight, observed.roots(), format, GRID, STEPS)
    return low, high


def main() -> None:
    choices = {n: c for n, c in Format.choices().items() if issubclass(c, Grouped)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--format", choices=choices, default="int-asym")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=128)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    format = choices[given.format](bits=given.bits, group_size=given.group_size)
    assert isinstance(format, Grouped)
    print(f"{format}, {TOKENS} tokens, {STEPS}x{STEPS} candidates, {given.threads} threads")
    torch.manual_seed(0)

    def timed(search: Search, rows: int, columns: int) -> tuple[float, Tensor, Tensor]:
        weight, inputs = torch.randn(rows, columns) / 50, torch.randn(TOKENS, columns)
        begun = time.perf_counter()
        low, high = search(weight, inputs, format)
        return time.perf_counter() - begun, low, high

    fast(torch.randn(8, 512), torch.randn(TOKENS, 512), format)  # warm up
    torch.manual_seed(1)
    quick, low, high = timed(fast, 256, 512)
    print(f"  256 x  512  this search      {quick:8.3f} s")
    torch.manual_seed(1)
    slow, slow_low, slow_high = timed(straightforward, 256, 512)
    same = ((low == slow_low) & (high == slow_high)).float().mean()
    print(f"  256 x  512  straightforward  {slow:8.3f} s  ({slow / quick:.0f} times as long;")
    print(f"              {same:.2%} of groups have the same range)")
    print(f" 4096 x 4096  this search      {timed(fast, 4096, 4096)[0]:8.3f} s")


if __name__ == "__main__":
    main()
