"""Intervals and tests for scores: over a task's items, between two methods, and over seeds.

What scipy's distributions have is theirs. The bootstrap draws here, since scipy's holds an index
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
from functools import cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from reports.reading.items import Floats

LEVEL = 0.95
_NORMAL = float(special.ndtri((1 + LEVEL) / 2))
RESAMPLES = 9999
_CHUNK = 4_000_000  # numbers drawn at once
_ALIKE = 1e-12  # of a mean: values that differ by less, by rounding, are equal
_MANY = 10  # items from which Wilson's interval is used
_FEW = 32  # distinct values that are drawn as counts
_COUNTED = 64  # items whose draws are kept
_TOGETHER = 64  # averages whose resamples are computed in one product


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; `p` is two-sided, of the mean being zero."""

    mean: float
    low: float
    high: float
    p: float = math.nan
    n: int = 0  # what it stands on: items, or seeds
    sd: float = math.nan  # of those, where the interval is Student's


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
    return float(np.std(scores, ddof=1)) / math.sqrt(len(scores)) if len(scores) > 1 else math.nan


def task_interval(scores: Floats) -> Interval:
    """Of a task's mean over items (N,): Wilson's where they are right or wrong, else Student's."""
    return task_intervals([scores])[0]


def task_intervals(tasks: Sequence[Floats]) -> list[Interval]:
    """`task_interval` of each of many."""
    drawn = [place for place, scores in enumerate(tasks) if not _is_right_or_wrong(scores)]
    found = dict(zip(drawn, t_intervals([tasks[place] for place in drawn]), strict=True))
    return [
        found[place] if place in found else _compute_wilson_interval(scores)
        for place, scores in enumerate(tasks)
    ]


def t_interval(values: Floats | Sequence[float]) -> Interval:
    """Student's t-interval and test of a mean, of seeds or of paired differences of seeds (N,).

    For one value, and for values that are all equal, ends and p are NaN: what does not vary among
    three seeds may vary among thirty.
    """
    return t_intervals([values])[0]


def t_intervals(samples: Sequence[Floats | Sequence[float]]) -> list[Interval]:
    """`t_interval` of each of many, those of one size computed together."""
    by_size: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        by_size.setdefault(len(sample), []).append(place)
    found: dict[int, Interval] = {}
    for places in by_size.values():
        together = np.array([samples[place] for place in places], float)
        found |= zip(places, _compute_t_intervals(together), strict=True)
    return [found[place] for place in range(len(samples))]


def _compute_t_intervals(samples: Floats) -> list[Interval]:
    """Of rows of one size (P, N)."""
    n, means = samples.shape[1], samples.mean(axis=1)
    if n < 2:
        return [Interval(mean, math.nan, math.nan, n=n) for mean in means.tolist()]
    with np.errstate(divide="ignore", invalid="ignore"):  # of rows that are not known
        deviations = samples.std(axis=1, ddof=1)
        errors = deviations / math.sqrt(n)
        varied = np.ptp(samples, axis=1) > _ALIKE * np.abs(samples).max(axis=1)
        # Squares of differences below 1e-154 are 0.
        known = np.isfinite(samples).all(axis=1) & varied & (errors > 0)
        # scipy's functions of the distribution, not its test: that takes a hundred times as long.
        widths = float(special.stdtrit(n - 1, (1 + LEVEL) / 2)) * errors
        p = 2 * special.stdtr(n - 1, -np.abs(means) / errors)
    numbers = zip(means, means - widths, means + widths, p, deviations, known, strict=True)
    return [
        Interval(float(mean), float(low), float(high), float(each), n, float(sd))
        if is_known
        else Interval(float(mean), math.nan, math.nan, n=n, sd=float(sd))
        for mean, low, high, each, sd, is_known in numbers
    ]


def average_interval(blocks: Sequence[Weighted]) -> Interval:
    """Of Σ weight · mean(scores), an average over tasks: of the tasks' intervals where it can be.

    Where all are right or wrong, of ten items at least, the distances of the tasks' limits from
    their means add up as standard errors do (MOVER: Zou and Donner, 2008), so that a task with all
    items right still has an uncertainty. The limits are Agresti and Coull's: Wilson's, whose errors
    of five tasks nearly all right are on one side, cover 93 of 100 there. Else by bootstrap.
    """
    if _is_drawn(blocks):
        return bootstrap(blocks)
    mean, below, above = 0.0, 0.0, 0.0
    for block in blocks:
        right, count = block.scores.sum(), len(block.scores)
        low, high = _compute_agresti_coull_limits(float(right), count)
        mean += block.weight * right / count
        below = math.hypot(below, block.weight * (right / count - low))
        above = math.hypot(above, block.weight * (high - right / count))
    n = sum(len(block.scores) for block in blocks)
    return Interval(float(mean), float(mean - below), float(mean + above), n=n)


def average_intervals(averages: Sequence[Sequence[Weighted]]) -> list[Interval]:
    """`average_interval` of each of many, whose resamples are computed together where they can."""
    found: dict[int, Interval] = {}
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, blocks in enumerate(averages):
        sizes = tuple(len(block.scores) for block in blocks)
        if _is_drawn(blocks) and all(1 < size <= _COUNTED for size in sizes) and _is_finite(blocks):
            alike.setdefault(sizes, []).append(place)
        else:
            found[place] = average_interval(blocks)
    for sizes, places in alike.items():
        for first in range(0, len(places), _TOGETHER):
            part = places[first : first + _TOGETHER]
            drawn = np.zeros((len(part), RESAMPLES))
            for number, size in enumerate(sizes):
                blocks = [averages[place][number] for place in part]
                scores = np.array([block.weight * block.scores / (size - 1) for block in blocks])
                drawn += scores @ _draw_counts(size, RESAMPLES, (0, number)).T.astype(np.float64)
            intervals = _make_intervals([averages[place] for place in part], drawn)
            found |= zip(part, intervals, strict=True)
    return [found[place] for place in range(len(averages))]


def _is_drawn(blocks: Sequence[Weighted]) -> bool:
    """Whether the interval of an average needs a bootstrap."""
    return any(len(b.scores) < _MANY or not _is_right_or_wrong(b.scores) for b in blocks)


def _is_right_or_wrong(scores: Floats) -> bool:
    """Whether all of some items are 0 or 1."""
    return len(scores) > 0 and bool(((scores == 0) | (scores == 1)).all())


def _is_finite(blocks: Sequence[Weighted]) -> bool:
    return all(np.isfinite(block.scores).all() for block in blocks)


def _compute_wilson_interval(scores: Floats) -> Interval:
    """Of items (N,) that are right or wrong."""
    low, high = _compute_wilson_limits(float(scores.sum()), len(scores))
    return Interval(float(scores.mean()), low, high, n=len(scores))


def _compute_wilson_limits(right: float, count: int) -> tuple[float, float]:
    """Of a share `right` of `count` (Wilson, 1927)."""
    share, square = right / count, _NORMAL**2
    total = 1 + square / count
    centre = (share + square / (2 * count)) / total
    width = _NORMAL * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / total
    return max(0.0, centre - width), min(1.0, centre + width)


def _compute_agresti_coull_limits(right: float, count: int) -> tuple[float, float]:
    """Of a share `right` of `count`, as if z² more were half right (Agresti and Coull, 1998)."""
    more = count + _NORMAL**2
    share = (right + _NORMAL**2 / 2) / more
    width = _NORMAL * math.sqrt(share * (1 - share) / more)
    return max(0.0, share - width), min(1.0, share + width)


def bootstrap(blocks: Sequence[Weighted], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile interval of Σ weight · mean(scores), the items of each block resampled.

    Of differences between two methods on the same items it is the paired bootstrap: an item that is
    drawn is drawn for both. `p` is twice the smaller share of resamples on either side of zero.
    """
    if not _is_finite(blocks):
        return Interval(_compute_mean(blocks), math.nan, math.nan, n=_count(blocks))
    drawn = np.zeros(resamples)
    for number, block in enumerate(blocks):
        drawn += block.weight * _draw_means(block.scores, resamples, (seed, number))
    return _make_intervals([blocks], drawn[None])[0]


def _make_intervals(averages: Sequence[Sequence[Weighted]], drawn: Floats) -> list[Interval]:
    """Of averages (P,), of each of which means were drawn (P, resamples)."""
    tail = (1 - LEVEL) / 2
    lows, highs = np.quantile(drawn, [tail, 1 - tail], axis=1)
    drawn[np.abs(drawn) < 1e-12] = 0  # sums of thirds that cancel
    fewer = np.minimum((drawn <= 0).sum(axis=1), (drawn >= 0).sum(axis=1))
    p = np.minimum(1.0, 2 * (1 + fewer) / (drawn.shape[1] + 1))
    return [
        Interval(_compute_mean(blocks), float(low), float(high), float(each), _count(blocks))
        for blocks, low, high, each in zip(averages, lows, highs, p, strict=True)
    ]


def _compute_mean(blocks: Sequence[Weighted]) -> float:
    return math.fsum(block.weight * float(block.scores.mean()) for block in blocks)


def _count(blocks: Sequence[Weighted]) -> int:
    return sum(len(block.scores) for block in blocks)


def sign_flip(scores: Floats) -> float:
    """`sign_flips` of one row of differences (N,)."""
    return float(sign_flips(scores[None])[0])


def sign_flips(scores: Floats) -> Floats:
    """Two-sided p of sums of paired differences (P, N), whose signs were as likely the other way.

    The exact tail is a count over 2^N signs; this is its saddlepoint approximation (Robinson,
    1982; r* of Barndorff-Nielsen), which is right to a few percent however far out, with a
    continuity correction by the smallest difference. Differences of one size have their binomial
    distribution. The p is never below the 2^(1-N) of N differences that are not zero; NaN where a
    difference is not finite.
    """
    scores = np.asarray(scores, float)
    sizes = np.abs(scores)
    is_some = sizes > 0
    count, largest = is_some.sum(1), sizes.max(1, initial=0)
    smallest = np.where(is_some, sizes, np.inf).min(1, initial=np.inf)
    p = np.ones(len(scores))
    known = np.isfinite(sizes).all(1)
    p[~known] = math.nan
    alike = known & (count > 0) & (largest - smallest <= _ALIKE * largest)
    fewer = np.minimum((scores > 0).sum(1), (scores < 0).sum(1))
    p[alike] = np.minimum(1.0, 2 * special.bdtr(fewer[alike].astype(float), count[alike], 0.5))
    rest = known & (count > 0) & ~alike
    scaled = sizes[rest] / largest[rest, None]
    total = np.abs(scores[rest].sum(1)) / largest[rest] - smallest[rest] / largest[rest]
    p[rest] = _saddlepoint_tails(scaled, total, count[rest])
    return p


def _saddlepoint_tails(sizes: Floats, totals: Floats, counts: Floats) -> Floats:
    """Two-sided tails of Σ ±sizes (P, N) at `totals` (P,), of `counts` sizes that are not 0."""
    tails, above = np.ones(len(totals)), totals > 0
    sizes, totals, counts = sizes[above], totals[above], counts[above]
    # The slope of the cumulant is concave: from the left Newton's steps never pass the root.
    tilt = totals / np.square(sizes).sum(1)
    open_rows = np.arange(len(tilt))
    for _ in range(200):
        tanh = np.tanh(tilt[open_rows, None] * sizes[open_rows])
        short = totals[open_rows] - (sizes[open_rows] * tanh).sum(1)
        slope = (np.square(sizes[open_rows]) * (1 - np.square(tanh))).sum(1)
        step = short / np.maximum(slope, 1e-300)
        tilt[open_rows] += step
        open_rows = open_rows[step > 1e-13 * tilt[open_rows]]
        if not len(open_rows):
            break
    tilted = tilt[:, None] * sizes  # zero sizes add log 2 each, as all do at no tilt
    cumulant = (np.logaddexp(tilted, -tilted) - math.log(2)).sum(1)
    root = np.sqrt(np.maximum(2 * (tilt * totals - cumulant), 0.0))
    slope = (np.square(sizes) * (1 - np.square(np.tanh(tilted)))).sum(1)
    scale = tilt * np.sqrt(slope)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = 2 * special.ndtr(-(root + np.log(scale / root) / root))
    floor = 2.0 ** (1 - counts.astype(float))
    tails[above] = np.where(root < 1e-4, 1.0, np.minimum(1.0, np.maximum(floor, tail)))
    return tails


def holm(values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number; NaN stays NaN and is not counted."""
    order = sorted((value, place) for place, value in enumerate(values) if not math.isnan(value))
    corrected, last = [math.nan] * len(values), 0.0
    for rank, (value, place) in enumerate(order):
        last = max(last, min(1.0, (len(order) - rank) * value))
        corrected[place] = last
    return tuple(corrected)


def _draw_means(scores: Floats, resamples: int, seed: tuple[int, int]) -> Floats:
    """Means (resamples,) of n - 1 items drawn with replacement of n; of one item, itself."""
    count, draws = len(scores), len(scores) - 1
    if draws == 0:
        return np.full(resamples, scores[0])
    if count <= _COUNTED:
        # Not @: threads of BLAS wait for each other longer than one takes for this.
        counts = _draw_counts(count, resamples, seed).astype(np.float64)
        return np.einsum("ri,i->r", counts, scores) / draws
    generator = np.random.default_rng(seed)
    values, known = np.unique(scores, return_counts=True)
    if len(values) <= _FEW:
        shares = known / count
        return generator.multinomial(draws, shares, size=resamples) @ values / draws
    step = max(1, _CHUNK // draws)
    parts = [
        generator.choice(scores, size=(min(step, resamples - start), draws)).mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)


@cache
def _draw_counts(count: int, resamples: int, seed: tuple[int, int]) -> NDArray[np.uint8]:
    """How often each of n items, at most `_COUNTED`, is among n - 1 drawn: (resamples, n).

    Rows with equally many items share the draws: 10,000 rows would take ten seconds for their own.
    """
    generator = np.random.default_rng(seed)
    shares = np.full(count, 1 / count)
    return generator.multinomial(count - 1, shares, size=resamples).astype(np.uint8)
