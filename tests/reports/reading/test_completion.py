"""Rows that do not say which texts are behind them get it from their provenance, and no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.core.records import SCHEMA
from reports.publishing import copy_records
from reports.reading.completion import complete_rows
from tests.support.synthetic_grids import ppl, row, write

RESULTS = Path(__file__).parents[3] / "results"
FIELDS = ("text", "trained_on", "calibrated_on")
GRIDS = sorted(path.parent.relative_to(RESULTS) for path in RESULTS.glob("**/rows.jsonl"))


def _read(data: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in data.splitlines()]


@pytest.mark.parametrize("name", GRIDS, ids=str)
def test_what_provenance_gives_is_what_the_row_says(name: Path, tmp_path: Path) -> None:
    written = _read((RESULTS / name / "rows.jsonl").read_bytes())
    assert all(row["trained_on"] is not None for row in written)
    bare = [{key: held for key, held in row.items() if key not in FIELDS} for row in written]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in bare))
    for record in ("grid.json", "provenance.jsonl"):
        (tmp_path / record).write_bytes((RESULTS / name / record).read_bytes())
    assert _read(complete_rows(tmp_path)) == written


def _grid(folder: Path) -> Path:
    """Three rows: one whose stages are all there, one whose model's are not, and one that tells."""
    stages: dict[str, dict[str, Any]] = {
        "text": {"kind": "documents", "source": "wiki"},
        "train": {"kind": "train", "tokens": {"stage": "text"}},
        "score-a": {"kind": "perplexity", "model": {"stage": "train"}, "at": {"stage": "text"}},
        "score-b": {"kind": "perplexity", "model": {"stage": "gone"}, "at": {"stage": "text"}},
    }
    told = {"text": "wiki", "trained_on": ["c4"], "calibrated_on": []}
    rows = [
        ppl(label="A", key="score-a", model_key="train", value=2.0),
        ppl(label="B", key="score-b", model_key="gone", value=3.0),
        ppl(label="C", key="score-a", model_key="train", value=4.0, **told),
    ]
    lines = [{"schema": SCHEMA, "key": key, "stage": stage} for key, stage in stages.items()]
    write(folder, rows)
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (folder / "provenance.jsonl").write_text(text)
    return folder


def test_what_a_row_says_stays_and_what_is_missing_stays_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _grid(tmp_path / "tiny")
    before = (folder / "rows.jsonl").read_text().splitlines()
    copied = copy_records(folder, tmp_path / "copy")
    after = (copied / "rows.jsonl").read_text().splitlines()
    assert after[2] == before[2]
    first, second = json.loads(after[0]), json.loads(after[1])
    added = {"text": "wiki", "trained_on": ["wiki"], "calibrated_on": []}
    assert first == {**json.loads(before[0]), **added}
    assert second == {**json.loads(before[1]), "text": "wiki"}
    assert copy_records(copied, copied) == copied
    assert (copied / "rows.jsonl").read_text().splitlines() == after
    assert main(["report", str(copied)]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "PPL reads wiki. Trained on it: A. Not known of B: stages behind them" in told


def test_rows_without_provenance_are_left_as_they_are(tmp_path: Path) -> None:
    folder = write(tmp_path, [row()])
    assert _read(complete_rows(folder)) == _read((folder / "rows.jsonl").read_bytes())
