"""results/ holds what is published and no more, and each report there is what its records give."""

from __future__ import annotations

import csv
import re
import subprocess
from pathlib import Path

import pytest
from matplotlib.backends.backend_pdf import FigureCanvasPdf

from harness.core.records import TRIALS
from reports.publishing import copy_records, shown_pictures
from reports.rendering import RECORDS, render

RESULTS = Path(__file__).parents[1] / "results"
GRIDS = sorted(path.parent.name for path in RESULTS.glob("*/rows.jsonl"))


@pytest.mark.parametrize("name", GRIDS)
def test_a_committed_report_is_what_its_records_give(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name != "quickstart":  # no report shows a PDF, and fonts are cut for each: two fifths of it
        monkeypatch.setattr(FigureCanvasPdf, "print_pdf", lambda _, file, **__: file.write(b"PDF"))
    folder = copy_records(RESULTS / name, tmp_path / name)
    render(folder, html=name == "quickstart")
    report = (folder / "report.md").read_text()
    assert report == (RESULTS / name / "report.md").read_text()
    assert all((folder / picture).stat().st_size > 0 for picture in shown_pictures(report))
    table = (folder / "table.md").read_text().split("\n\n")[0]
    with (folder / "table.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) - 1 == len(table.splitlines()) - 2 > 0
    assert (folder / "table.tex").read_text().count(r"\toprule") >= 1
    if name == "quickstart":
        assert "Bitgrid report" in (folder / "index.html").read_text()


@pytest.mark.parametrize("name", GRIDS)
def test_only_what_is_published_is_committed(name: str) -> None:
    listing = ["git", "-C", str(RESULTS / name), "ls-files"]
    listed = subprocess.run(listing, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    pictures = shown_pictures((RESULTS / name / "report.md").read_text())
    committed = set(listed.stdout.split())
    trials = {f"{TRIALS}/{record}" for record in RECORDS}
    assert committed <= {"report.md", *RECORDS, *pictures, *trials}
    assert committed >= {"report.md", "rows.jsonl", "grid.json", "provenance.jsonl", *pictures}


@pytest.mark.parametrize("name", GRIDS)
def test_no_record_names_a_folder_of_the_machine_that_computed_it(name: str) -> None:
    for path in sorted((RESULTS / name).rglob("*.json*")):
        if path.suffix != ".gz":
            assert not re.search(r'": "(/|~)[^"]*"', path.read_text()), path
