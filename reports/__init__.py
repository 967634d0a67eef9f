"""From exported rows to tables, plots and a page.

    from reports import load, load_items, render, text

    frame = load("results/quickstart")     # pandas DataFrame, one row a (cell, task, metric)
    items = load_items("results/quickstart")    # one row an item; joined to the rows by `key`
    render("runs/quickstart")              # report.md, table.{md,tex,csv,txt}, plots/*.{png,pdf}
    render("runs/quickstart", html=True)   # index.html too: every number, what is behind it
    publish("runs/quickstart", "results/quickstart")    # the records and report.md, to commit
    print(text("results/quickstart"))      # the table for a terminal
    print(as_printed(figures, "latex"))    # a paper's tables, of its published figures

A folder holds `grid.json`, `rows.jsonl`, `items.jsonl.gz` and, where something was trained,
`curves.jsonl`. The way through: `rows` and `items` read and check them, `naming` tells rows
apart, `summary` decides what stands in the table (its columns are in `columns`, its numbers in
`entries`, what training cost in `cost`, who is best in `ranking`), `effects` says what one axis
does, `stats` has the tests of both, `table` makes a sheet of it, which `sheet` and `latex` write,
`plots` draws (how it looks is in `style`, the words under each in `figures`), `published` sets
what papers print beside it, `page` joins them, `html` does so for a browser, `rendering` keeps
the files up to date, `publishing` takes of them what is committed.

Not here: how a number was measured, and anything that needs a model. The only import from the rest
of the project is `harness.core.errors`. pandas and matplotlib are loaded when they are first needed, so
that `import reports`, and a second `render` of an unchanged folder, take no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.publishing import publish
from reports.rendering import render, text

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["as_printed", "load", "load_items", "publish", "render", "text"]


def load(folder: Path | str) -> pd.DataFrame:
    """The rows of one exported grid; the columns are described at `reports.reading.rows.FIELDS`."""
    from reports.reading import rows

    return rows.load(Path(folder))


def as_printed(figures: Sequence[dict[str, str]], form: str = "text") -> str:
    """A paper's own tables from its published figures, digit for digit.

    `form` is text, markdown, latex, html or csv. Raises ReportError where there is no figure.
    """
    from reports.pages import published

    return published.written(figures, form)


def load_items(folder: Path | str) -> pd.DataFrame:
    """The items behind the rows; the columns are described at `reports.reading.items.ITEM_FIELDS`."""
    from reports.reading import items

    return items.load_items(Path(folder))
