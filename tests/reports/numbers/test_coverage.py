"""The committed table of coverage and level says what is stated, and a short run agrees."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.coverage import simulate
from benchmarks.simulations import CASES, Case

TABLE = Path(__file__).parents[3] / "benchmarks/coverage.csv"
QUICK = [
    case for case in CASES if case.name.startswith(("task", "table, 2", "average, 5", "ranks"))
]


def test_the_committed_table_holds_every_statement() -> None:
    with TABLE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    known = [(case.what, case.name) for case in CASES]
    assert [(row["what"], row["case"]) for row in rows] == known
    for row in rows:
        found, slack = float(row["found"]), 2 * float(row["error"])
        assert int(row["runs"]) >= 2000
        if row["what"] == "level":
            assert found <= 5 + slack, row
        elif row["what"] == "beyond":
            assert found > 5, row  # else docs/statistics.md says too little
        elif row["what"] == "power":
            assert found == pytest.approx(80, abs=slack), row
        else:
            assert found >= 93.5 - slack, row


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_a_short_run(case: Case) -> None:
    result = simulate(case, runs=150, seed=1)
    # Four standard errors of 150 runs
    assert result.found >= 88 if case.what == "coverage" else result.found <= 12
