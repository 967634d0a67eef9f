"""Largest t statistics against Dunnett's printed tables, scipy's test and a simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from reports.numbers.simultaneous import (
    compute_critical_t,
    compute_largest_p,
    compute_visible_difference,
)


def common(count: int, correlation: float = 0.5) -> np.ndarray:
    return np.full((count, count), correlation) + (1 - correlation) * np.eye(count)


# Dunnett (1964), New tables for multiple comparisons with a control, two-sided.
TABLE = [
    (0.05, 1, 6, 2.45), (0.05, 2, 6, 2.86), (0.05, 3, 6, 3.10), (0.05, 5, 10, 2.99),
    (0.05, 3, 12, 2.68), (0.05, 4, 20, 2.65), (0.01, 2, 10, 3.53), (0.01, 3, 20, 3.29),
]  # fmt: skip


@pytest.mark.parametrize(("alpha", "count", "df", "printed"), TABLE)
def test_dunnetts_table(alpha: float, count: int, df: int, printed: float) -> None:
    found = compute_critical_t(alpha, df, common(count))
    assert found == pytest.approx(printed, abs=0.011)
    assert compute_largest_p(found, df, common(count)) == pytest.approx(alpha, abs=1e-4)


def test_scipys_dunnett_without_blocks() -> None:
    generator = np.random.default_rng(0)
    control, *others = (generator.normal(shift, 1, 8) for shift in (0, 0.5, 1.2, 0.1))
    theirs = stats.dunnett(*others, control=control, rng=1)
    for t, p in zip(theirs.statistic, theirs.pvalue, strict=True):
        assert compute_largest_p(t, 28, common(3)) == pytest.approx(p, abs=1e-3)


def test_far_out_it_is_bonferronis() -> None:
    single = 2 * stats.t.sf(30, 6)
    assert compute_largest_p(-30, 6, common(4)) == pytest.approx(4 * single)
    near = [compute_largest_p(t, 6, common(4)) for t in np.linspace(4, 12, 30)]
    assert all(after < before * 1.01 for before, after in pairwise(near))
    assert math.isnan(compute_largest_p(math.nan, 6, common(2)))
    assert math.isnan(compute_critical_t(0.05, math.nan, common(2)))


@pytest.mark.parametrize("df", [4, 30])
def test_what_is_visible_is_found_four_times_of_five(df: int) -> None:
    generator = np.random.default_rng(df)
    critical, error = compute_critical_t(0.05, df, common(3)), 0.02
    shift = compute_visible_difference(critical, df, error)
    errors = error * np.sqrt(generator.chisquare(df, 200_000) / df)
    t = generator.normal(shift, error, 200_000) / errors
    assert (np.abs(t) >= critical).mean() == pytest.approx(0.8, abs=0.005)
