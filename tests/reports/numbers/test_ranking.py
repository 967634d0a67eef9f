"""Best, second, and who is not distinguishable from the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from reports.numbers.entries import Entry
from reports.numbers.ranking import MCNEMAR, MOST, SEEDS, SIGN_FLIP
from reports.numbers.summary import Summary
from reports.numbers.variance import average_models
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


def exact(losses: int, gains: int) -> float:
    return float(scipy_stats.binomtest(gains, losses + gains).pvalue)


def test_mcnemar_with_holm(tmp_path: Path) -> None:
    each = {"Best": worse(0), "Near": worse(6, 3), "Far": worse(40, 2), "Middle": worse(12, 2)}
    summary = grid(tmp_path, each)
    # Best-Far 42, Best-Middle 14, Best-Near 9; Near-Far 34 + 1; Middle-Far 28; Near-Middle 7
    raw = [exact(40, 2), exact(35, 0), exact(28, 0), exact(12, 2), exact(7, 0), exact(6, 3)]
    corrected = multipletests(raw, method="holm")[1]
    best, near, far, middle = (found(summary, name) for name in each)
    assert far.p == pytest.approx(corrected[:3].min())
    assert middle.p == pytest.approx(min(corrected[3], corrected[4])) and middle.p < 0.05
    assert near.p == pytest.approx(corrected[5]) and best.p is None
    assert [e.best for e in (best, near, far, middle)] == [True, True, False, False]
    assert [e.rank for e in (best, near, far, middle)] == [(1, 2), (1, 2), (4, 4), (3, 3)]
    assert (summary.comparisons, summary.tests, summary.seeds_fixed) == (6, (MCNEMAR,), True)


def test_where_nothing_can_be_told_apart_nothing_is_best(tmp_path: Path) -> None:
    summary = grid(tmp_path, {"Best": worse(0), "Near": worse(1), "Next": worse(2)})
    assert [found(summary, name).best for name in ("Best", "Near", "Next")] == [False] * 3
    assert {found(summary, name).rank for name in ("Best", "Near", "Next")} == {(1, 3)}
    assert not any(e.second for r in summary.rows for e in r.entries if e)


def test_tasks_are_one_family_and_averages_another(tmp_path: Path) -> None:
    rows, items = [], []
    for task in TASKS:
        for label, flips in (("Best", 0), ("Other", 7)):
            made, line = measured(worse(flips), label=label, task=task)
            rows.append(made)
            items.append(line)
    summary = summary_of(write(tmp_path, rows, items=items))
    assert summary.comparisons == 4
    assert found(summary, "Other", 0).p == pytest.approx(3 * exact(7, 0))
    assert found(summary, "Other", 3).p == pytest.approx(exact(21, 0))  # of one size: exact
    assert summary.tests == (MCNEMAR, SIGN_FLIP)


@pytest.mark.parametrize("tasks", [2, 60])
def test_marks_do_not_depend_on_how_many_are_compared(tmp_path: Path, tasks: int) -> None:
    """Six comparisons a task: clear differences stay clear among 360."""
    each = {"Best": worse(0), "Good": worse(1), "Bad": worse(60), "Worst": worse(120)}
    made = [
        measured([score + 0.001 * i for i, score in enumerate(scores)], label=label, task=f"t{t}")
        for t in range(tasks)
        for label, scores in each.items()
    ]
    summary = summary_of(write(tmp_path, [r for r, _ in made], items=[i for _, i in made]))
    assert summary.comparisons == 6 * (tasks + 1)
    for index in range(tasks):
        ranks = [found(summary, label, index).rank for label in each]
        assert ranks == [(1, 2), (1, 2), (3, 3), (4, 4)]
        assert [found(summary, label, index).best for label in each] == [True, True, False, False]


def seeded(folder: Path, spread: float, models: int = 3, fixed: bool = True) -> Summary:
    """A deterministic method beside one whose seeds move all items together."""
    made = []
    for seed in range(models):
        key = {"model_key": "one"} if fixed else {}
        made.append(measured([float(x) for x in BEST], label="RTN", seed=seed, **key))
        shift = spread * (seed - (models - 1) / 2)
        wobble = np.random.default_rng(seed).normal(0, 0.01, 200)
        made.append(measured([float(x) for x in BEST - 0.2 + shift + wobble], label="B", seed=seed))
    return summary_of(write(folder, [r for r, _ in made], items=[i for _, i in made]))


def test_seeds_vary_too(tmp_path: Path) -> None:
    calm = seeded(tmp_path / "calm", 0.001)
    assert (calm.tests, calm.seeds_fixed) == ((SEEDS,), False)
    assert found(calm, "B").rank == (2, 2) and found(calm, "RTN").best
    # The items alone would tell these apart; three seeds that vary so much do not.
    wild = seeded(tmp_path / "wild", 0.2)
    assert found(wild, "B").rank == found(wild, "RTN").rank == (1, 2)
    differences = np.array([-0.4, -0.2, 0.0])
    assert found(wild, "B").p == pytest.approx(
        scipy_stats.ttest_1samp(differences, 0).pvalue, rel=0.05
    )


def spread(folder: Path, each: dict[str, tuple[float, float]]) -> Summary:
    """Methods by mean loss and what their three seeds add to it, over 60 windows."""
    windows = np.random.default_rng(7).normal(2, 0.5, 60)
    made = [
        measured(
            [float(x) for x in windows + mean + step * size],
            label=name,
            seed=seed,
            task="testbed-ppl",
            metric="ppl",
        )
        for name, (mean, size) in each.items()
        for seed, step in enumerate((-1.0, 0.1, 0.9))
    ]
    return summary_of(write(folder, [r for r, _ in made], items=[i for _, i in made]))


def test_one_that_diverges_neither_hides_the_others_nor_is_told_from_them(tmp_path: Path) -> None:
    """One variance for all would hide that A and B differ, and tell F, whose seeds are anywhere,
    from them."""
    calm = {"A": (0.0, 0.01), "B": (0.5, 0.012), "C": (1.0, 0.009), "D": (1.5, 0.011)}
    summary = spread(tmp_path, {**calm, "E": (2.0, 0.01), "F": (1.4, 1.2)})
    ranks = {each.name: found(summary, each.name).rank for each in summary.rows}
    assert ranks == {"A": (1, 2), "B": (2, 3), "C": (3, 4), "D": (4, 5), "E": (5, 6), "F": (1, 6)}


def test_two_methods_are_compared_as_welch_does_with_the_fewer_degrees(tmp_path: Path) -> None:
    summary = spread(tmp_path, {"A": (0.0, 0.05), "B": (0.2, 0.05)})
    means = np.array([0.05 * step for step in (-1.0, 0.1, 0.9)])
    t = 0.2 / np.sqrt(2 * means.var(ddof=1) / 3)
    assert found(summary, "B").p == pytest.approx(2 * scipy_stats.t.sf(t, 2), rel=1e-6)


def test_one_seed_is_said_to_be_held_fixed(tmp_path: Path) -> None:
    summary = seeded(tmp_path, 0.0, models=1, fixed=False)
    assert summary.seeds_fixed and SEEDS not in summary.tests


def test_over_seeds_items_are_averaged_first(tmp_path: Path) -> None:
    made = [measured(worse(flips), label="Mixed", seed=s) for s, flips in enumerate((5, 9, 60))]
    made += [measured(worse(0), label="Best")]
    summary = summary_of(write(tmp_path, [r for r, _ in made], items=[i for _, i in made]))
    mixed = found(summary, "Mixed")
    assert summary.tests == (SEEDS,) and mixed.n == 3
    mean = np.mean([worse(5), worse(9), worse(60)], axis=0)
    assert np.array_equal(average_models(mixed.items)[0].scores, mean)
    low, high = mixed.interval or (0, 0)
    assert low < mixed.mean < high
    assert mixed.p is not None and mixed.p > 0.05  # these seeds say little


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
    assert found(summary, "A").best
    assert not found(summary, "B").best and not found(summary, "C").best  # each window is worse
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
    other = found(summary, "Other")
    assert other.p is None and other.rank is None and other.untested
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


def test_of_very_many_none_is_tested_and_each_says_so(tmp_path: Path) -> None:
    """With a pair for each two, 250 methods would take 31,125 tests a column."""
    rows, items = [], []
    for number in range(MOST + 1):
        made, line = measured([1.0, 0.0] * 5, label=f"m{number}", task="task_0")
        rows.append(made)
        items.append(line)
    table = summary_of(write(tmp_path, rows, items=items))
    entries = [entry for each in table.rows for entry in each.entries if entry]
    assert {entry.untested for entry in entries} == {f"more than {MOST} in its group"}
    assert all(entry.rank is None for entry in entries)
