"""How far a perplexity is above another on the same windows, and where that is worth an axis.

Not here: drawing it (`reports.plots.dots`), tests of who is better (`ranking`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from reports.numbers.entries import Entry
from reports.numbers.stats import Interval, t_interval
from reports.numbers.variance import have_same_items

_NEAR = 0.1  # of an axis: points that lie within it of the best are crowded
_CROWDED = 0.5  # share of all points


def compute_excess(entry: Entry, reference: Entry) -> Interval:
    """PPL - PPL_ref of two perplexities of one model each, with its 95 % interval over windows.

    It is PPL_ref · (exp(ΔNLL) - 1), and its ends are those of Student's interval of the mean ΔNLL
    of the windows (N,), paired, in nats: asymmetric, with PPL_ref as it was measured. Where an
    entry is several models, or the windows are not known or not the same, the ends are NaN.
    """
    excess = entry.mean - reference.mean
    models = (entry.items, reference.items)
    one_each = all(len(each) == 1 for each in models) and entry.n == reference.n == 1
    if not one_each or not have_same_items(models):
        return Interval(excess, math.nan, math.nan)
    (own,), (base,) = (next(iter(each.values())) for each in models)
    change = t_interval(own.scores - base.scores)
    low, high = (reference.mean * math.expm1(end) for end in (change.low, change.high))
    return Interval(excess, low, high, n=change.n)


def is_crowded(values: Sequence[float], differences: Sequence[float], scaled: bool) -> bool:
    """Whether points pile up on an axis of their values, and less on a logarithmic one of their
    differences.

    They do where half of them or more lie within a tenth of the axis, from the best point to the
    worst, of the best. values, differences: of the same points, finite, less is better; of
    differences that are not above zero no place is known, so that these count as the best. scaled:
    whether the axis of the values is logarithmic.
    """
    positive = [each for each in differences if each > 0]
    if len(values) < 3 or len(positive) < 2:
        return False
    before = _count_near(np.log(values) if scaled else np.asarray(values, float))
    after = len(differences) - len(positive) + _count_near(np.log(positive))
    return before >= _CROWDED * len(values) and after < before


def _count_near(places: np.ndarray) -> int:
    """Of points (N,) on an axis."""
    best, worst = places.min(), places.max()
    return int((places <= best + _NEAR * (worst - best)).sum())
