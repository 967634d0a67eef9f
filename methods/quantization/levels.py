"""The levels of normal floats, and the nearest of them to a weight.

Not here: what they are multiplied with (`formats.NF`).
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from statistics import NormalDist

import torch
from torch import Tensor


@cache
def normal_levels(bits: int) -> tuple[float, ...]:
    """The 2^bits levels of a normal float, ascending, from -1 to 1, 0 among them.

    2^(bits-1) levels above 0 and one fewer below, at equally spaced quantiles from 1/2 to an offset
    short of 1, divided by the largest (QLoRA section 3; 4 bits give its NF4).
    """
    above = 2 ** (bits - 1)
    offset = 1 - 0.5 * (1 / (4 * above) + 1 / (4 * above - 2))

    def side(count: int) -> list[float]:
        quantiles = [0.5 + (offset - 0.5) * step / count for step in range(1, count + 1)]
        values = [NormalDist().inv_cdf(quantile) for quantile in quantiles]
        return [value / values[-1] for value in values]

    return (*(-level for level in reversed(side(above - 1))), 0.0, *side(above))


def round_to_normal(
    groups: Tensor, low: Tensor, high: Tensor, below: Tensor, above: Tensor, bits: int
) -> Tensor:
    """Weights clamped to [low, high], at the nearest of the levels `below` and above 0 times these.

    groups (..., g); low <= 0 <= high and positive below, above (..., 1); all of one floating dtype;
    returns (..., g), a new tensor. Of two levels as near, the one nearer 0.
    """
    falls, rises = _list_steps(bits, groups.dtype)
    # Signs are such that both climb from 0 downwards: a step is then one operation (`_climb`).
    values = _climb((groups / -above).clamp_min_(high / -above), rises).mul_(above)
    return values.addcmul_(_climb((groups / below).clamp_min_(low / below), falls), below, value=-1)


def _climb(ratios: Tensor, steps: tuple[tuple[float, float], ...]) -> Tensor:
    """In place, the level of each ratio: that of the first step whose end is not below it; 0 where
    none is, and of positive ratios."""
    ratios.clamp_max_(0)
    for end, level in steps:
        # A level is positive and so beyond the ends that follow. Twice as fast on a CPU as adding
        # up comparisons, ten times as searching for the code and looking its level up.
        torch.threshold_(ratios, end, level)
    return torch.threshold_(ratios, 0, 0)  # not clamp_min_: that leaves -0


@cache
def _list_steps(bits: int, dtype: torch.dtype) -> tuple[tuple[tuple[float, float], ...], ...]:
    """For the levels below and for those above 0, the furthest from 0 first: the negative of the
    last ratio that has it, and its size."""
    levels: list[float] = torch.tensor(normal_levels(bits)).tolist()  # as float32 holds them
    sides = [-each for each in levels[::-1] if each <= 0], [each for each in levels if each >= 0]
    least = torch.tensor(-torch.inf, dtype=dtype)

    def find_end(lower: float, upper: float) -> float:
        """The first number beyond the middle, which is the lower level's still."""
        middle = torch.tensor(-(lower + upper) / 2, dtype=dtype)
        return torch.nextafter(middle, least).item()

    return tuple(
        tuple((find_end(*pair), pair[1]) for pair in reversed(list(pairwise(side))))
        for side in sides
    )
