"""How long the clip search takes on one layer, and how long the straightforward way takes.

    python -m benchmarks.clip_search [--write] [--threads 1] [--format nf --bits 3]

The straightforward way multiplies the sampled tokens out, tokens x rows x groups, for each
candidate; it is timed on the small layer only and must choose the same ranges. Random weights and
activations: the work does not depend on the values. In turn; a processor's seconds
of one thread, else those of the clock.
"""

from __future__ import annotations

import argparse
import time
from functools import partial

import torch
from torch import Tensor

from benchmarks.record import Record, time_in_turn
from methods.quantization import clip
from methods.quantization.formats import Format, Grouped, bounds
from methods.quantization.observing import Observed
from methods.quantization.readings import Reading
from methods.quantization.spans import Span

TOKENS, GRID, STEPS = 512, 20, 10


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
    observed = Observed(Reading(["layer"]), spans, len(inputs))
    observed.add(inputs)
    low, high, _, _ = clip.search(weight, observed.roots(), format, GRID, STEPS)
    return low, high


def draw(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Weights and inputs of a layer."""
    torch.manual_seed(1)
    return torch.randn(rows, columns) / 50, torch.randn(TOKENS, columns)


def main() -> None:
    choices = {n: c for n, c in Format.choices().items() if issubclass(c, Grouped)}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--format", choices=choices, default="int-asym")
    parser.add_argument("--bits", type=int, default=2)
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    format = choices[given.format](bits=given.bits, group_size=given.group_size)
    assert isinstance(format, Grouped)
    unit, clock = ("CPU s", time.process_time) if given.threads == 1 else ("s", time.perf_counter)
    record = Record("clip_search", baseline="straightforward")
    weight, inputs = draw(256, 512)
    ranges = zip(fast(weight, inputs, format), straightforward(weight, inputs, format), strict=True)
    same = torch.stack([one == other for one, other in ranges]).all(0).float().mean()
    print(f"{format}: {same:.2%} of groups have the same range")
    case = f"{given.format} {given.bits} bits, {TOKENS} tokens, {STEPS} x {STEPS} candidates"
    both = {
        "straightforward": partial(straightforward, weight, inputs, format),
        "this search": partial(fast, weight, inputs, format),
    }
    for form, seconds in time_in_turn(both, given.runs, clock).items():
        record.add(f"{case}, 256 x 512", form, unit, seconds, weights=256 * 512)
    for rows, columns in ((1024, 1024), (2048, 4096)):
        search = partial(fast, *draw(rows, columns), format)
        (seconds,) = time_in_turn({"": search}, given.runs, clock).values()
        sizes = f"{rows} x {columns}"
        record.add(f"{case}, {sizes}", "this search", unit, seconds, weights=rows * columns)
    record.finish(given.write)


if __name__ == "__main__":
    main()
