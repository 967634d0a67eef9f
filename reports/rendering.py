"""Keeps a grid's rendered files up to date, and prints its table.

`render` is free when nothing changed: `.rendered.json`, written last, holds a digest of the
exported files and of this package's sources, and one of each file that was written. Only when they
differ are pandas and matplotlib loaded. Not here: what the files say.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from harness.core.errors import ReportError
from harness.core.records import TRIALS

if TYPE_CHECKING:
    from reports.numbers.effects import Effect
    from reports.numbers.summary import Summary
    from reports.pages.html import Content
    from reports.pages.pictures import Picture
    from reports.pages.published import Theirs
    from reports.pages.sheet import Sheet
    from reports.plots import Drawn
    from reports.reading.export import Export

RECORDS = (
    "grid.json",
    "rows.jsonl",
    "items.jsonl.gz",
    "curves.jsonl",
    "diagnostics.jsonl",
    "provenance.jsonl",
)
"""The files that `harness.run.export` writes and everything here is rendered from."""
_PAGE = "index.html"
_TRIALS_PLOT = "trials_training_loss"
_STAMP = ".rendered.json"
_COLUMNS = 100  # of table.txt
_TEXTS = ("report.md", "table.md", "table.tex", "table.csv", "table.html", "table.txt")


def render(folder: Path | str, html: bool = False) -> list[Path]:
    """Write the report of an exported grid beside its rows; returns the paths of all its files.

    With `html` the page too. A page that is there already is kept up to date without being asked.
    """
    folder = Path(folder)
    html = html or (folder / _PAGE).exists()
    digest = _inputs(folder)
    known = _current(folder, digest)
    if known is not None and html == (_PAGE in known):
        return [folder / name for name in known]

    from reports.reading.export import Export

    files = _make_files(Export(folder), html)
    for name, data in files.items():
        write(folder / name, data)
    for name in [*_TEXTS, *_picture_names()]:
        if name not in files:
            (folder / name).unlink(missing_ok=True)  # of an earlier state of the grid
    stamp = {
        "inputs": digest,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    }
    write(folder / _STAMP, (json.dumps(stamp, indent=1) + "\n").encode())
    return [folder / name for name in files]


def render_together(folders: Sequence[Path | str], page: Path | str) -> Path:
    """Write one page of several exported grids, which needs no other file; returns its path.

    Their tables stand under each other and are not merged. Raises ReportError where one folder is
    named twice, or has nothing to show.
    """
    from reports.pages.html import write_page
    from reports.reading.export import Export

    places = [Path(folder).resolve() for folder in folders]
    for place, folder in zip(places, folders, strict=True):
        if places.count(place) > 1:
            raise ReportError(f"{folder} is named twice: a page shows a grid once")
    exports = [Export(folder) for folder in folders]
    contents = [_make_content(export, _make(export)) for export in exports]
    write(Path(page), write_page(*contents).encode())
    return Path(page)


def text(folder: Path | str, width: int | None = None) -> str:
    """The comparison table for a terminal (of `width` columns; None: the one this runs in).

    On a terminal as wide as the rendered table.txt, or wider, that is what is given while it is
    current, without loading pandas.
    """
    folder = Path(folder)
    room = shutil.get_terminal_size((_COLUMNS, 24)).columns if width is None else width
    if width is None and room >= _COLUMNS and _current(folder, _inputs(folder)) is not None:
        return (folder / "table.txt").read_text(encoding="utf-8")

    from reports.numbers import effects, summary
    from reports.pages import page
    from reports.reading.export import Export

    export = Export(folder)
    tested = effects.compute_effects(export)
    return page.write_terminal(summary.summarise(export), max(40, room), tested)


class _Made(NamedTuple):
    """What every file of a report is written from."""

    summary: Summary
    theirs: dict[tuple[int, int], Theirs]
    beside: Sheet | None
    tested: tuple[Effect, ...]
    sheets: list[tuple[str, Sheet]]
    pictures: list[Picture]


def _make(export: Export) -> _Made:
    from reports import plots
    from reports.numbers import summary
    from reports.pages import page, published
    from reports.pages.pictures import Picture

    table_summary = summary.summarise(export)
    theirs = published.compare(table_summary, export.rows)
    beside = published.make_comparison(table_summary, theirs)
    context = plots.Context(export, table_summary)
    tested = context.effects
    sheets = page.list_tables(table_summary, beside, tested)
    pictures = [Picture(*plot) for plot in plots.draw(context)]
    return _Made(table_summary, theirs, beside, tested, sheets, pictures)


def _make_content(export: Export, made: _Made) -> Content:
    """What a page for a browser shows of a grid."""
    from reports.pages.html import Content
    from reports.pages.pictures import Picture

    trials = [Picture(*plot) for plot in _draw_trials(export.folder / TRIALS)]
    return Content(export, made.summary, [*made.pictures, *trials], made.sheets)


def _make_files(export: Export, html: bool) -> dict[str, bytes]:
    """Name -> content of every file of the report."""
    from reports.pages import latex, page, sheet, table

    made = _make(export)
    own = [each for title, each in made.sheets if each.head and title != page.AS_PUBLISHED]
    main, beside = table.make_sheet(made.summary), made.beside
    files: dict[str, bytes] = {
        "report.md": page.write_page(made.summary, made.pictures, beside, made.tested).encode(),
        "table.md": "\n".join(map(sheet.markdown, [main, *([beside] if beside else [])])).encode(),
        "table.tex": "\n".join(map(latex.write_latex, [main, *own])).encode(),
        "table.html": "\n".join(map(sheet.html, [main, *own])).encode(),
        "table.csv": table.write_csv(made.summary, made.theirs).encode(),
        "table.txt": page.write_terminal(made.summary, _COLUMNS, made.tested).encode(),
    }
    pictures = made.pictures
    if html:
        from reports.pages.html import write_page

        content = _make_content(export, made)
        files[_PAGE], pictures = write_page(content).encode(), [*content.pictures]
    for picture in pictures:
        files |= {f"plots/{picture.name}.{end}": data for end, data in picture.files.items()}
    return files


def _draw_trials(folder: Path) -> list[Drawn]:
    """The curves of the trials of a grid that tunes, for its page."""
    from reports import plots
    from reports.numbers import summary
    from reports.reading.export import Export

    if not (folder / "curves.jsonl").is_file():
        return []
    export = Export(folder)
    if export.rows.empty:
        return []
    return [
        each._replace(
            name=_TRIALS_PLOT,
            title=f"{each.title} of the trials",
            words=f"One line a trial of the grid's tuning. {each.words}",
        )
        for each in plots.draw(plots.Context(export, summary.summarise(export)), plots.curves.PLOTS)
    ]


def _picture_names() -> list[str]:
    from reports.plots import PLOTS

    names = [*(plot.name for plot in PLOTS), _TRIALS_PLOT]
    return [f"plots/{name}.{suffix}" for name in names for suffix in ("png", "pdf")]


def _inputs(folder: Path) -> str:
    digest = hashlib.sha256()
    package = Path(__file__).parent
    sources = sorted([*package.rglob("*.py"), *package.glob("pages/assets/*")])
    records = [folder / name for name in [*RECORDS, *(f"{TRIALS}/{name}" for name in RECORDS)]]
    for path in [*records, *sources]:
        data = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path.name} {path.is_file()} {len(data)}\n".encode())
        digest.update(data)
    return digest.hexdigest()


def _stamp(folder: Path) -> dict[str, Any] | None:
    try:
        stamp = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = isinstance(stamp, dict) and "inputs" in stamp and isinstance(stamp.get("files"), dict)
    return stamp if whole else None


def _current(folder: Path, digest: str) -> dict[str, str] | None:
    """The files of the last rendering, where nothing has changed since; else None."""
    known = _stamp(folder)
    if known is None or known["inputs"] != digest or not _intact(folder, known["files"]):
        return None
    return dict(known["files"])


def _intact(folder: Path, files: dict[str, str]) -> bool:
    for name, digest in files.items():
        path = folder / name
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            return False
    return True


def write(path: Path, data: bytes) -> None:
    """Whole or not at all; a file that is right already keeps its time."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.write_bytes(data)
    os.replace(half, path)
