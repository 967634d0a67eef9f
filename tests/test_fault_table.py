"""The page of faults is the table that was measured, and nothing in it is silent."""

from __future__ import annotations

import csv

from benchmarks.faults import table


def test_the_page_says_what_was_measured() -> None:
    assert table.PAGE.read_text() == table.write_page()


def test_every_family_was_run_and_no_fault_is_silent_or_stuck() -> None:
    with table.CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["family"] for row in rows} == set(table.FAMILIES)
    assert {row["outcome"] for row in rows} <= {"healed", "found", "refused"}
