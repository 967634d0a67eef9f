"""Figures that papers print, to stand beside what was measured.

Those in `harness/published/` come with the package; a user's own lie in `published/` of the folder
in which a command is given. A file has the columns source, table, model, method, bits, group_size
(`channel` where it is a whole row, empty where weights share no scale), task, num_fewshot, window
(tokens, of a perplexity), metric and value, one figure a line; and where their source states them,
protocol and seed. The grid behind the figures NAME, which measures them, is called published-NAME.
Not here: showing them (`reports.pages.published`), comparing (`reports.pages.verdicts`).
"""

from __future__ import annotations

import csv
from pathlib import Path

from harness.core.errors import GridError, nearest
from harness.core.paths import read_path

FOLDERS = (Path("published"), Path(__file__).parents[1] / "published")
COLUMNS = [
    *("source", "table", "model", "method", "bits", "group_size"),
    *("task", "num_fewshot", "window", "metric", "value"),
]
OPTIONAL = ["protocol", "seed"]
GRIDS = (Path("experiments"), Path(__file__).parents[1] / "experiments")


def list_names() -> list[str]:
    """The names of all files of published figures."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.csv")})


def find(name: str, model: str | None = None) -> Path:
    """The file called `name`. Raises GridError where it, or `model` in it, is missing."""
    path = next(
        (path for f in FOLDERS if (path := read_path(f"{name}.csv", GridError, f)).is_file()), None
    )
    if path is None:
        raise GridError(f"published figures {name!r} are unknown; {nearest(name, list_names())}")
    if model is not None and model not in (models := {row["model"] for row in figures(path)}):
        raise GridError(f"{path}: model {model!r} is unknown; {nearest(model, models)}")
    return path


def locate(text: str) -> Path:
    """The path that `text` is, or else the file of the published figures that it names."""
    path = Path(text)
    return find(text) if text in list_names() and not path.exists() else path


def find_grid(path: Path) -> Path:
    """The grid behind the figures of a file, by its name: of the user's, then of Bitgrid's.

    Raises GridError where there is none.
    """
    name = f"published-{path.stem}.yaml"
    if (found := next((f / name for f in GRIDS if (f / name).is_file()), None)) is None:
        raise GridError(
            f"{path.stem}: no grid measures these figures: experiments/{name} is missing"
        )
    return found


def figures(path: Path, model: str | None = None) -> list[dict[str, str]]:
    """The lines of a file, of one model or of all.

    Raises GridError with file, line and what is wrong.
    """
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


def _check_columns(path: Path, columns: list[str]) -> None:
    known = [*COLUMNS, *OPTIONAL]
    for column in columns:
        if column not in known:
            raise GridError(f"{path}: column {column!r} is unknown; {nearest(column, known)}")
    for column in dict.fromkeys([*COLUMNS, *columns]):
        if columns.count(column) != 1:
            times = "is missing" if column not in columns else "is there twice"
            raise GridError(f"{path}: column {column!r} {times}")


def _check(where: str, row: dict[str, str]) -> None:
    if "" in row or None in row.values():
        raise GridError(f"{where}: not {len(row.keys() - {''})} fields")
    for column in ("bits", "value"):
        try:
            float(row[column])
        except ValueError:
            raise GridError(f"{where}: {column} {row[column]!r} is no number") from None
