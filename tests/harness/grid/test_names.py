"""A grid that is read gives a report: each name is of one thing, and something is to be shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.errors import GridError
from harness.grid.expand import Grid, load
from harness.run import plan as plans
from tests.support.synthetic_grids import effects_of, row, summary_of
from tests.support.synthetic_grids import write as write_export

TASKS = ("testbed-ppl", "testbed_story", "testbed_knowledge")
DEFAULTS = {"format.group_size": 64, "init.text": "testbed", "data.text": "testbed"}
DEFAULTS |= {"data.length": 64, "train.steps": 2}
OWN = st.fixed_dictionaries(
    {"name": st.sampled_from(["rtn", "rtn", "awq", "bf16"])},
    optional={
        "label": st.sampled_from(["A", "A ", "B", "RTN", "A format.bits=2", 1.0]),
        "format": st.sampled_from(["nf", "int-sym", {"name": "nf", "bits": 3}]),
        "format.bits": st.sampled_from([2, 3]),
    },
)
AXES = st.fixed_dictionaries(
    {},
    optional={
        "format.bits": st.sampled_from([[2], [2, 3], [3, 3]]),
        "format": st.sampled_from([["nf", "int-asym"], [{"name": "nf", "bits": 3}, "nf"]]),
        "objective": st.sampled_from([["kl"], ["kl", "ce"]]),
        "seed": st.sampled_from([[0], [0, 1]]),
    },
)
REPORT = st.fixed_dictionaries(
    {},
    optional={
        "columns": st.lists(st.sampled_from([*TASKS, "average", "device_hours"]), max_size=2),
        "average": st.lists(st.sampled_from(TASKS), max_size=2),
        "over": st.sampled_from(["seed", "format.bits", None]),
        "rows": st.sampled_from(["label", "format.bits"]),
    },
)


def export(grid: Grid, folder: Path) -> Path:
    """An export of a grid whose cells are all finished, with numbers that do not matter."""
    rows: list[dict[str, Any]] = []
    for cell in plans.build(grid).cells:
        for number, task in enumerate(grid_tasks(grid)):
            lower = task.endswith("ppl")
            bits = 16 if cell.method == "bf16" else 2
            facts = {"cell": cell.id, "label": cell.label, "settings": cell.axes, "bits": bits}
            facts |= {"seed": cell.seed, "model_key": cell.model, "key": cell.scores[number]}
            metric = "ppl" if lower else "acc"
            value = 0.1 + (int(cell.model[:6], 16) % 1000) / 2000
            facts |= {"metric": metric, "higher_is_better": not lower, "value": value}
            rows.append(row(task=task, **facts))
    write_export(folder, rows, report=asdict(grid.file.report))
    return folder


def grid_tasks(grid: Grid) -> list[str]:
    return [each if isinstance(each, str) else next(iter(each)) for each in grid.file.evaluate]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(OWN, max_size=3),
    AXES,
    REPORT,
    st.lists(st.sampled_from(TASKS), min_size=1, max_size=3, unique=True),
)
def test_what_is_planned_can_be_reported(
    tiny_folder: Path,
    tmp_path: Path,
    compare: list[dict[str, Any]],
    vary: dict[str, Any],
    report: dict[str, Any],
    tasks: list[str],
) -> None:
    content = {"model": str(tiny_folder), "method": "bitdistiller", "evaluate": tasks}
    content |= {"defaults": DEFAULTS, "compare": compare, "vary": vary, "report": report}
    path = tmp_path / "grid.yaml"
    path.write_text("# Can it be told?\n" + yaml.safe_dump(content))
    try:
        grid = load(path)
    except GridError:
        return
    folder = export(grid, tmp_path / "out")
    summary = summary_of(folder)
    effects_of(folder)
    assert summary.columns
    # No two models of one seed stand behind one number, unless an axis is averaged over.
    seeds = Counter((summary.names[cell.id], cell.seed) for cell in grid.cells)
    assert grid.file.report.over != "seed" or set(seeds.values()) == {1}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (
            "evaluate: [ai2_arc, {arc_easy: {limit: 3}}]",
            "'ai2_arc' and 'arc_easy' would both have rows of it: leave one out",
        ),
        (
            "evaluate: [mmlu_stem, testbed-ppl, mmlu]",
            "'mmlu_stem' and 'mmlu' share the task 'mmlu_abstract_algebra', and would both have",
        ),
        (
            "evaluate: [testbed-ppl, testbed_story]\nreport: {columns: [average]}",
            "report.columns: none of average is a column of scores; an average is of two tasks",
        ),
        (
            "evaluate: [testbed-ppl]\nreport: {columns: device_hours}",
            "report.columns: none of device_hours is a column of scores",
        ),
        (
            "evaluate: [testbed_story]\nreport: {columns: [testbed_story_part]}",
            "report.columns: task 'testbed_story_part' is unknown; did you mean 'testbed_story'?",
        ),
    ],
)
def test_what_no_report_could_show(
    tiny_folder: Path, tmp_path: Path, more: str, words: str
) -> None:
    path = tmp_path / "grid.yaml"
    head = f"# No?\nmodel: {tiny_folder}\nmethod: rtn\ndefaults: {{format.group_size: 32}}\n"
    path.write_text(f"{head}{more}\n")
    with pytest.raises(GridError, match=f"grid.yaml:[56]: {words}"):
        load(path)
