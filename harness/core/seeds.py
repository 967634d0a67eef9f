"""What is drawn at random, each with a seed of its own, and graphs that draw from other seeds.

    root = draw(method.build(base, seeds.order), seeds)

A grid's seed moves all that is random. A method is built with the seed of its training; what else
its stages draw is moved in the graph that it built, so that no method, init or rounding need know
of it: a class of stages that draws registers how (`redraw`). A stage that draws nothing keeps its
key, and so does every stage at seed 0. Not here: which seeds a grid has (`harness.grid.seeds`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import singledispatch
from typing import Any, TypeVar

from harness.core.rewriting import rewrite
from harness.core.stage import Stage

T = TypeVar("T")


@dataclass(frozen=True)
class Seeds:
    """order: of training data, and of what a method of one step draws; data: of text that a model
    writes to be trained on; calibration: of where calibration text begins, and of what inits and
    roundings draw."""

    order: int = 0
    data: int = 0
    calibration: int = 0

    @classmethod
    def same(cls, seed: int) -> Seeds:
        return cls(seed, seed, seed)


@singledispatch
def redraw(stage: Stage[Any], seeds: Seeds) -> Stage[Any]:
    """The stage that draws, beside its inputs, from these seeds: with seeds of 0 it is itself."""
    return stage


def draw(root: Stage[T], seeds: Seeds) -> Stage[T]:
    """A graph whose stages draw from these seeds, but for their order, with which it was built."""
    if not (seeds.data or seeds.calibration):
        return root
    return rewrite(root, lambda stage: redraw(stage, seeds))


def add_seeds(own: int, grid: int) -> int:
    """A component's own seed, moved by the grid's, within 64 bits."""
    return (own + grid + 2**63) % 2**64 - 2**63
