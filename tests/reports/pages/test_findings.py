"""A note is always printed; a finding with the rows that it was written about."""

from __future__ import annotations

from pathlib import Path

import pytest

import reports
from reports.pages.table import make_caption
from reports.reading.export import Export
from tests.support.synthetic_grids import row, summary_of, write

ROOT = Path(__file__).parents[3]


def page(folder: Path) -> str:
    reports.render(folder, html=True)
    pages = [(folder / name).read_text() for name in ("report.md", "table.txt", "index.html")]
    return "\n".join(" ".join(each.split()) for each in pages)


def test_a_finding_is_shown_with_its_rows_only(tmp_path: Path) -> None:
    digest = Export(write(tmp_path, [row()])).rows_digest
    report = {"note": "Set up so.", "finding": {"text": "RTN wins.", "rows": digest}}
    folder = write(tmp_path, [row()], report=report)
    told = page(folder)
    assert told.count("Note: Set up so.") == told.count("Finding: RTN wins.") == 3
    assert "Set up so. RTN wins." in make_caption(summary_of(folder))
    folder = write(tmp_path, [row(value=0.25)], report=report)
    other = Export(folder).rows_digest
    told = page(folder)
    assert told.count("Note: Set up so.") == 3 and "RTN wins" not in told
    assert told.count(f"Left out: a finding about rows {digest}; these are rows {other}.") == 3
    assert "Left out" not in make_caption(summary_of(folder))


def test_a_finding_without_a_digest_is_told_the_one_to_write(tmp_path: Path) -> None:
    folder = write(tmp_path, [row()], report={"finding": {"text": "RTN wins."}})
    digest = Export(folder).rows_digest
    words = f"a finding about rows that it does not name; these are rows {digest}."
    assert page(folder).count(f"Left out: {words}") == 3


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in (ROOT / "results").glob("*/rows.jsonl")),
    ids=lambda folder: folder.name,
)
def test_committed_findings_are_about_the_committed_rows(folder: Path) -> None:
    export = Export(folder)
    finding = export.grid.report.finding
    assert finding is None or finding.rows == export.rows_digest
