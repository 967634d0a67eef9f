"""What the command says of exports that cannot be shown: one line, status 2."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from tests.support.synthetic_grids import TASKS, measured, ppl, row, write

HOLE = {"cell": "x", "label": "X", "settings": {}, "seed": 0, "reason": "failed: out of memory"}


@pytest.mark.parametrize(
    ("rows", "grid", "words"),
    [
        ([row(), row(seed=1, schema=7)], {}, "rows.jsonl:2: schema version 7, expected 2"),
        ([row()], {"schema": 7}, "grid.json: schema version 7, expected 2"),
        ([row(), row(value=0.6)], {}, "twice with a different value: 0.5 (line 1), 0.6 (line 2)"),
        (
            [],
            {"holes": [HOLE], "cells": 1},
            "no finished row; 1 of 1 cells are open, the first: failed",
        ),
        (
            [row()],
            {"report": {"colums": ["x"]}},
            "report: key 'colums' is unknown; did you mean 'columns'?",
        ),
        ([row()], {"report": {"effect": "x"}}, "report.effect: axis 'x' is unknown"),
    ],
)
def test_what_cannot_be_shown(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    grid: dict[str, Any],
    words: str,
) -> None:
    assert main(["report", str(write(tmp_path, rows, **grid))]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert told.startswith("bitgrid: ") and told.count("\n") == 1


def test_nan_is_shown_as_nan_and_not_averaged_away(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [ppl(seed=seed, value=value) for seed, value in enumerate([5.0, math.nan, 5.2])]
    rows += [row(seed=s, task=t, value=0.4) for s in range(3) for t in TASKS]
    rows[4]["value"] = math.nan
    for aggregate in ("mean", "median"):
        folder = write(tmp_path / aggregate, rows, report={"aggregate": aggregate})
        assert main(["report", str(folder), "--format", "csv"]) == 0
        head, line = (text.split(",") for text in capsys.readouterr().out.splitlines())
        shown = dict(zip(head, line, strict=True))
        named = ["testbed-ppl.ppl", f"{TASKS[1]}.acc", "average"]
        assert [shown[name] for name in named] == ["NaN"] * 3
        assert float(shown[f"{TASKS[0]}.acc"]) == pytest.approx(0.4)


def test_a_number_of_a_broken_items_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, line = measured([1, 0, 1])
    folder = write(tmp_path, [made], items=[{**line, "schema": 7}])
    assert main(["report", str(folder)]) == 2
    assert "items.jsonl.gz:1: schema version 7, expected 2" in capsys.readouterr().err
