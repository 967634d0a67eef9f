"""From exported rows to tables, plots and a page.

    from reports import load, load_items, render, text

    frame = load("results/quickstart")  # pandas DataFrame: one row a cell, task, metric, filter
    items = load_items("results/quickstart")    # one row an item
    curves = load_curves("results/quickstart")  # one row a training step
    render("runs/quickstart")              # report.md, table.{md,tex,csv,txt}, plots/*.{png,pdf}
    render("runs/quickstart", html=True)   # index.html too: every number, what is behind it
    render_together(["runs/a", "runs/b"], "page.html")     # both, one under the other
    publish("runs/quickstart", "results/quickstart")    # the records and report.md, to commit
    print(text("results/quickstart"))      # the table for a terminal
    print(as_printed(figures, "latex"))    # a paper's tables, of its published figures

The way through: `reading` reads and checks the files, whose lines are described in
`harness.core.records`; `numbers` tells rows apart (`naming`), decides what stands in the table
(`summary`, its columns in `columns` and `model_columns`, its numbers in `entries`, who is best in
`ranking`) and what one axis does (`effects`); `plots` draws; `pages` writes: tables as sheets
(`table`, `effects`, `published`) in every form (`sheet`, `latex`), the page for readers (`page`)
and for a browser (`html`). `rendering` keeps the files up to date,
`publishing` takes of them what is committed. Each imports what stands before
it only; plots and pages do not know of each other.

Not here: how a number was measured, and anything that needs a model. From the rest of the project
only `harness.core.errors` and `harness.core.records` are imported. pandas and matplotlib are loaded
when they are first needed, so that `import reports`, and a second `render` of an unchanged folder,
take no time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reports.publishing import publish
from reports.rendering import render, render_together, text

if TYPE_CHECKING:
    import pandas as pd

    from reports.pages.verdicts import Verdict

__all__ = [
    "as_printed",
    "judge",
    "load",
    "load_curves",
    "load_items",
    "publish",
    "render",
    "render_together",
    "text",
]


def load(folder: Path | str) -> pd.DataFrame:
    """The rows of an exported grid: one a cell, task, metric and filter.

    The columns are the fields of `harness.core.records.Row`, `settings.<path>` for each setting
    that varies, and `line`, the number of the line in rows.jsonl.
    """
    from reports.reading.export import Export

    return Export(folder).rows


def load_items(folder: Path | str) -> pd.DataFrame:
    """The items behind the rows: one row an item of each evaluation.

    Its columns are key, task, metric, filter, which its row has too, item, its number in the task,
    and score: `items.merge(load(folder), on=["key", "task", "metric", "filter"])`. The mean score
    is the row's value where `aggregation` is `mean`; exp of it where it is `exp_mean`. Cells that
    share a model share a key, so that each of them has these items.
    """
    from reports.reading.export import Export
    from reports.reading.items import make_items_frame

    return make_items_frame(Export(folder).items)


def load_curves(folder: Path | str) -> pd.DataFrame:
    """The training curves: one row a trained model and step.

    The columns are the fields of `harness.core.records.CurvePoint`.
    """
    from reports.reading.export import Export

    return Export(folder).curves


def judge(folder: Path | str) -> list[Verdict]:
    """Whether each printed figure that an exported grid asks for is what was measured."""
    from reports.pages import verdicts
    from reports.reading.export import Export

    return verdicts.judge(Export(folder))


def as_printed(figures: Sequence[dict[str, str]], form: str = "text") -> str:
    """A paper's own tables from its published figures, digit for digit.

    `form` is text, markdown, latex, html or csv. Raises ReportError where there is no figure.
    """
    from reports.pages import printed

    return printed.write_figures(figures, form)
