"""The steps of a table are linear in its rows, tests aside, which are of pairs up to a most."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from reports.numbers import ranking, summary
from reports.pages import page, sheet, table
from reports.reading.export import Export
from tests.support.calls import compute_calls_a_pair, count_calls
from tests.support.synthetic_grids import measured, write


def _make_report(folder: Path, methods: int) -> Callable[[], object]:
    chance = random.Random(0)
    made = [
        measured(
            [chance.random() for _ in range(4)],
            label="Method",
            settings={"lr": method},
            seed=seed,
            task=f"task_{task}",
        )
        for method in range(methods)
        for seed in range(2)
        for task in range(2)
    ]
    rows, items = zip(*made, strict=True)
    write(folder, rows, items=items, report={"rows": ["lr"]})

    def report() -> object:
        found = summary.summarise(Export(folder))
        assert len(found.rows) == methods
        texts = (page.write_page(found, [], None, ()), table.write_csv(found, []))
        return [*texts, sheet.markdown(table.make_sheet(found))]

    return report


def test_the_steps_of_a_table_are_linear_in_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "MOST", 1)
    _make_report(tmp_path / "first", 2)()  # what is imported, and kept
    steps = [count_calls(_make_report(tmp_path / str(n), n)) for n in (8, 16, 32)]
    assert compute_calls_a_pair(8, *steps) < 0.2, steps
