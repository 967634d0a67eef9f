"""Where a row of a weight is cut into groups.

Not here: which groups a format has (`formats`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy
from torch import Tensor

from harness.core.errors import FormatError

_AT_ONCE = {"cpu": 2**18, "cuda": 2**26}  # weights that are worked on together


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

    def cut_rows(self, *weights: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Some rows of each weight (O, I) at a time as groups (n, G, g), views.

        So few that a CPU's cache holds what is computed of them, in memory that is used again: that
        of a whole weight is asked for anew each time, which takes longer than rounding.
        """
        keep_freed_memory()
        at_once = _AT_ONCE.get(weights[0].device.type, _AT_ONCE["cuda"])
        rows = max(1, at_once // weights[0].shape[-1])
        yield from zip(*(self.cut(each).split(rows) for each in weights), strict=True)


@cache
def keep_freed_memory() -> None:
    """Let the C library keep the memory of temporaries, once in a process.

    glibc gives freed memory back to the system, to be asked for and cleared anew, above a size that
    grows with the largest piece ever freed: this one, of 28 MiB, which nothing is written to. Where
    no model was loaded before, a clip search takes 1.6 times as long without.
    """
    numpy.empty(28 * 2**20, numpy.uint8)


def explain_misfit(width: int, in_features: int) -> str:
    """That groups of `width` do not cut a row, and which would, in words."""
    divisors = [size for size in range(1, in_features + 1) if in_features % size == 0]
    useful = [size for size in divisors if 16 <= size <= 1024] or divisors
    return (
        f"groups of {width} do not divide its {in_features} inputs; group sizes that do: "
        f"{', '.join(map(str, useful))}, or 0 (per channel), or set tail: true"
    )


def check_groups(
    layers: Mapping[str, tuple[int, int]],
    group_size: int,
    sizes: Sequence[int] = (),
    multiple: int = 1,
) -> None:
    """Raise FormatError where groups do not divide a row of a layer (O, I), with sizes that do, and
    where O or I is no multiple of a number.

    sizes: the only ones that there are; none given, all are, and 0 is one group a row.
    """
    for name, (out_features, in_features) in layers.items():
        if out_features % multiple or in_features % multiple:
            raise FormatError(
                f"layer {name} is {out_features} x {in_features}; only layers whose sizes are "
                f"multiples of {multiple} are rounded so"
            )
        if in_features % (group_size or in_features):
            fitting = [str(n) for n in sizes or range(16, 1025) if in_features % n == 0]
            fitting += [] if sizes else ["0 (per channel)"]
            raise FormatError(
                f"layer {name}: groups of {group_size} do not divide its {in_features} inputs; "
                f"group sizes that do: {', '.join(fitting) or 'none'}"
            )
