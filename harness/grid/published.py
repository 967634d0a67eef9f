"""Figures that papers print, kept under results/published/, to stand beside what was measured.

A file has the columns source, table, model, method, bits, group_size, task, num_fewshot, window (tokens,
of a perplexity), metric and value, one figure a line. Not here: showing them (`reports.pages.published`).
"""

from __future__ import annotations

import csv
from pathlib import Path

from harness.core.errors import GridError, nearest

FOLDER = Path(__file__).parents[2] / "results" / "published"
COLUMNS = [
    *("source", "table", "model", "method", "bits", "group_size"),
    *("task", "num_fewshot", "window", "metric", "value"),
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
    """The lines of a file, of one model or of all. Raises GridError with file, line and what is wrong."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            _check_columns(path, list(reader.fieldnames or []))
            rows = []
            for row in reader:
                _check(f"{path}:{reader.line_num}", row)
                rows.append(row)
    except (OSError, ValueError, csv.Error) as error:
        raise GridError(f"{path}: cannot be read as CSV: {error}") from None
    return [row for row in rows if model is None or row["model"] == model]


def _check_columns(path: Path, found: list[str]) -> None:
    for column in found:
        if column not in COLUMNS:
            raise GridError(f"{path}: column {column!r} is unknown; {nearest(column, COLUMNS)}")
    for column in COLUMNS:
        if found.count(column) != 1:
            times = "is missing" if column not in found else "is there twice"
            raise GridError(f"{path}: column {column!r} {times}")


def _check(where: str, row: dict[str, str]) -> None:
    if "" in row or None in row.values():
        raise GridError(f"{where}: not {len(COLUMNS)} fields")
    for column in ("bits", "value"):
        try:
            float(row[column])
        except ValueError:
            raise GridError(f"{where}: {column} {row[column]!r} is no number") from None
