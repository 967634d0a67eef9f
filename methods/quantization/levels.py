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


def climb(ratios: Tensor, levels: list[float]) -> Tensor:
    """The nearest of `levels` (ascending from 0) to each ratio; ratios below 0 give 0."""
    # Step by step: ten times faster on a CPU than searching for the code and looking its level up.
    values, passed = torch.zeros_like(ratios), torch.empty_like(ratios)
    for lower, upper in pairwise(levels):
        torch.gt(ratios, (lower + upper) / 2, out=passed)
        values.add_(passed, alpha=upper - lower)
    return values
