"""Stages that are the beginning of others: a training that ends early, and goes on where it ended.

    begun = stop_early(model, 0.5)      # as far as half of the steps, on the whole schedule

A stage that has ended early hands its scratch to the whole one (`find_whole`), which goes on from
there as after a kill: to the same value, at the cost of the rest. Where the scratch is lost it
begins anew. Not here: which trials end early (`harness.grid.tuning`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any, TypeVar

from harness.core.rewriting import rewrite
from harness.core.scratch import Scratch
from harness.core.stage import Stage

T = TypeVar("T")


@singledispatch
def halt(stage: Stage[Any], share: float) -> Stage[Any]:
    """The stage as far as a share of its steps; itself where it has none."""
    return stage


@singledispatch
def find_whole(stage: Stage[Any]) -> Stage[Any] | None:
    """The stage that goes on where this one ends; None where this one is whole."""
    return None


def stop_early(root: Stage[T], share: float) -> Stage[T]:
    """A graph whose trainings end after a share of their steps."""
    return root if share == 1 else rewrite(root, lambda stage: halt(stage, share))


def hand_over(stage: Stage[Any], scratch: Scratch, find_folder: Callable[[str], Path]) -> None:
    """Leave the scratch of a stage's owner to the stage that goes on from it, whose folder
    `find_folder` gives by its key, unless somebody has begun that one."""
    if (whole := find_whole(stage)) is not None:
        folder = find_folder(whole.key)
        with contextlib.suppress(OSError):  # it begins anew then
            folder.mkdir(parents=True)
            scratch.path.rename(folder / scratch.path.name)
