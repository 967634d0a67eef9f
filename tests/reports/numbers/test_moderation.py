"""Variances drawn towards each other, against draws of known spread and laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special

from reports.numbers.moderation import _estimate_prior, _invert_trigamma, moderate

VARIANCES = st.lists(st.floats(1e-4, 1e4), min_size=3, max_size=9).map(np.array)


@pytest.mark.parametrize(("typical", "weight"), [(0.5, 3.0), (4.0, 10.0)])
def test_the_prior_of_many_draws_is_the_one_they_were_drawn_from(
    typical: float, weight: float
) -> None:
    generator = np.random.default_rng(2)
    true = typical * weight / generator.chisquare(weight, 40_000)
    df = np.where(np.arange(40_000) % 2, 2.0, 4.0)  # some had three seeds, some five
    variance, found = _estimate_prior(true * generator.chisquare(df) / df, df)
    assert variance == pytest.approx(typical, rel=0.03)
    assert found == pytest.approx(weight, rel=0.05)


def test_variances_that_differ_by_chance_alone_count_as_one() -> None:
    df = np.full(40_001, 2.0)
    found = np.random.default_rng(1).chisquare(df) / df
    variance, weight = _estimate_prior(found, df)
    assert variance == pytest.approx(1, rel=0.02) and weight > 100


@given(st.floats(1e-3, 1e3))
def test_trigamma_is_inverted(value: float) -> None:
    known = optimize.brentq(lambda x: special.polygamma(1, x) - value, 1e-3, 1e4, xtol=1e-12)
    assert _invert_trigamma(value) == pytest.approx(known, rel=1e-6)


@given(VARIANCES, st.floats(1e-2, 1e2))
def test_laws(variances: np.ndarray, scale: float) -> None:
    df = np.full(len(variances), 2.0)
    found, found_df = moderate(variances, df)
    assert (np.argsort(found, kind="stable") == np.argsort(variances, kind="stable")).all()
    assert np.ptp(np.log(found)) <= np.ptp(np.log(variances)) + 1e-9  # nearer to each other
    assert (found_df >= 2).all() and (found_df <= 2 + (len(variances) - 2) / 2 + 1e-9).all()
    scaled, scaled_df = moderate(scale * variances, df)
    assert scaled == pytest.approx(scale * found) and scaled_df == pytest.approx(found_df)


def test_two_that_are_compared_have_their_own() -> None:
    own, df = np.array([1.0, 100.0]), np.array([2.0, 4.0])
    found, found_df = moderate(own, df)
    assert found == pytest.approx(own) and found_df == pytest.approx(df)


def test_what_is_not_known_is_taken_to_be_the_largest() -> None:
    found, df = moderate(np.array([1.0, 0.0, 9.0, 2.0]), np.array([2.0, 0.0, 2.0, 2.0]))
    assert found[1] == found[2] == found.max() and df[1] == df[2] > 2
    nothing = np.zeros(2)
    assert [each.tolist() for each in moderate(nothing, nothing)] == [[0, 0], [0, 0]]
    assert moderate(nothing, np.full(2, 2.0))[0].tolist() == [0, 0]  # no seed does anything


def test_one_without_spread_is_not_without_variance() -> None:
    found, _ = moderate(np.array([0.0, 1.0, 2.0, 1.5]), np.full(4, 2.0))
    assert found[0] > 0 and all(math.isfinite(each) for each in found)
