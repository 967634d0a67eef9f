"""A table as words, whatever it says, and how it is written: Markdown, HTML, and for a terminal.

LaTeX is in `latex`. Not here: which numbers (`table`, `published`, `effects`).
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len

from harness.core.errors import show_text
from reports.pages.escape import escape_html, escape_markdown

MISSING = "–"


@dataclass(frozen=True)
class Cell:
    """One number or word, how it stands out, and the marks of its notes."""

    text: str = MISSING
    after: str = ""  # in smaller type: ± 0.30
    best: bool = False
    second: bool = False
    marks: tuple[str, ...] = ()
    near: bool | None = None  # within a tolerance, outside it, or none was stated


@dataclass(frozen=True)
class Sheet:
    """A table; its first `left` columns are words. Every group stands between two rules."""

    name: str
    caption: str
    head: tuple[str, ...]
    groups: tuple[tuple[tuple[Cell, ...], ...], ...]
    left: int = 2
    notes: tuple[tuple[str, str], ...] = ()  # mark, what it says
    short: str = ""  # a caption for a paper, whose note the long one is; empty: `caption` is both

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        return [row for group in self.groups for row in group]

    @property
    def toleranced(self) -> bool:
        return any(cell.near is not None for row in self.rows for cell in row)


def markdown(sheet: Sheet) -> str:
    """A pipe table, its marks beneath."""

    def write(cell: Cell) -> str:
        shown = escape_markdown(cell.text)
        shown = f"**{shown}**" if cell.best else f"<u>{shown}</u>" if cell.second else shown
        shown += f" {escape_markdown(cell.after)}" if cell.after else ""
        shown += "" if cell.near is None else " ✓" if cell.near else " ✗"
        marks = escape_markdown(",".join(cell.marks))
        return shown + (f" <sup>{marks}</sup>" if marks else "")

    head = [escape_markdown(title) for title in sheet.head]
    rule = [":--"] * sheet.left + ["--:"] * (len(head) - sheet.left)
    lines = [head, rule, *([write(cell) for cell in row] for row in sheet.rows)]
    pairs = [tuple(map(escape_markdown, pair)) for pair in sheet.notes]
    notes = [f"<sup>{mark}</sup> {note}  " for mark, note in pairs]
    table = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([*table, *(["", *notes] if notes else [])]) + "\n"


def html(sheet: Sheet) -> str:
    """A `<table>` to put into a page: no script, and no style but a colour for near and far."""
    colours = {True: ' style="color: #00695c"', False: ' style="color: #b23c00"', None: ""}

    def write(cell: Cell, word: bool) -> str:
        shown = escape_html(cell.text)
        shown = f"<strong>{shown}</strong>" if cell.best else shown
        shown = f"<u>{shown}</u>" if cell.second else shown
        shown += f" <small>{escape_html(cell.after)}</small>" if cell.after else ""
        shown += "" if cell.near is None else " ✓" if cell.near else " ✗"
        shown += f"<sup>{escape_html(','.join(cell.marks))}</sup>" if cell.marks else ""
        tag = 'th scope="row"' if word else "td"
        return f"<{tag}{colours[cell.near]}>{shown}</{tag[:2]}>"

    lines = [f'<table class="bitgrid" id="{escape_html(label(sheet.name))}">']
    lines += [f"<caption>{escape_html(sheet.caption)}</caption>", "<thead>"]
    titles = [f'<th scope="col">{escape_html(title)}</th>' for title in sheet.head]
    lines += [f"<tr>{''.join(titles)}</tr>", "</thead>"]
    for group in sheet.groups:
        cells = ["".join(write(c, i < sheet.left) for i, c in enumerate(row)) for row in group]
        lines += ["<tbody>", *(f"<tr>{row}</tr>" for row in cells), "</tbody>"]
    if sheet.notes:
        pairs = [tuple(map(escape_html, pair)) for pair in sheet.notes]
        words = "<br>".join(f"<sup>{mark}</sup> {note}" for mark, note in pairs)
        lines += [f'<tfoot><tr><td colspan="{len(sheet.head)}">{words}</td></tr></tfoot>']
    return "\n".join([*lines, "</table>"]) + "\n"


def plain(sheet: Sheet, width: int) -> str:
    """For a terminal of `width` columns: what does not fit goes on in a further block."""
    head = list(map(show_text, sheet.head))
    groups = [
        [[_plain(cell, i < sheet.left) for i, cell in enumerate(row)] for row in group]
        for group in sheet.groups
    ]
    for group in groups:
        for cells in group[1:]:
            cells[0] = ""
    body = [cells for group in groups for cells in group]
    widths = [max(cell_len(cells[i]) for cells in [head, *body]) for i in range(len(head))]
    widths[1] = max(1, min(widths[1], max(16, width // 2)))
    gap = 1 if len(_blocks(widths, width, 2)) > len(_blocks(widths, width, 1)) == 1 else 2
    lines: list[str] = []
    for block in _blocks(widths, width, gap):
        lines += [""] if lines else []
        lines += _lines(head, block, widths, gap)
        rule = "─" * min(width, max(len(line) for line in _lines(body[0], block, widths, gap)))
        for group in groups:
            lines.append(rule)
            lines += [line for cells in group for line in _lines(cells, block, widths, gap)]
    below = [line for mark, note in sheet.notes for line in wrap(f"[{mark}] {note}", width)]
    return "\n".join([*(line.rstrip() for line in lines), *below])


def label(name: str) -> str:
    """A name as it may stand in `\\label` or `id`."""
    return "tab:" + re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-")


def wrap(text: str, width: int) -> list[str]:
    """Text as lines of a terminal; long words are never cut."""
    text = show_text(text)
    return textwrap.wrap(text, max(20, width), break_long_words=False, break_on_hyphens=False)


def _plain(cell: Cell, word: bool) -> str:
    if word:
        return show_text(cell.text)
    shown = show_text(f"{cell.text} {cell.after}" if cell.after else cell.text)
    marks = f" [{','.join(cell.marks)}]" if cell.marks else ""
    far = " ✗" if cell.near is False else ""
    return shown + far + marks + ("*" if cell.best else " ")


def _blocks(widths: Sequence[int], width: int, gap: int) -> list[list[int]]:
    """Columns of each block; the first two stand in all of them."""
    blocks = [[0, 1]]
    start = widths[0] + 2 + widths[1]
    used = start
    for index in range(2, len(widths)):
        if used + gap + widths[index] > width and len(blocks[-1]) > 2:
            blocks.append([0, 1])
            used = start
        blocks[-1].append(index)
        used += gap + widths[index]
    return blocks


def _lines(
    cells: Sequence[str], block: Sequence[int], widths: Sequence[int], gap: int
) -> list[str]:
    """One line, or several where the name is too long: names are never cut."""
    name = textwrap.wrap(cells[1], widths[1], subsequent_indent="  ") or [""]
    first = _pad(cells[0], widths[0], left=True) + "  " + _pad(name[0], widths[1], left=True)
    for index in block[2:]:
        first += " " * gap + _pad(cells[index], widths[index], left=False)
    return [first, *(" " * (widths[0] + 2) + part for part in name[1:])]


def _pad(text: str, width: int, left: bool) -> str:
    space = " " * (width - cell_len(text))
    return text + space if left else space + text
