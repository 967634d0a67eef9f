"""What was tested, and what was not, is said alike in every form of a report."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

import reports
from reports.pages.effects import count_statuses
from reports.pages.effects import make_sheet as make_effects_sheet
from reports.pages.table import make_ranks
from tests.support.synthetic_grids import effects_of, measured, row, summary_of, write


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """A is ahead of B and C, which are alike; D has other items than they have."""
    right = {"A": 190, "B": 100, "C": 98}
    pairs = [
        measured([1.0] * count + [0.0] * (200 - count), label=label)
        for label, count in right.items()
    ]
    pairs.append(measured([1.0, 0.0] * 100, label="D"))
    pairs[-1][1]["items"] = list(range(1000, 1200))
    return write(tmp_path, [r for r, _ in pairs], items=[i for _, i in pairs])


def test_ranks_tell_untested_from_not_distinguished(grid: Path) -> None:
    ranks = make_ranks(summary_of(grid))
    assert ranks is not None
    shown = {r[1].text: (r[2].text, r[2].best) for r in ranks.rows}
    assert shown == {"A": ("1–2", True), "B": ("2–4", False), "C": ("2–4", False)} | {
        "D": ("untested", False)
    }
    assert ranks.notes == (("a", "untested: no other has its items"),)


def test_all_forms_have_the_ranks(grid: Path) -> None:
    reports.render(grid, html=True)
    for name in ("report.md", "table.tex", "table.html", "table.txt", "index.html"):
        text = (grid / name).read_text().replace("--", "–")
        assert "2–4" in text and "untested: no other has its items" in text, name
        assert "as good as" not in text
    lines = list(csv.DictReader(io.StringIO((grid / "table.csv").read_text())))
    column = "testbed_knowledge.acc"
    found = {
        each["method"]: (each[f"{column}.rank_low"], each[f"{column}.rank_high"]) for each in lines
    }
    assert found == {"A": ("1", "2"), "B": ("2", "4"), "C": ("2", "4"), "D": ("", "")}
    assert lines[3][f"{column}.untested"] == "no other has its items"


def test_without_a_test_there_are_no_ranks(tmp_path: Path) -> None:
    folder = write(tmp_path, [row(), row(label="AWQ", value=0.6)])
    assert make_ranks(summary_of(folder)) is None
    reports.render(folder)
    assert "Ranks" not in (folder / "report.md").read_text()


def effects_sheet(folder: Path, seeds: int, gain: float) -> tuple[str, str]:
    wobble = [0.0, 0.004, -0.004]
    rows = [
        row(settings={"init": i}, seed=s, value=0.5 + (gain if i == "b" else 0) + wobble[s] * k)
        for s in range(seeds)
        for k, i in ((1, "a"), (-1, "b"))
    ]
    found = effects_of(write(folder, rows, report={"effect": "init"}))
    return make_effects_sheet(found, 1).caption, count_statuses(found)


@pytest.mark.parametrize(
    ("seeds", "gain", "said", "unsaid"),
    [
        (3, 0.3, "In bold", "Not in bold"),
        (3, 0.001, "Not in bold: not distinguished, which does not say equal.", "In bold where"),
        (1, 0.3, "Without an interval: untested, with the reason.", "Visible"),
    ],
)
def test_a_caption_explains_what_its_table_has(
    tmp_path: Path, seeds: int, gain: float, said: str, unsaid: str
) -> None:
    caption, counts = effects_sheet(tmp_path, seeds, gain)
    assert said in caption and unsaid not in caption
    status = {"In": "1 distinguished", "No": "1 not distinguished", "Wi": "1 untested"}[said[:2]]
    assert counts == f"Effects of init: {status}; report.md has them."
