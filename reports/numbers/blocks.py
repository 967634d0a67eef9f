"""The linear model behind the effects of an axis: score ~ setting + seed, least squares.

Seeds are blocks where every setting was trained. A setting whose models are one and the same for
every seed has no variance over seeds, and no seed does to it what it does to the others: beside
such a setting the model is score ~ setting. Not here: what is compared (`effects`), the variance
over items (`variance`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reports.numbers.variance import Models
from reports.reading.items import Floats

_ALIKE = 1e-9  # of the largest score: residuals below it are rounding


@dataclass(frozen=True)
class Level:
    """The scores of one setting in one column."""

    setting: str
    values: dict[int, float]  # seed -> score
    keys: dict[int, str] = field(default_factory=dict)  # seed -> key of the model
    items: Models = field(default_factory=dict)  # in the units of the scores; empty where unknown
    fixed: bool = False  # one model, whatever the seed


@dataclass(frozen=True)
class Model:
    """Of L settings; variances are in units of the residual variance."""

    means: Floats  # (L,), up to a constant
    covariance: Floats  # (L, L)
    estimable: tuple[bool, ...]  # (L,) of the difference from the first
    squares: float  # sum of squared residuals; 0 where there is nothing but rounding
    df: int
    blocked: bool


def fit(levels: Sequence[Level]) -> Model:
    """Least squares over the finite scores of levels (L,)."""
    blocked = not any(level.fixed for level in levels)
    cells = [
        (index, seed, value)
        for index, level in enumerate(levels)
        for seed, value in list(level.values.items())[: 1 if level.fixed else None]
    ]
    seeds = sorted({seed for _, seed, _ in cells})[1:] if blocked else []
    design = np.zeros((len(cells), len(levels) + len(seeds)))
    for row, (index, seed, _) in enumerate(cells):
        design[row, index] = 1
        if seed in seeds:
            design[row, len(levels) + seeds.index(seed)] = 1
    scores = np.array([value for _, _, value in cells])
    inverse = np.linalg.pinv(design)  # columns may depend on each other: see `estimable`
    found = inverse @ scores
    size = len(levels)
    covariance = (inverse @ inverse.T)[:size, :size]
    for index, level in enumerate(levels):
        if level.fixed:
            covariance[index, :] = covariance[:, index] = 0
    inside = inverse @ design
    contrasts = np.eye(size, design.shape[1]) - np.eye(1, design.shape[1])
    estimable = np.isclose(contrasts @ inside, contrasts, atol=1e-6).all(axis=1)
    rounding = len(cells) * (_ALIKE * float(np.abs(scores).max(initial=0))) ** 2
    squares = float(np.square(scores - design @ found).sum())
    return Model(
        means=found[:size],
        covariance=covariance,
        estimable=tuple(bool(each) for each in np.atleast_1d(estimable)),
        squares=squares if squares > rounding else 0.0,
        df=len(cells) - int(np.linalg.matrix_rank(design)),
        blocked=blocked,
    )
