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
