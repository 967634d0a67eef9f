"""Figures that papers print, kept under results/published/, to stand beside what was measured.

A file has the columns source, table, model, method, bits, group_size, task, num_fewshot, metric and
value, one figure a line. Not here: showing them (`reports.published`).
"""

from __future__ import annotations

import csv
from pathlib import Path

from harness.errors import GridError, nearest

FOLDER = Path(__file__).parent.parent / "results" / "published"
COLUMNS = [
    *("source", "table", "model", "method", "bits", "group_size"),
    *("task", "num_fewshot", "metric", "value"),
]


def find(name: str, model: str | None) -> Path:
    """The file called `name`. Raises GridError where it, or `model` in it, is not there."""
    folders = (Path("results") / "published", FOLDER)
    for folder in folders:
        path = folder / f"{name}.csv"
        if path.is_file():
            models = {row["model"] for row in figures(path)}
            if model is not None and model not in models:
                raise GridError(f"{path} has no model {model!r}; {nearest(model, models)}")
            return path
    known = {path.stem for folder in folders for path in folder.glob("*.csv")}
    raise GridError(f"no published figures {name!r}; {nearest(name, known)}")


def figures(path: Path, model: str | None = None) -> list[dict[str, str]]:
    """The lines of a file, of one model or of all."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise GridError(f"{path}: columns {reader.fieldnames}, expected {COLUMNS}")
        return [row for row in reader if model is None or row["model"] == model]
