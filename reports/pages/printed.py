"""What papers print: their tables alone, digits as printed.

Not here: beside what was measured (`published`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from harness.core.errors import ReportError
from harness.core.records import AVERAGE
from reports.numbers.columns import name_task
from reports.pages.escape import escape_markdown, write_csv
from reports.pages.latex import write_latex
from reports.pages.sheet import MISSING, Cell, Sheet, html, markdown, plain, wrap

Figure = dict[str, str]
BEST = "Best of each group in bold, second underlined."


def make_sheets(figures: Sequence[Figure]) -> list[Sheet]:
    """A paper's tables: methods grouped by bits, digits as printed.

    A table whose models have one task each has a column a model; else each model has a table.
    """
    tables = []
    for source, table in dict.fromkeys((f["source"], f["table"]) for f in figures):
        lines = [f for f in figures if (f["source"], f["table"]) == (source, table)]
        models = list(dict.fromkeys(f["model"] for f in lines))
        single = all(len({f["task"] for f in lines if f["model"] == m}) == 1 for m in models)
        if single and len(models) > 1:
            tables.append(_sheet(lines, f"{table}, as printed in {source}.", table, models=True))
            continue
        for model in models:
            own = [f for f in lines if f["model"] == model]
            caption = f"{model}, as printed in {source}."
            tables.append(_sheet(own, caption, f"{table}-{model}", models=False))
    return tables


def write_figures(figures: Sequence[Figure], form: str) -> str:
    """The sheets in one of `FORMS`. Raises ReportError where there is no figure."""
    if not figures:
        raise ReportError("there is no published figure to show")
    best = "Best of each group *." if form == "text" else BEST
    if form == "csv":  # which is for programs: a line a figure, of every model
        return write_csv([list(figures[0]), *([each[k] for k in figures[0]] for each in figures)])
    captioned = [replace(each, caption=f"{each.caption} {best}") for each in make_sheets(figures)]
    return "\n".join(FORMS[form](each) for each in captioned)


def _text(sheet: Sheet) -> str:
    return "\n".join([*wrap(sheet.caption, 100), "", plain(sheet, 100)]) + "\n"


def _markdown(sheet: Sheet) -> str:
    return f"{escape_markdown(sheet.caption)}\n\n{markdown(sheet)}"


FORMS = {"text": _text, "markdown": _markdown, "latex": write_latex, "html": html}


def _sheet(figures: Sequence[Figure], caption: str, name: str, models: bool) -> Sheet:
    def place(f: Figure) -> tuple[str, str, str]:
        return f["model"] if models else "", f["task"], f["metric"]

    columns = list(dict.fromkeys(map(place, figures)))
    titles = []
    for model, task, metric in columns:
        lower = any(is_lower(f) for f in figures if place(f) == (model, task, metric))
        arrow = "↓" if lower else "↑"
        titles.append(" ".join(part for part in (model, name_printed_task(task), arrow) if part))
    cells = {(f["bits"], f["method"], f["group_size"], *place(f)): f["value"] for f in figures}
    groups = []
    widths = sorted({f["bits"] for f in figures}, key=float, reverse=True)
    for bits in widths:
        methods = dict.fromkeys(
            (f["method"], f["group_size"]) for f in figures if f["bits"] == bits
        )
        values = [[cells.get((bits, *method, *c), MISSING) for c in columns] for method in methods]
        placed = [
            _placed([row[i] for row in values], titles[i].endswith("↓"))
            for i in range(len(columns))
        ]
        groups.append(
            tuple(
                (
                    *(Cell(text) for text in (bits, method, group_size or MISSING)),
                    *(column[index] for column in placed),
                )
                for index, (method, group_size) in enumerate(methods)
            )
        )
    head = ("Bits", "Method", "Group size", *titles)
    return Sheet(name, caption, head, tuple(groups), left=3)


def is_lower(figure: Figure) -> bool:
    """Whether less is better: of perplexities, which alone have a window."""
    return bool(figure.get("window")) or "ppl" in figure["metric"] or "perpl" in figure["metric"]


def _placed(values: Sequence[str], lower: bool) -> list[Cell]:
    """The printed figures of one group and column, the best and the second standing out."""
    known = {read_value(v) for v in values if math.isfinite(read_value(v))}
    order = sorted(known, reverse=not lower)
    several = len(values) > 1
    return [
        Cell(
            value,
            best=several and order[:1] == [read_value(value)],
            second=len(values) > 2 and order[1:2] == [read_value(value)],
        )
        for value in values
    ]


def name_printed_task(task: str) -> str:
    return "Average" if task == AVERAGE else name_task(task)


def read_value(printed: str) -> float:
    """A printed figure as a number; what is no number is NaN."""
    try:
        return float(printed)
    except ValueError:
        return math.nan
