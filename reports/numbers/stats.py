"""Intervals and tests for scores: over a task's items, between two methods, and over seeds.

What scipy and statsmodels have is theirs. The bootstrap draws here, since scipy's holds an index
for every item of every resample, and draws as many items as there are: it then understates the
spread of a task with two items a subject. Drawing n - 1 of n makes the resamples' variance the
unbiased s²/n whatever n is (McCarthy and Snowden, 1985).

Every interval is of 95 %; `python -m benchmarks.coverage` shows that they cover. Not here: which
numbers are compared (`ranking`, `effects`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.proportion import proportion_confint

from reports.reading.items import Floats

LEVEL = 0.95
RESAMPLES = 9999
_CHUNK = 4_000_000  # numbers drawn at once
_ALIKE = 1e-12  # of a mean: values that differ by less, by rounding, are equal
_MANY = 10  # items from which Wilson's interval is used
_FEW = 32  # distinct values that are drawn as counts


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; `p` is two-sided, of the mean being zero."""

    mean: float
    low: float
    high: float
    p: float = math.nan
    n: int = 0  # what it stands on: items, or seeds


class Weighted(Protocol):
    """Scores of items (N,) that are drawn together, and the weight of their mean in the whole.

    An average over tasks has one a task; a task with subjects one a subject.
    """

    @property
    def scores(self) -> Floats: ...
    @property
    def weight(self) -> float: ...


def standard_error(scores: Floats) -> float:
    """Of the mean of items (N,): s/√N with s² over N - 1; NaN for one item."""
    return float(stats.sem(scores)) if len(scores) > 1 else math.nan


def task_interval(scores: Floats) -> Interval:
    """Of a task's mean over items (N,): Wilson's where they are right or wrong, else Student's."""
    if len(scores) and np.isin(scores, (0.0, 1.0)).all():
        low, high = proportion_confint(scores.sum(), len(scores), 1 - LEVEL, method="wilson")
        return Interval(float(scores.mean()), float(low), float(high), n=len(scores))
    return t_interval(scores)


def t_interval(values: Floats | Sequence[float]) -> Interval:
    """Student's t-interval and test of a mean, of seeds or of paired differences of seeds (N,).

    For one value, and for values that are all equal, ends and p are NaN: what does not vary among
    three seeds may vary among thirty.
    """
    values = np.asarray(values, float)
    mean, n = float(values.mean()), len(values)
    if n < 2 or not np.isfinite(values).all():
        return Interval(mean, math.nan, math.nan, n=n)
    if np.ptp(values) <= _ALIKE * np.abs(values).max():
        return Interval(mean, math.nan, math.nan, n=n)
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(LEVEL)
    return Interval(mean, float(low), float(high), float(test.pvalue), n)


def average_interval(blocks: Sequence[Weighted]) -> Interval:
    """Of Σ weight · mean(scores), an average over tasks: of the tasks' intervals where it can be.

    Where all are right or wrong, of ten items at least, the distances of the tasks' limits from
    their means add up as standard errors do (MOVER: Zou and Donner, 2008), so that a task with all
    items right still has an uncertainty. The limits are Agresti and Coull's: Wilson's, whose errors
    of five tasks nearly all right are on one side, cover 93 of 100 there. Else by bootstrap.
    """
    if any(len(b.scores) < _MANY or not np.isin(b.scores, (0, 1)).all() for b in blocks):
        return bootstrap(blocks)
    mean, below, above = 0.0, 0.0, 0.0
    for block in blocks:
        right, count = block.scores.sum(), len(block.scores)
        low, high = proportion_confint(right, count, 1 - LEVEL, method="agresti_coull")
        mean += block.weight * right / count
        below = math.hypot(below, block.weight * (right / count - low))
        above = math.hypot(above, block.weight * (high - right / count))
    n = sum(len(block.scores) for block in blocks)
    return Interval(float(mean), float(mean - below), float(mean + above), n=n)


def bootstrap(blocks: Sequence[Weighted], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile interval of Σ weight · mean(scores), the items of each block resampled.

    Of differences between two methods on the same items it is the paired bootstrap: an item that is
    drawn is drawn for both. `p` is twice the smaller share of resamples on either side of zero.
    """
    generator = np.random.default_rng(seed)
    mean = math.fsum(block.weight * float(block.scores.mean()) for block in blocks)
    n = sum(len(block.scores) for block in blocks)
    if not all(np.isfinite(block.scores).all() for block in blocks):
        return Interval(mean, math.nan, math.nan, n=n)
    drawn = np.zeros(resamples)
    for block in blocks:
        drawn += block.weight * _means(block.scores, resamples, generator)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    drawn[np.abs(drawn) < 1e-12] = 0  # sums of thirds that cancel
    side = 1 + min((drawn <= 0).sum(), (drawn >= 0).sum())
    return Interval(mean, float(low), float(high), min(1.0, 2 * float(side) / (resamples + 1)), n)


def sign_flip(scores: Floats) -> float:
    """Two-sided p of a sum of paired differences (N,), whose signs were as likely the other way.

    The exact tail is a count over 2^N signs; this is its saddlepoint approximation (Robinson,
    1982; r* of Barndorff-Nielsen), which is right to a few percent however far out, with a
    continuity correction by the smallest difference. Differences of one size have their binomial
    distribution. The p is never below the 2^(1-N) of N differences that are not zero.
    """
    sizes = np.abs(scores[scores != 0]).astype(float)
    if not np.isfinite(sizes).all():
        return math.nan
    if not len(sizes):
        return 1.0
    if np.ptp(sizes) <= _ALIKE * sizes.max():
        fewer = min(int((scores > 0).sum()), int((scores < 0).sum()))
        return min(1.0, 2 * float(special.bdtr(fewer, len(sizes), 0.5)))
    sizes = sizes / sizes.max()
    floor = 2.0 ** (1 - len(sizes))
    total = abs(float(scores.sum())) / float(np.abs(scores).max()) - float(sizes.min())
    if total <= 0:
        return 1.0

    def excess(tilt: float) -> float:
        return float((sizes * np.tanh(tilt * sizes)).sum()) - total

    high = 1.0
    while excess(high) < 0 and high < 1e6:
        high *= 2
    tilt = float(optimize.brentq(excess, 0.0, high))
    cumulant = float(np.logaddexp(tilt * sizes, -tilt * sizes).sum()) - len(sizes) * math.log(2)
    root = math.sqrt(max(2 * (tilt * total - cumulant), 0.0))
    scale = tilt * math.sqrt(float((np.square(sizes) / np.cosh(tilt * sizes) ** 2).sum()))
    if root < 1e-4:
        return 1.0
    tail = 2 * float(stats.norm.sf(root + math.log(scale / root) / root))
    return min(1.0, max(floor, tail))


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number; NaN stays NaN and is not counted."""
    order = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    corrected, last = [math.nan] * len(values), 0.0
    for rank, (value, place) in enumerate(order):
        last = max(last, min(1.0, (len(order) - rank) * value))
        corrected[place] = last
    return tuple(corrected)


def _means(scores: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """Means (resamples,) of n - 1 items drawn with replacement of n; of one item, itself."""
    draws = len(scores) - 1
    if draws == 0:
        return np.full(resamples, scores[0])
    values, counts = np.unique(scores, return_counts=True)
    if len(values) <= _FEW:
        shares = counts / len(scores)
        return generator.multinomial(draws, shares, size=resamples) @ values / draws
    step = max(1, _CHUNK // draws)
    parts = [
        generator.choice(scores, size=(min(step, resamples - start), draws)).mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)
