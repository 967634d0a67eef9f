"""Intervals and tests against scipy, statsmodels and closed forms."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from reports.numbers.stats import (
    average_interval,
    average_intervals,
    bootstrap,
    holm,
    sign_flip,
    sign_flips,
    standard_error,
    t_interval,
    t_intervals,
    task_interval,
    task_intervals,
)
from reports.reading.items import Items


def block(scores: np.ndarray, weight: float = 1.0) -> Items:
    return Items("task", np.arange(len(scores)), scores, weight)


RIGHT = np.array([1.0] * 37 + [0.0] * 63)


def test_the_standard_error_is_that_of_a_share() -> None:
    p = RIGHT.mean()
    assert standard_error(RIGHT) == pytest.approx(math.sqrt(p * (1 - p) / 99))
    assert math.isnan(standard_error(RIGHT[:1]))


def test_right_or_wrong_has_wilsons_interval() -> None:
    found = task_interval(RIGHT)
    theirs = scipy_stats.binomtest(37, 100).proportion_ci(method="wilson")
    assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
    assert (found.mean, found.n) == (0.37, 100)
    nothing = task_interval(np.zeros(60))
    assert nothing.low == 0 and nothing.high == pytest.approx(0.0602, abs=1e-4)


@pytest.mark.parametrize(("right", "count"), [(0, 10), (1, 10), (37, 100), (60, 60), (999, 1000)])
def test_limits_of_shares_are_those_of_statsmodels(right: int, count: int) -> None:
    scores = np.array([1.0] * right + [0.0] * (count - right))
    for found, method in (
        (task_interval(scores), "wilson"),
        (average_interval([block(scores)]), "agresti_coull"),
    ):
        theirs = proportion_confint(right, count, method=method)
        assert (found.low, found.high) == pytest.approx(theirs, abs=1e-12)


def test_averages_together_are_those_of_each_alone() -> None:
    chance = np.random.default_rng(0)
    averages = [
        [block(chance.random(size), 1 / len(sizes)) for size in sizes]
        for sizes in [(5, 7), (5, 7), (5,), (5, 7), (1, 7), (80, 7), (5, 7)]
    ]
    averages.append([block(np.array([0.5, np.nan, 1.0])), block(np.ones(5))])
    averages.append([block(RIGHT, 0.5), block(1 - RIGHT, 0.5)])
    for found, blocks in zip(average_intervals(averages), averages, strict=True):
        alone = average_interval(blocks)
        for name in ("mean", "low", "high", "p", "n"):
            expected = pytest.approx(getattr(alone, name), abs=1e-12, nan_ok=True)
            assert getattr(found, name) == expected, name


def test_other_scores_have_students_interval() -> None:
    values = [2.1, 2.5, 1.9, 2.2]
    low, high = DescrStatsW(values).tconfint_mean()
    for found in (task_interval(np.array(values)), t_interval(values)):
        assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
        assert found.p == pytest.approx(DescrStatsW(values).ttest_mean(0)[1])


def test_one_value_and_equal_values() -> None:
    assert math.isnan(t_interval([0.3]).low) and t_interval([0.3]).mean == 0.3
    for equal in ([0.0, 0.0], [-2.5, -2.5, -2.5], [0.1, 0.3 - 0.2, 0.1]):  # but for rounding
        found = t_interval(equal)
        assert found.mean == pytest.approx(equal[0])
        assert all(math.isnan(end) for end in (found.low, found.high, found.p))
    assert math.isnan(t_interval([0.1, math.nan]).mean)
    assert math.isnan(bootstrap([block(np.array([0.1, math.nan]))]).p)


@pytest.mark.parametrize("distinct", [True, False])
def test_the_bootstrap_is_scipys_but_for_a_draw_less(distinct: bool) -> None:
    generator = np.random.default_rng(1)
    scores = generator.normal(0.1, 1, 200)
    scores = scores if distinct else np.sign(scores).round()
    found = bootstrap([block(scores)], resamples=40_000)
    theirs = scipy_stats.bootstrap(
        (scores,), np.mean, n_resamples=40_000, method="percentile", rng=generator
    ).confidence_interval
    width = theirs.high - theirs.low
    assert found.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert found.high == pytest.approx(theirs.high, abs=0.02 * width)


def test_every_resample_of_a_small_task_counted_out() -> None:
    """Two of three items drawn: nine resamples, each as often as the others."""
    scores = np.array([0.0, 0.2, 1.0])
    means = np.array([np.mean(pair) for pair in product(scores, repeat=2)])
    found = bootstrap([block(scores - 0.7)], resamples=200_000)
    assert found.p == pytest.approx(2 * np.mean(means >= 0.7), abs=0.01)
    assert np.var(means) == pytest.approx(standard_error(scores) ** 2)  # unbiased, also for three


def test_an_average_draws_each_tasks_items() -> None:
    generator = np.random.default_rng(2)
    tasks = [generator.integers(0, 2, n).astype(float) for n in (40, 100, 400)]
    found = bootstrap([block(task, 1 / 3) for task in tasks], resamples=40_000)
    error = math.sqrt(sum(standard_error(task) ** 2 for task in tasks)) / 3
    assert found.mean == pytest.approx(np.mean([task.mean() for task in tasks]))
    assert (found.high - found.low) / (2 * 1.96) == pytest.approx(error, rel=0.03)


def test_the_bootstraps_p_agrees_with_its_interval() -> None:
    scores = np.array([1.0] * 30 + [0.0] * 50 + [-1.0] * 20)
    found = bootstrap([block(scores)])
    assert found.p > 0.05 and found.low < 0 < found.high
    clear = bootstrap([block(np.abs(scores))])
    assert clear.p == pytest.approx(2 / 10_000) and clear.low > 0
    assert bootstrap([block(np.zeros(9))]).p == 1
    assert bootstrap([block(scores)]) == found


@pytest.mark.parametrize("seed", range(8))
def test_signs_counted_out(seed: int) -> None:
    """The p of twelve differences against all 4096 signs; never below it by more than a tenth."""
    generator = np.random.default_rng(seed)
    scores = generator.normal(generator.uniform(0, 1), 1, 12)
    sums = np.array(list(product((1, -1), repeat=12))) @ scores
    exact = (np.abs(sums) >= abs(scores.sum()) - 1e-12).mean()
    assert exact * 0.9 <= sign_flip(scores) <= exact * 1.3 + 2 / 4096


def test_signs_of_one_size_have_the_binomial_distribution() -> None:
    assert sign_flip(np.array([1.0] * 14 + [-1.0] * 2)) == pytest.approx(
        scipy_stats.binomtest(14, 16).pvalue
    )
    assert sign_flip(np.zeros(5)) == 1 and math.isnan(sign_flip(np.array([1.0, math.nan])))
    # Nearly one size: the approximation beside the exact distribution of one size.
    scores = np.array([1.0] * 40 + [-1.0] * 9) * np.linspace(1, 1.001, 49)
    assert sign_flip(scores) == pytest.approx(scipy_stats.binomtest(40, 49).pvalue, rel=0.1)


def test_the_tail_has_no_floor() -> None:
    """Three hundred comparisons do not reach what two hundred clear items say."""
    scores = np.random.default_rng(0).normal(1, 1, 200)
    assert 2.0**-199 <= sign_flip(scores) < 1e-20
    assert sign_flip(np.array([0.5, 0.6, 0.7])) == pytest.approx(0.25)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx((0.03, 0.06, 0.06))
    with_nan = holm([0.01, math.nan, 0.04])
    assert with_nan[::2] == pytest.approx((0.02, 0.04)) and math.isnan(with_nan[1])
    assert holm([]) == () and math.isnan(holm([math.nan])[0])


def test_intervals_of_seeds_are_scipys() -> None:
    values = np.random.default_rng(3).normal(0.3, 1, 7)
    theirs = scipy_stats.ttest_1samp(values, 0.0)
    low, high = theirs.confidence_interval(0.95)
    found = t_interval(values)
    assert (found.low, found.high, found.p) == pytest.approx((low, high, theirs.pvalue), rel=1e-9)
    assert standard_error(values) == pytest.approx(scipy_stats.sem(values))
    assert math.isnan(t_interval([0.0, 1e-200]).low)  # whose squares are 0


def test_intervals_of_many_are_in_their_order_whatever_their_sizes() -> None:
    chance = np.random.default_rng(5)
    samples = [chance.random(size) for size in (3, 5, 3, 1, 5)]
    samples += [np.array([0.5, np.inf, 1.0]), np.ones(3), np.array([1.0, 0.0, 1.0, 1.0, 0.0])]
    for found, values in zip(t_intervals(samples), samples, strict=True):
        low, high = math.nan, math.nan
        if len(values) > 1 and np.ptp(values) > 0 and np.isfinite(values).all():
            low, high = DescrStatsW(values).tconfint_mean()
            assert found.sd == pytest.approx(values.std(ddof=1))
        assert (found.low, found.high) == pytest.approx((low, high), nan_ok=True)
        assert (found.mean, found.n) == (values.mean(), len(values))
    for found, values in zip(task_intervals(samples), samples, strict=True):
        low, high = t_interval(values).low, t_interval(values).high
        if set(values) <= {0.0, 1.0}:
            low, high = proportion_confint(values.sum(), len(values), method="wilson")
        assert (found.low, found.high) == pytest.approx((low, high), nan_ok=True)


def test_many_sums_are_flipped_at_once_as_one_by_one() -> None:
    """Against the tilt by scipy's root finder, row by row."""
    generator = np.random.default_rng(4)
    rows = generator.normal(generator.normal(0, 0.4, (40, 1)), 1, (40, 60))
    rows[:, 50:] = 0
    found = sign_flips(rows)
    for row, p in zip(rows, found, strict=True):
        sizes = np.abs(row[row != 0]) / np.abs(row).max()
        total = abs(row.sum()) / np.abs(row).max() - sizes.min()
        if total <= 0:
            assert p == 1
            continue
        tilt = optimize.brentq(lambda t, s=sizes, x=total: (s * np.tanh(t * s)).sum() - x, 0, 1e6)
        cumulant = np.log(np.cosh(tilt * sizes)).sum()
        root = math.sqrt(2 * (tilt * total - cumulant))
        scale = tilt * math.sqrt((sizes**2 / np.cosh(tilt * sizes) ** 2).sum())
        tail = 2 * scipy_stats.norm.sf(root + math.log(scale / root) / root)
        assert p == pytest.approx(min(1.0, tail), rel=1e-6)
    every = np.array([[1.0, 2, 3], [1, 1, 1], [0, 0, 0], [1, math.nan, 2]])
    assert list(sign_flips(every)[:3]) == [sign_flip(row) for row in every[:3]]
    assert math.isnan(sign_flips(every)[3])
