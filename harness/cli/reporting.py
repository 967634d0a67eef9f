"""The verbs that write what rows say: report, publish.

Not here: rows out of the store (`harness.run.export`), tables and plots (`reports`).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from harness.cli.verb import (
    RUNS,
    Verb,
    add_grid_argument,
    find_plan,
    open_store,
    without_collection,
)
from harness.core.errors import ReportError
from harness.core.paths import check_file_name
from harness.core.records import TRIALS
from harness.grid import published

_TOGETHER = RUNS / "grids.html"
_SUFFIXES = {"text": "txt", "markdown": "md", "latex": "tex", "csv": "csv", "html": "html"}


def _add_report_arguments(parser: argparse.ArgumentParser) -> None:
    more = ", a folder of rows, or published figures (a name or a CSV file)"
    add_grid_argument(parser, more, published.locate)
    parser.add_argument(
        "others",
        nargs="*",
        type=Path,
        metavar="GRID",
        help="further grids or folders of rows, which --html shows on one page with the first",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="where rows and report go (default: runs/<grid>, of a folder runs/<its path>); "
        f"with --format, the file to write; of several grids, the page (default: {_TOGETHER})",
    )
    parser.add_argument(
        "--format", choices=list(_SUFFIXES), help="print the table alone, in this form"
    )
    parser.add_argument(
        "--html",
        action="store_true",
        help="write index.html too: every number and what is behind it",
    )


@without_collection()
def _report(arguments: argparse.Namespace) -> int:
    import reports

    if arguments.others:
        return _report_together(arguments)
    if arguments.grid.suffix == ".csv":
        figures = published.figures(arguments.grid)
        _print_or_write(reports.as_printed(figures, arguments.format or "text"), arguments.out)
        return 0
    folder = _gather_records(arguments, arguments.out if arguments.format is None else None)
    reports.render(folder, html=arguments.html)
    if arguments.format is None:
        show_report(folder)
    else:
        table = (folder / f"table.{_SUFFIXES[arguments.format]}").read_text()
        _print_or_write(table, arguments.out)
    return 0


def _report_together(arguments: argparse.Namespace) -> int:
    """One page of several grids; what each has of its own is made by its own report."""
    import reports

    paths, page = [arguments.grid, *arguments.others], arguments.out or _TOGETHER
    if arguments.format is not None or not arguments.html:
        raise ReportError("several grids are shown on one page: give --html, and no --format")
    if figures := [path for path in paths if path.suffix == ".csv"]:
        raise ReportError(f"{figures[0]}: published figures have no rows for a page")
    if page.is_dir():
        raise ReportError(f"--out {page} is a folder; of several grids it is the page's file")
    folders = [
        path if path.is_dir() else _export(path, arguments, None) for path in map(Path, paths)
    ]
    print(os.path.relpath(reports.render_together(folders, page)))
    return 0


REPORT = Verb(
    "report",
    "the comparison table and plots of what is done",
    "bitgrid report experiments/quickstart.yaml --format latex",
    _report,
    _add_report_arguments,
)


def _add_publish_arguments(parser: argparse.ArgumentParser) -> None:
    add_grid_argument(parser, " or a folder of rows")
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("results"),
        metavar="FOLDER",
        help="the folder that holds a folder for each grid (default: results)",
    )


def _publish(arguments: argparse.Namespace) -> int:
    import reports

    folder = _gather_records(arguments, None)
    name = json.loads((folder / "grid.json").read_text())["name"]
    for path in reports.publish(folder, arguments.to / check_file_name(name, ReportError)):
        print(os.path.relpath(path))
    return 0


PUBLISH = Verb(
    "publish",
    "put a grid's rows and report.md into results/, to be committed",
    "bitgrid publish experiments/quickstart.yaml",
    _publish,
    _add_publish_arguments,
)


def show_report(folder: Path) -> None:
    """Render an exported grid; print its table and the files that were written."""
    import reports

    paths = reports.render(folder)
    print(reports.text(folder))
    print("\nreport:", *(os.path.relpath(path) for path in paths), sep="\n  ")
    if (trials := folder / TRIALS / "rows.jsonl").is_file():
        print(f"its trials: bitgrid report {os.path.relpath(trials.parent)}")


def _gather_records(arguments: argparse.Namespace, out: Path | None) -> Path:
    """The folder, `out` or one beneath runs/, that holds the rows of what is named."""
    from reports.publishing import copy_records

    if arguments.grid.is_dir():
        return copy_records(arguments.grid, out or _beneath_runs(arguments.grid))
    return _export(arguments.grid, arguments, out)


def _export(grid: Path, arguments: argparse.Namespace, out: Path | None) -> Path:
    """The folder, `out` or one beneath runs/, with the rows that a store has of a grid's file."""
    store = open_store(arguments)
    plan = find_plan(argparse.Namespace(**{**vars(arguments), "grid": grid}), store)
    folder = out or RUNS / plan.name
    from harness.run import export

    export.export(plan, store, folder)
    return folder


def _beneath_runs(folder: Path) -> Path:
    """Where a folder of rows is rendered: where it lies, if beneath runs/, else runs/<its path>.

    So nothing is written beside published rows, nor over the report of a run.
    """
    here, path = Path.cwd().resolve(), folder.resolve()
    if path.is_relative_to(here / RUNS):
        return folder
    inside = path != here and path.is_relative_to(here)
    return RUNS / path.relative_to(here if inside else path.anchor)


def _print_or_write(text: str, out: Path | None) -> None:
    if out is None:
        print(text, end="")
        return
    try:
        out.write_text(text)
    except OSError as error:
        raise ReportError(f"{out}: cannot be written: {error.strerror}") from None
    print(out)
