"""What of a grid is published: its records, `report.md`, and the pictures that this shows.

Of the trials of a grid that tunes the records alone. Tables in other forms, PDFs and the page are
rendered from the records when they are asked for; they are not published. Not here: rendering
(`rendering`).
"""

from __future__ import annotations

import re
from pathlib import Path

from harness.core.errors import ReportError
from harness.core.records import TRIALS
from reports.reading.completion import complete_rows
from reports.rendering import RECORDS, render, write

REPORT = "report.md"
_ROWS = "rows.jsonl"


def publish(folder: Path | str, target: Path | str) -> list[Path]:
    """Put what is published of an exported grid into the folder `target`; returns its files.

    Records and pictures of an earlier state of the grid are removed from `target`; other files in
    it stay. Raises ReportError where `folder` has no finished row.
    """
    folder, target = Path(folder), Path(target)
    render(folder)
    records = [name for name in RECORDS if (folder / name).is_file()]
    pictures = shown_pictures((folder / REPORT).read_text(encoding="utf-8"))
    copy_records(folder, target)
    for name in [*pictures, REPORT]:
        write(target / name, (folder / name).read_bytes())
    for path in target.glob("plots/*.png"):
        if path.relative_to(target).as_posix() not in pictures:
            path.unlink()
    return [target / name for name in [REPORT, *records, *pictures]]


def copy_records(folder: Path, target: Path) -> Path:
    """Have `target` hold the records of an exported grid, and of its trials, as `folder` has them
    but for what older rows lack and their provenance says; returns `target`.

    Raises ReportError where there are none, or where `target` cannot be written.
    """
    if not (folder / _ROWS).is_file():
        raise ReportError(f"{folder} has no {_ROWS}: it is not the folder of an exported grid")
    try:
        for name in RECORDS:
            if not (folder / name).is_file():
                (target / name).unlink(missing_ok=True)
            elif name == _ROWS:
                write(target / name, complete_rows(folder))
            else:
                write(target / name, (folder / name).read_bytes())
    except OSError as error:
        raise ReportError(f"{target} cannot be written: {error.strerror}") from error
    if (folder / TRIALS / _ROWS).is_file():
        copy_records(folder / TRIALS, target / TRIALS)
    return target


def shown_pictures(report: str) -> list[str]:
    """The files that a report in Markdown shows, relative to it."""
    return re.findall(r"^!\[.*\]\((plots/[\w-]+\.png)\)$", report, re.M)
