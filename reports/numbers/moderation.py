"""The variance over seeds of each of several methods, from its own seeds and from all others'.

Three seeds say little of a variance, so that one asks the others; but methods differ: the one that
sometimes diverges has a hundred times the variance of its neighbours. One variance for all would
then tell it from others that it is equal to, and hide what tells the others apart. Each variance is
drawn towards the typical one by as much as they are alike: with heavy weight where they differ no
more than chance would have it, hardly where they do (Smyth 2004, doi:10.2202/1544-6115.1027).

Not here: which variances (`ranking`), how they combine with items (`variance`).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from reports.reading.items import Floats

_LEAST = 1e-5  # of the median: below it, a logarithm would say more of rounding than of seeds


def moderate(variances: Floats, df: Floats) -> tuple[Floats, Floats]:
    """Of L variances with `df` degrees of freedom each (L,): those to test with, and their df (L,).

    The others vouch for one by a quarter of their degrees of freedom at most, and of two methods
    none vouches for the other: how alike variances are is itself known from these few
    (`benchmarks/coverage.csv`: how often tests err with it).
    What is not known (df 0) beside others that are is given the largest of theirs; where none is
    known, or no seed does anything, all stay as they are.
    """
    known = df > 0
    if not known.any() or not variances[known].any():
        return variances, df
    own, own_df = variances[known], df[known]
    prior, prior_df = _estimate_prior(own, own_df)
    prior_df = min(prior_df, max(len(own) - 2, 0) * float(own_df.mean()) / 4)
    moderated = (prior_df * prior + own_df * own) / (prior_df + own_df)
    largest = int(np.argmax(moderated))
    found, found_df = (np.empty(len(df)) for _ in range(2))
    found[known], found_df[known] = moderated, prior_df + own_df
    found[~known], found_df[~known] = moderated[largest], found_df[known][largest]
    return found, found_df


def _estimate_prior(variances: Floats, df: Floats) -> tuple[float, float]:
    """The typical variance and for how many degrees of freedom it counts (Smyth 2004, section 6.2):
    the logarithms of variances vary by trigamma(df / 2) if they estimate one and the same."""
    pooled = float(df @ variances / df.sum())
    if len(variances) < 2:
        return pooled, 0.0
    floored = np.maximum(variances, _LEAST * max(float(np.median(variances)), _LEAST * pooled))
    logs = np.log(floored) - special.digamma(df / 2) + np.log(df / 2)
    excess = float(logs.var(ddof=1) - special.polygamma(1, df / 2).mean())
    if excess <= 0:
        return pooled, math.inf
    half = _invert_trigamma(excess)
    return math.exp(logs.mean() + special.digamma(half) - math.log(half)), 2 * half


def _invert_trigamma(value: float) -> float:
    """x > 0 with trigamma(x) = value > 0, by Newton on 1 / trigamma, which is nearly linear."""
    x = 0.5 + 1 / value
    for _ in range(50):
        now = float(special.polygamma(1, x))
        step = now * (1 - now / value) / float(special.polygamma(2, x))
        x += step
        if -step < 1e-8 * x:
            break
    return x
