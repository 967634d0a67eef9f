"""Best, second, and who is not distinguishable from the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats

from reports.numbers.entries import Entry
from reports.numbers.ranking import BOOTSTRAP, MCNEMAR
from reports.numbers.stats import RESAMPLES
from reports.numbers.summary import Summary
from tests.support.synthetic_grids import TASKS, measured, row, summary_of, write

GENERATOR = np.random.default_rng(5)
BEST = (GENERATOR.random(200) < 0.8).astype(float)


def worse(flips: int, gains: int = 0) -> list[float]:
    """The best's items, with `flips` right ones wrong and `gains` wrong ones right."""
    scores = BEST.copy()
    scores[np.flatnonzero(BEST == 1)[:flips]] = 0
    scores[np.flatnonzero(BEST == 0)[:gains]] = 1
    return [float(score) for score in scores]


def found(summary: Summary, name: str, index: int = 0) -> Entry:
    (each,) = [r.entries[index] for r in summary.rows if r.name == name]
    assert each is not None
    return each


def grid(folder: Path, each: dict[str, list[float]], **given: Any) -> Summary:
    made = [measured(scores, label=label) for label, scores in each.items()]
    return summary_of(write(folder, [r for r, _ in made], items=[i for _, i in made], **given))


def test_second_is_underlined_among_three(tmp_path: Path) -> None:
    rows = [row(label=name, value=v) for name, v in [("A", 0.5), ("B", 0.4), ("C", 0.4), ("D", 0)]]
    summary = summary_of(write(tmp_path, rows))
    assert [e.second for r in summary.rows if (e := r.entries[0])] == [False, True, True, False]
    two = summary_of(write(tmp_path, rows[:2]))
    assert not any(e.second for r in two.rows if (e := r.entries[0]))
    tie = summary_of(write(tmp_path, [*rows, row(label="E", value=0.5)]))
    assert not any(e.second for r in tie.rows if (e := r.entries[0]))


def test_mcnemar_with_holm(tmp_path: Path) -> None:
    each = {"Best": worse(0), "Near": worse(6, 3), "Far": worse(40, 2), "Middle": worse(12, 2)}
    summary = grid(tmp_path, each)
    raw = [scipy_stats.binomtest(b, n).pvalue for b, n in ((3, 9), (2, 42), (2, 14))]
    near, far, middle = (found(summary, name) for name in ("Near", "Far", "Middle"))
    assert far.p == pytest.approx(3 * raw[1])
    assert middle.p == pytest.approx(2 * raw[2]) and middle.p < 0.05
    assert near.p == pytest.approx(raw[0])
    assert [near.tied, far.tied, middle.tied] == [True, False, False]
    assert found(summary, "Best").p is None and found(summary, "Best").best
    assert (summary.comparisons, summary.tests) == (3, (MCNEMAR,))


def test_holm_counts_the_whole_table(tmp_path: Path) -> None:
    rows, items = [], []
    for task in TASKS:
        for label, flips in (("Best", 0), ("Other", 7)):
            made, line = measured(worse(flips), label=label, task=task)
            rows.append(made)
            items.append(line)
    summary = summary_of(write(tmp_path, rows, items=items))
    alone = scipy_stats.binomtest(0, 7).pvalue
    assert alone < 0.05 / 3  # the average's p is smaller still
    assert summary.comparisons == 4
    assert found(summary, "Other", 0).p == pytest.approx(3 * alone)
    assert summary.tests == (MCNEMAR, BOOTSTRAP)
    assert found(summary, "Other", 3).p == pytest.approx(4 * 2 / (RESAMPLES + 1))


def test_over_seeds_items_are_averaged_first(tmp_path: Path) -> None:
    made = [measured(worse(flips), label="Mixed", seed=s) for s, flips in enumerate((5, 9, 60))]
    made += [measured(worse(0), label="Best")]
    summary = summary_of(write(tmp_path, [r for r, _ in made], items=[i for _, i in made]))
    mixed = found(summary, "Mixed")
    assert summary.tests == (BOOTSTRAP,)
    assert mixed.n == 3
    mean = np.mean([worse(5), worse(9), worse(60)], axis=0)
    assert np.array_equal(mixed.items[0].scores, mean)
    low, high = mixed.interval or (0, 0)
    assert low < mixed.mean < high
    assert mixed.p is not None and mixed.p < 0.05


def test_an_average_has_error_and_interval_from_its_items(tmp_path: Path) -> None:
    made = [measured(worse(10 * i), task=task) for i, task in enumerate(TASKS)]
    summary = summary_of(write(tmp_path, [r for r, _ in made], items=[i for _, i in made]))
    average = found(summary, "RTN", 3)
    errors = [scipy_stats.sem(worse(10 * i)) for i in range(3)]
    assert average.se == pytest.approx(np.sqrt(np.square(errors).sum()) / 3)
    low, high = average.interval or (0, 0)
    assert (high - low) / 3.92 == pytest.approx(average.se, rel=0.05)


def test_perplexities_are_compared_by_window(tmp_path: Path) -> None:
    base = GENERATOR.normal(2, 0.5, 60)
    each = {"A": base, "B": base + GENERATOR.normal(0.02, 0.02, 60), "C": base + 0.0001}
    task = {"task": "testbed-ppl", "metric": "ppl"}
    made = [measured(list(map(float, s)), label=name, **task) for name, s in each.items()]
    summary = summary_of(write(tmp_path, [r for r, _ in made], items=[i for _, i in made]))
    assert found(summary, "C").best  # the same digits
    assert not found(summary, "B").tied
    low, high = found(summary, "A").interval or (0, 0)
    assert np.log((low, high)) == pytest.approx(
        scipy_stats.t.interval(0.95, 59, base.mean(), scipy_stats.sem(base))
    )


@pytest.mark.parametrize("change", ["other items", "fewer", "none", "protocol"])
def test_only_the_same_items_are_compared(tmp_path: Path, change: str) -> None:
    made = [measured(worse(0), label="Best"), measured(worse(3), label="Other")]
    (_, best), (other, line) = made
    items = [best, line]
    if change == "other items":
        line["items"] = list(range(1, 201))
    if change == "fewer":
        line["scores"] = line["scores"][:100]
        other["value"] = sum(line["scores"]) / 100
    if change == "none":
        items.remove(line)
    if change == "protocol":
        other["num_fewshot"] = 3
        made.append(measured(worse(3), label="Third"))
        items.append(made[-1][1])
    summary = summary_of(write(tmp_path, [r for r, _ in made], items=items))
    assert found(summary, "Other").p is None and not found(summary, "Other").tied
    assert summary.comparisons == (1 if change == "protocol" else 0)


def test_a_median_is_not_compared(tmp_path: Path) -> None:
    made = [measured(worse(flips), label="M", seed=s) for s, flips in enumerate((5, 9, 60))]
    made += [measured(worse(0), label="Best")]
    summary = summary_of(
        write(
            tmp_path,
            [r for r, _ in made],
            items=[i for _, i in made],
            report={"aggregate": "median"},
        )
    )
    median = found(summary, "M")
    assert median.mean == pytest.approx(np.mean(worse(9)))
    assert (median.sd, median.p, summary.comparisons) == (None, None, 0)
