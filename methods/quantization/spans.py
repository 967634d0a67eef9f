"""Where a row of a weight is cut into groups.

Not here: which groups a format has (`formats`).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Span(NamedTuple):
    """The input channels from `start` to `stop`, cut into groups of `width`."""

    start: int
    stop: int
    width: int

    @property
    def groups(self) -> int:
        return (self.stop - self.start) // self.width

    def cut(self, weight: Tensor) -> Tensor:
        """(O, I) -> (O, G, g), a view."""
        part = weight[..., self.start : self.stop]
        return part.view(*part.shape[:-1], self.groups, self.width)


def explain_misfit(width: int, in_features: int) -> str:
    """That groups of `width` do not cut a row, and which would, in words."""
    divisors = [size for size in range(1, in_features + 1) if in_features % size == 0]
    useful = [size for size in divisors if 16 <= size <= 1024] or divisors
    return (
        f"groups of {width} do not divide its {in_features} inputs; group sizes that do: "
        f"{', '.join(map(str, useful))}, or 0 (per channel), or set tail: true"
    )
