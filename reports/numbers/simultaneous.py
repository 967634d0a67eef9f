"""Several comparisons at once: the largest of correlated t statistics.

Dunnett's comparisons with one reference are those whose correlation comes from the reference.
scipy's own Dunnett test knows neither blocks nor missing cells; what is here takes any
correlation, and agrees with it where both apply.

Not here: the variances (`variance`), and what is compared (`effects`, `ranking`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import scipy  # its parts are imported as they are used: statistics take a second

from reports.reading.items import Floats

POWER = 0.8
_TAIL = 1e-4  # below it Bonferroni's bound is taken: it is sharp there, integration is not


def compute_largest_p(t: float, df: float, correlation: Floats) -> float:
    """P(max |T| ≥ |t|) of t statistics (K,) with `df` and `correlation` (K, K); NaN of NaN."""
    if math.isnan(t) or math.isnan(df):
        return math.nan
    t, count = abs(t), len(correlation)
    single = float(2 * scipy.stats.t.sf(t, df))
    if count == 1 or count * single <= _TAIL:
        return min(1.0, count * single)
    inside = scipy.stats.multivariate_t.cdf(
        np.full(count, t),
        shape=correlation,
        df=df,
        lower_limit=np.full(count, -t),
        allow_singular=True,
        random_state=0,
    )
    return float(np.clip(1 - inside, single, min(1.0, count * single)))


def compute_critical_t(alpha: float, df: float, correlation: Floats) -> float:
    """The t that max |T| reaches with probability `alpha`; NaN where `df` is."""
    if math.isnan(df):
        return math.nan
    return _solve(alpha, df, tuple(map(tuple, correlation.tolist())))


@lru_cache(maxsize=1000)  # sets of comparisons are often alike
def _solve(alpha: float, df: float, correlation: tuple[tuple[float, ...], ...]) -> float:
    count = len(correlation)
    low, high = (float(scipy.stats.t.isf(alpha / 2 / number, df)) for number in (1, count))
    if count == 1 or alpha <= _TAIL:
        return high
    return float(
        scipy.optimize.brentq(
            lambda t: compute_largest_p(t, df, np.array(correlation)) - alpha,
            0.999 * low,
            1.001 * high,
            xtol=1e-5,
        )
    )


def compute_visible_difference(critical: float, df: float, error: float) -> float:
    """The smallest true difference that |T| ≥ `critical` finds with a probability of 80 %.

    `error`: the standard error of the difference, in whose units the result is.
    """
    if math.isnan(critical) or math.isnan(error):
        return math.nan
    start = critical + float(scipy.stats.t.ppf(POWER, df))
    found = scipy.optimize.brentq(
        lambda shift: scipy.stats.nct.sf(critical, df, shift) - POWER, 0.0, 4 * start, xtol=1e-6
    )
    return float(found) * error
