"""The variance over seeds and items against an analysis of variance by statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from reports.numbers.variance import (
    average_groups,
    average_models,
    combine,
    compute_item_variance,
    have_same_items,
)
from reports.reading.items import Items

GENERATOR = np.random.default_rng(4)


def models(table: np.ndarray, weight: float = 1.0) -> dict[int, tuple[Items, ...]]:
    """Of scores (S, N)."""
    numbers = np.arange(table.shape[1])
    return {seed: (Items("task", numbers, scores, weight),) for seed, scores in enumerate(table)}


def test_the_parts_are_those_of_a_crossed_table() -> None:
    table = GENERATOR.normal(0, 1, (3, 20)) + GENERATOR.normal(0, 2, 20)
    frame = pd.DataFrame(
        [(s, i, table[s, i]) for s in range(3) for i in range(20)],
        columns=["seed", "item", "score"],
    )
    squares = anova_lm(ols("score ~ C(seed) + C(item)", frame).fit())["mean_sq"]
    found = compute_item_variance([models(table)], paired=False)
    assert found.total[0, 0] == pytest.approx(squares["C(item)"] / 60)
    assert found.shared[0, 0] == pytest.approx(squares["Residual"] / 60)


def test_a_difference_of_paired_seeds_is_the_table_of_differences() -> None:
    ours, theirs = GENERATOR.normal(0, 1, (2, 3, 30)) + GENERATOR.normal(0, 1, (1, 3, 30))
    both = compute_item_variance([models(ours), models(theirs)], paired=True)
    one = compute_item_variance([models(ours - theirs)], paired=True)
    contrast = np.array([1.0, -1.0])
    assert contrast @ both.total @ contrast == pytest.approx(one.total[0, 0])
    assert contrast @ both.shared @ contrast == pytest.approx(one.shared[0, 0])
    assert both.df[0, 1] == pytest.approx(29)


def test_tasks_add_up_by_their_weights() -> None:
    parts = [GENERATOR.normal(0, 1, (2, n)) for n in (10, 40)]
    together = {s: tuple(models(part, 0.5)[s][0] for part in parts) for s in range(2)}
    whole = compute_item_variance([together], paired=False)
    alone = [compute_item_variance([models(part)], paired=False) for part in parts]
    assert whole.total[0, 0] == pytest.approx(sum(each.total[0, 0] for each in alone) / 4)
    means = average_models(together)
    assert means[1].scores == pytest.approx(parts[1].mean(axis=0)) and means[1].weight == 0.5


def test_averages_of_groups_are_in_their_order_whatever_their_sizes() -> None:
    tables = [GENERATOR.normal(0, 1, shape) for shape in ((2, 4), (3, 4), (2, 4), (2, 5))]
    groups = [models(table) for table in tables]
    groups.append({s: (groups[0][s][0], groups[3][s][0]) for s in range(2)})
    found = average_groups([{}, *groups])
    assert found[0] == () and list(map(len, found[1:])) == [1, 1, 1, 1, 2]
    means = [table.mean(axis=0) for table in (*tables, tables[0], tables[3])]
    for items, mean in zip([each for group in found for each in group], means, strict=True):
        assert items.scores == pytest.approx(mean)


def test_items_must_be_the_same() -> None:
    table = np.ones((2, 4))
    assert have_same_items([models(table), models(table)])
    assert not have_same_items([models(table), models(table[:, :3])])
    assert not have_same_items([{}])


def test_a_variance_is_never_below_that_of_the_items() -> None:
    assert combine(4.0, 99, 1.0, 0.0, 0).variance == 4.0
    assert combine(4.0, 99, 1.0, 0.5, 2).variance == 4.0  # seeds that are alike by chance
    both = combine(4.0, 99, 1.0, 6.0, 2)
    assert both.variance == 9.0 and both.error == 3.0
    assert 2 < both.df < 4 and combine(0.0, math.inf, 0.0, 6.0, 2).df == 2
