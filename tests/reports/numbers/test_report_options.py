"""`report:` of a grid: columns, aggregation, ±, number formats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from harness.core.errors import ReportError
from reports.pages.sheet import Sheet, markdown
from reports.pages.table import make_sheet
from tests.support.synthetic_grids import TASKS, measured, ppl, row, summary_of, write

VALUES = [0.5, 0.7, 0.51]


def shown(folder: Path, **report: Any) -> Sheet:
    rows = [
        row(task=task, seed=seed, value=value + number / 10)
        for number, task in enumerate(TASKS[:2])
        for seed, value in enumerate(VALUES)
    ]
    rows += [ppl(seed=seed, value=5 + seed) for seed in range(3)]
    return make_sheet(summary_of(write(folder, rows, report=report)))


def numbers(found: Sheet) -> dict[str, str]:
    (line,) = found.rows
    return {
        title: f"{cell.text} {cell.after}".strip()
        for title, cell in zip(found.head[4:], line[4:], strict=True)
    }


def test_columns_are_those_asked_for_in_their_order(tmp_path: Path) -> None:
    found = shown(tmp_path, columns=["average", TASKS[1], "testbed-ppl"], average=TASKS[:2])
    assert found.head[4:] == ("Average ↑", "Story ↑", "PPL ↓")
    assert numbers(found)["Average ↑"] == "62.0 ± 11.3"  # of a task that is not shown, too
    assert "Average over Knowledge, Story." in found.caption
    alone = shown(tmp_path, columns=TASKS[1])
    assert alone.head[4:] == ("Story ↑",)


def test_one_asked_for_task_has_no_average(tmp_path: Path) -> None:
    assert "Average ↑" not in shown(tmp_path, columns=["testbed-ppl", TASKS[0]]).head


def test_an_average_of_nothing_is_none(tmp_path: Path) -> None:
    assert "Average ↑" not in shown(tmp_path, average=[]).head
    assert "Average ↑" in shown(tmp_path, average=None).head


def test_medians(tmp_path: Path) -> None:
    found = shown(tmp_path, aggregate="median")
    assert numbers(found)["Knowledge ↑"] == "51.0"
    assert "Medians over models" in found.caption and "±" not in markdown(found)
    rows = [ppl(seed=seed, value=value) for seed, value in enumerate([5.0, math.nan, 6.0])]
    summary = summary_of(write(tmp_path, rows, report={"aggregate": "median"}))
    assert "| NaN |" in markdown(make_sheet(summary))


def test_half_of_students_interval(tmp_path: Path) -> None:
    low, high = stats.t.interval(0.95, 2, stats.tmean(VALUES), stats.sem(VALUES))
    found = shown(tmp_path, spread="interval")
    assert numbers(found)["Knowledge ↑"] == f"57.0 ± {50 * (high - low):.1f}"
    assert "half of Student's 95 % interval" in found.caption
    assert numbers(shown(tmp_path))["Knowledge ↑"] == f"57.0 ± {100 * stats.tstd(VALUES):.1f}"


def test_intervals_over_items_stand_in_place_of_the_spread_over_models(tmp_path: Path) -> None:
    made = [measured([1.0] * n + [0.0] * (40 - n), seed=seed) for seed, n in enumerate((30, 20))]
    made += [measured([0.5, 1.0, 1.5] * 4, metric="ppl", task="ppl", label="A")]
    rows, items = zip(*made, strict=True)
    found = make_sheet(summary_of(write(tmp_path, rows, items=items, report={"spread": "items"})))
    texts = [cell.after for line in found.rows for cell in line if cell.after]
    low, high = stats.t.interval(0.95, 11, 1.0, stats.sem([0.5, 1.0, 1.5] * 4))
    assert texts[1:] == [f"({math.exp(low):.2f}–{math.exp(high):.2f})"]
    scores = np.array([1.0] * 20 + [0.5] * 10 + [0.0] * 10)  # the mean over both models
    ends = stats.t.interval(0.95, 39, scores.mean(), stats.sem(scores))
    assert texts[0] == f"({100 * ends[0]:.1f}–{100 * ends[1]:.1f})"
    assert "±" not in markdown(found) and "95 % interval over items" in found.caption


def test_decimals_of_all_and_by_task(tmp_path: Path) -> None:
    found = numbers(shown(tmp_path, decimals=3))
    assert found["PPL ↓"] == "6.000 ± 1.000" and found["Average ↑"] == "62.000 ± 11.269"
    found = numbers(shown(tmp_path, decimals={TASKS[0]: 0, "average": 2}))
    assert [found[t] for t in ("PPL ↓", "Knowledge ↑", "Story ↑", "Average ↑")] == [
        *("6.00 ± 1.00", "57 ± 11", "67.0 ± 11.3", "62.00 ± 11.27")
    ]


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (
            {"columns": ["testbed_stori"]},
            r"report.columns: task 'testbed_stori' is unknown; did you mean",
        ),
        (
            {"decimals": {"averag": 1}},
            r"report.decimals: task 'averag' is unknown; did you mean 'average'",
        ),
        (
            {"decimals": 12},
            r"report.decimals: 12 should be at most 9",
        ),
        ({"aggregate": "mode"}, r"report.aggregate: 'mode' should be 'mean' or 'median'"),
        ({"spread": "se"}, r"report.spread: 'se' should be 'sd'"),
        ({"columns": 3}, r"report.columns: 3 should be a list or text"),
    ],
)
def test_what_is_not_there(tmp_path: Path, report: dict[str, Any], words: str) -> None:
    with pytest.raises(ReportError, match=words):
        shown(tmp_path, **report)


def test_a_column_that_is_still_to_come(tmp_path: Path) -> None:
    hole = {"cell": "x", "label": "X", "settings": {}, "seed": 0, "reason": "not run yet"}
    chosen = {"columns": ["later", TASKS[0]], "decimals": {"later": 1}}
    summary = summary_of(write(tmp_path, [row()], report=chosen, holes=[hole]))
    assert [column.title for column in summary.columns] == ["Knowledge"]
    with pytest.raises(ReportError, match="none of them was measured yet"):
        summary_of(write(tmp_path, [row()], report={"columns": "later"}, holes=[hole]))
