"""The page of a grid: `index.html` beside its tables and plots, and nothing from anywhere else; or
of several grids, one under the other, in a file that needs no other.

Tables that sort and filter, and for every number what stood behind it. The file holds its style,
its script and its data, so that it works from a disk; a policy in it forbids any other script, and
whatever came from a grid reaches the page as text. The template, the style and the script are in
`assets`. Not here: the data behind the numbers (`html_provenance`), the Markdown page (`page`).
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from harness.core.errors import show_text
from reports.numbers.columns import Column, format_number, get_quantity
from reports.numbers.entries import Entry, Row
from reports.numbers.summary import Summary
from reports.pages import comparable
from reports.pages import html_provenance as provenance
from reports.pages.page import describe_progress, list_open_cells, list_protocols
from reports.pages.pictures import Picture
from reports.pages.sheet import Cell, Sheet
from reports.pages.table import list_explanations, make_sheet
from reports.reading.export import Export

ASSETS = Path(__file__).parent / "assets"
_DOWNLOADS = {
    "table.csv": "table, unrounded",
    "table.tex": "table for LaTeX",
    "table.md": "table in Markdown",
    "rows.jsonl": "every measurement",
    "items.jsonl.gz": "every item",
    "provenance.jsonl": "every stage",
    "curves.jsonl": "training curves",
    "diagnostics.jsonl": "diagnostics",
    "grid.json": "the grid",
}


_Record = dict[str, Any]  # as `html_provenance.list_measurements` gives it


@dataclass(frozen=True)
class Content:
    """What a page shows of one grid; `sheets` are further tables, each with its heading."""

    export: Export
    summary: Summary
    pictures: Sequence[Picture]
    sheets: Sequence[tuple[str, Sheet]] = ()

    @property
    def title(self) -> str:
        """Of the grid."""
        grid = self.summary.grid
        return grid.report.title or grid.name


def write_page(*contents: Content) -> str:
    """The whole file: of one grid, whose tables and plots lie beside it, or of several.

    That of several holds its pictures and needs no other file.
    """
    several = len(contents) > 1
    style, script = _asset("page.css"), _script()
    prefixes = _choose_prefixes(contents) if several else [""]
    grids = list(map(_make_grid, contents, prefixes))
    return _render(
        "page.html",
        style=style,
        script=script,
        policy=_policy(style, script),
        title=f"{len(contents)} grids" if several else grids[0]["title"],
        several=several,
        comparable=several
        and comparable.make_sheet([(each.title, each.export, each.summary) for each in contents]),
        grids=grids,
        data=provenance.embed_json(
            {
                "labels": list(provenance.FACTS.values()),
                "grids": [each["data"] for each in grids],
            }
        ),
    )


def _make_grid(content: Content, prefix: str) -> _Record:
    """What the page needs of one grid; `prefix` begins its ids and its part of the address."""
    export, summary = content.export, content.summary
    measured = provenance.list_measurements(export.rows, summary)
    table = make_sheet(summary)
    shown = {
        "prefix": prefix,
        "level": 3 if prefix else 2,
        "folder": str(export.folder) if prefix else "",
        "title": content.title,
        "grid": summary.grid,
        "warnings": summary.caveats,
        "progress": describe_progress(summary),
        "made": provenance.summarise_stages(export.stages),
        "head": _head(table, summary.columns),
        "rows": [
            _row(row, cells, summary, measured)
            for row, cells in zip(summary.rows, table.rows, strict=True)
        ],
        "notes": table.notes,
        "sheets": content.sheets,
        "explanations": list_explanations(summary),
        "remarks": summary.remarks,
        "measurements": measured,
        "pictures": content.pictures,
        "protocols": list_protocols(summary),
        "open_cells": _open_cells(summary, measured),
        "stale": summary.stale,
        "downloads": {n: words for n, words in _DOWNLOADS.items() if _exists(export.folder, n)},
    }
    charts = {each.name: each.chart for each in content.pictures if each.chart}
    data = provenance.make_data(summary, measured, export.stages, export.items)
    return {
        **shown,
        "about": Markup(_render("about.html", **shown)),
        "sections": Markup(_render("grid.html", **shown)),
        "data": {**data, "charts": charts},
    }


def _choose_prefixes(contents: Sequence[Content]) -> list[str]:
    """The name of each grid as it may stand in an id, told apart where several have one."""
    taken: dict[str, int] = {}
    prefixes = []
    for each in contents:
        name = re.sub(r"[^a-z0-9]+", "-", each.summary.grid.name.lower()).strip("-") or "grid"
        taken[name] = taken.get(name, 0) + 1
        prefixes.append(f"{name}-" if taken[name] == 1 else f"{name}-{taken[name]}-")
    return prefixes


def _render(template: str, **shown: object) -> str:
    return _environment().get_template(template).render(**shown)


def _exists(folder: Path, name: str) -> bool:
    """Tables are written beside this page."""
    return name.startswith("table.") or (folder / name).is_file()


def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        finalize=_show,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _show(value: object) -> object:
    """Text of others as one line of what can be seen; what the template made stays."""
    return show_text(value) if type(value) is str else value


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _script() -> str:
    """The scripts as one, in the order in which they build on each other."""
    names = ("tables.js", "panel.js", "charts.js", "page.js")
    return "\n".join(['"use strict";', "(() => {", *map(_asset, names), "})();"])


def _policy(style: str, script: str) -> str:
    """No script and no style but these two, images of this folder, and no request to anywhere."""

    def digest(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {digest(script)}",
            f"style-src {digest(style)}",
            "img-src 'self' file: data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _head(table: Sheet, columns: Sequence[Column]) -> list[tuple[str, bool, str]]:
    """Of each column its title, whether it holds numbers, and which way it sorts first."""
    stub = table.head[: len(table.head) - len(columns)]
    ways = {"Bits": "descending", "n": "descending"}
    head = [(title, title != "Method", ways.get(title, "ascending")) for title in stub]
    titles = table.head[len(stub) :]
    return head + [
        (title, True, "descending" if column.higher else "ascending")
        for title, column in zip(titles, columns, strict=True)
    ]


def _row(
    row: Row, cells: Sequence[Cell], summary: Summary, measured: list[_Record]
) -> dict[str, Any]:
    """A row of the table: words first, then the numbers with what stands behind them."""
    stub_width = len(cells) - len(summary.columns)
    own = [
        (index, each)
        for index, each in enumerate(measured)
        if each["name"] == row.name and each["record"]["bits"] == row.bits
    ]
    return {
        "row": row,
        "bits": row.width,
        "words": [cell.text for cell in cells[:stub_width]],
        "numbers": [
            {"cell": cell, "column": column, **_behind(column, entry, own, summary.decimals)}
            for cell, column, entry in zip(
                cells[stub_width:], summary.columns, row.entries, strict=True
            )
        ],
    }


def _behind(
    column: Column, entry: Entry | None, own: list[tuple[int, _Record]], decimals: int
) -> dict[str, Any]:
    """What a number sorts by, the measurements it is made of, and what its statistics say."""
    if entry is None:
        return {"value": None, "behind": None}
    tasks = column.tasks if column.task is None else (column.task,)
    behind = [
        index
        for index, each in own
        if each["record"]["primary"]
        and each["record"]["task"] in tasks
        and (column.task is None or get_quantity(each["record"]) == column.quantity)
    ]
    about = []
    if entry.interval is not None:
        low, high = (format_number(end, column, decimals) for end in entry.interval)
        about.append(f"95 % interval over items: {low} to {high}.")
    if entry.rank is not None:
        about.append("Rank in its group: {}.".format("–".join(map(str, dict.fromkeys(entry.rank)))))
    if entry.p is not None:
        about.append(f"Smallest corrected p against a better number of its group: {entry.p:.2g}.")
    if entry.untested:
        about.append(f"Not compared: {entry.untested}.")
    return {
        "value": entry.mean if math.isfinite(entry.mean) else None,
        "behind": " ".join(map(str, behind)),
        "about": " ".join(about),
    }


def _open_cells(summary: Summary, measured: list[_Record]) -> list[dict[str, Any]]:
    """Cells that lack scores, what failed first, each with how much of it is there already."""
    listed = []
    for hole, cell_texts in zip(summary.grid.holes, list_open_cells(summary), strict=True):
        done = {
            get_quantity(each["record"])
            for each in measured
            if each["record"]["cell"] == hole.cell and each["record"]["primary"]
        }
        listed.append({**cell_texts, "failed": not hole.waits, "done": len(done)})
    return sorted(listed, key=lambda each: not each["failed"])
