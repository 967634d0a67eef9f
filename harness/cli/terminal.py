"""Tables of words on a terminal: aligned, and wrapped to its width.

Where the output is a file or a pipe nothing is wrapped and nothing coloured, so that each row is
one line. Not here: tables of scores (`reports`).
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from harness.core.errors import show_text
from harness.core.secrets import hide_secrets

UNLIMITED = 10_000  # columns of a file or a pipe
LEAST = 20  # columns that words which wrap have, whatever the terminal's width


def format_table(
    rows: Iterable[Sequence[str]],
    head: Sequence[str] = (),
    words: int = 1,
    indent: int = 0,
    width: int | None = None,
) -> str:
    """Rows as aligned lines; the first `words` columns are words, the others numbers.

    The last column of words is wrapped where `width` (None: the terminal's) asks for it; names and
    numbers never are. Nothing is cut.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    head = list(map(show_text, head))
    rows = [tuple(map(show_text, row)) for row in rows]
    lines = [head, *rows] if head else rows
    columns = max(map(len, lines), default=0)
    table = Table(box=None, show_header=bool(head), pad_edge=False, padding=(0, 2, 0, 0))
    least = 2 * columns
    for index in range(columns):
        wraps = 0 < index == words - 1
        widest = max(cell_len(line[index]) for line in lines if index < len(line))
        least += min(widest, LEAST) if wraps else widest
        table.add_column(
            Text(head[index] if index < len(head) else ""),
            justify="left" if index < words else "right",
            no_wrap=not wraps,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*map(Text, row))
    room = (_terminal_width() if width is None else width) - indent
    console = Console(file=io.StringIO(), width=max(least, room), color_system=None)
    with console.capture() as capture:
        console.print(table)
    return "\n".join((" " * indent + line).rstrip() for line in capture.get().splitlines())


def print_table(
    rows: Iterable[Sequence[str]], head: Sequence[str] = (), words: int = 1, indent: int = 0
) -> None:
    """`format_table`, printed; nothing where there are no rows."""
    if text := format_table(rows, head, words, indent):
        print(text)


def print_line(text: str, file: TextIO | None = None) -> None:
    """Text of others as one line; to `file`, or to standard output."""
    print(hide_secrets(show_text(text)), file=file)


def _terminal_width() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED
