"""How much a function does, in calls: seconds depend on what else a machine does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def count_calls(function: Callable[[], object]) -> int:
    """Calls of Python and C functions on the way."""
    count = 0

    def note(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def compute_calls_a_pair(size: int, small: int, middle: int, large: int) -> float:
    """c of a + b n + c n², from the counts at n = `size`, twice and four times it.

    What is linear cancels, however large: c is 0 where nothing is done for each two.
    """
    return (large - middle - 2 * (middle - small)) / (6 * size**2)
