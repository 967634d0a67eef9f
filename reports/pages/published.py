"""What papers print: their tables alone, and beside what was measured.

A figure is a line of a published file (`harness.grid.published` reads it): strings, the value as
printed. Beside a measured number stand theirs and the difference, ours - theirs, in the printed
unit. Nothing is subtracted where the model, the group size, the metric, the few-shot count or the
window differ, or where only some items were scored; a note says which. A task that the grid says
stands for another one is subtracted, with a note of how they differ. What a file does not state is
not checked.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from harness.core.errors import ReportError
from harness.core.records import AVERAGE
from reports.numbers.columns import Column, format_bits, format_number, name_task
from reports.numbers.entries import Row
from reports.numbers.naming import format_setting
from reports.numbers.summary import Summary
from reports.pages.latex import write_latex
from reports.pages.sheet import MISSING, Cell, Sheet, escape_markdown, html, markdown, plain, wrap

Figure = dict[str, str]
LOWER_IS_BETTER = ("ppl",)
BEST = "Best of each group in bold, second underlined."


@dataclass(frozen=True)
class Theirs:
    """A printed figure beside one of ours."""

    printed: str
    difference: float | None = None  # ours - theirs, in the printed unit
    near: bool | None = None  # within the stated tolerance
    why: str | None = None  # it is not subtracted
    remark: str | None = None  # how what was measured differs, where the grid says so


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
    captioned = [replace(each, caption=f"{each.caption} {best}") for each in make_sheets(figures)]
    return "\n".join(FORMS[form](each) for each in captioned)


def _text(sheet: Sheet) -> str:
    return "\n".join([*wrap(sheet.caption, 100), "", plain(sheet, 100)]) + "\n"


def _markdown(sheet: Sheet) -> str:
    return f"{escape_markdown(sheet.caption)}\n\n{markdown(sheet)}"


def _csv(sheet: Sheet) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(sheet.head)
    writer.writerows([[cell.text for cell in row] for row in sheet.rows])
    return out.getvalue()


FORMS = {"text": _text, "markdown": _markdown, "latex": write_latex, "html": html, "csv": _csv}


def _sheet(figures: Sequence[Figure], caption: str, name: str, models: bool) -> Sheet:
    def place(f: Figure) -> tuple[str, str, str]:
        return f["model"] if models else "", f["task"], f["metric"]

    columns = list(dict.fromkeys(map(place, figures)))
    titles = []
    for model, task, metric in columns:
        arrow = "↓" if metric in LOWER_IS_BETTER else "↑"
        titles.append(" ".join(part for part in (model, _title(task), arrow) if part))
    cells = {(f["bits"], f["method"], f["group_size"], *place(f)): f["value"] for f in figures}
    groups = []
    widths = sorted({f["bits"] for f in figures}, key=float, reverse=True)
    for bits in widths:
        methods = dict.fromkeys(
            (f["method"], f["group_size"]) for f in figures if f["bits"] == bits
        )
        values = [[cells.get((bits, *method, *c), MISSING) for c in columns] for method in methods]
        placed = [_placed([row[i] for row in values], c[2]) for i, c in enumerate(columns)]
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


def _placed(values: Sequence[str], metric: str) -> list[Cell]:
    """The printed figures of one group and column, the best and the second standing out."""
    known = {_value(v) for v in values if math.isfinite(_value(v))}
    order = sorted(known, reverse=metric not in LOWER_IS_BETTER)
    several = len(values) > 1
    return [
        Cell(
            value,
            best=several and order[:1] == [_value(value)],
            second=len(values) > 2 and order[1:2] == [_value(value)],
        )
        for value in values
    ]


def compare(summary: Summary, frame: pd.DataFrame) -> dict[tuple[int, int], Theirs]:
    """(row, column) of the summary -> the figure printed of it; `frame` are its rows."""
    printed: dict[tuple[int, int], Theirs] = {}
    if not summary.grid.published:
        return printed
    names = frame["cell"].map(summary.names)
    for index, row in enumerate(summary.rows):
        cells = frame[(names == row.name) & (frame["bits"] == row.bits) & frame["primary"]]
        for place, theirs in _of_row(summary, row, cells):
            printed[index, place] = theirs
    return printed


def make_comparison(summary: Summary, theirs: dict[tuple[int, int], Theirs]) -> Sheet | None:
    """Ours / theirs (difference); None where nothing that was measured is printed, too."""
    if not theirs:
        return None
    marks: dict[str, str] = {}
    groups: dict[float, list[tuple[Cell, ...]]] = {}
    for index, row in enumerate(summary.rows):
        cells = [Cell(row.width), Cell(row.name)]
        for place, (column, entry) in enumerate(zip(summary.columns, row.entries, strict=True)):
            ours = format_number(entry.mean, column, summary.decimals) if entry else MISSING
            printed = theirs.get((index, place))
            cells.append(Cell(ours) if printed is None else _beside(ours, printed, marks))
        groups.setdefault(row.bits, []).append(tuple(cells))
    source = ", ".join(dict.fromkeys(f["source"] for f in summary.grid.published))
    arrows = [f"{c.title} {'↑' if c.higher else '↓'}" for c in summary.columns]
    return Sheet(
        name=f"{summary.grid.name}-published",
        caption=f"Ours / as printed in {source} (ours - theirs). {_tolerance(summary)}".strip(),
        head=("Bits", "Method", *arrows),
        groups=tuple(tuple(rows) for rows in groups.values()),
        notes=tuple((mark, text) for text, mark in marks.items()),
    )


def explain_silence(summary: Summary) -> str | None:
    """In words: that the grid asks for published figures and none is of what was measured."""
    grid = summary.grid
    if not grid.published:
        return None
    theirs = {
        name: dict.fromkeys(f[name] for f in grid.published) for name in ("model", "task", "bits")
    }
    widths = dict.fromkeys(format_bits(row.bits) for row in summary.rows)
    ours = [column.task for column in summary.columns if column.task is not None]
    return (
        f"None of these figures is of what was measured. Published: {', '.join(theirs['task'])} of "
        f"{', '.join(theirs['model'])} at {', '.join(theirs['bits'])} bits; measured: "
        f"{', '.join(ours)} of {grid.model} at {', '.join(widths)} bits."
    )


def _beside(ours: str, theirs: Theirs, marks: dict[str, str]) -> Cell:
    remarks = [f"not subtracted: {theirs.why}"] if theirs.why else []
    remarks += [theirs.remark] if theirs.remark else []
    marked = tuple(marks.setdefault(text, chr(ord("a") + len(marks))) for text in remarks)
    if theirs.why is not None or theirs.difference is None:
        return Cell(ours, after=f"/ {theirs.printed}", marks=marked)
    decimals = len(theirs.printed.partition(".")[2]) if "e" not in theirs.printed else 0
    text = f"{theirs.difference:+.{decimals}f}".replace("-", "−")
    return Cell(ours, after=f"/ {theirs.printed} ({text})", marks=marked, near=theirs.near)


def _tolerance(summary: Summary) -> str:
    tolerances = summary.grid.tolerances
    if not tolerances:
        return "No tolerance was stated."
    listed = ", ".join(f"{name} {value:g}".strip() for name, value in tolerances.items())
    return f"✓ within the stated tolerance ({listed}, in the printed unit), ✗ outside it."


def _of_row(summary: Summary, row: Row, cells: pd.DataFrame) -> Iterator[tuple[int, Theirs]]:
    """A row's columns that are printed, the average last: it needs the tasks' verdicts."""
    verdicts: dict[str, str | None] = {}
    order = sorted(range(len(summary.columns)), key=lambda i: summary.columns[i].task is None)
    for place in order:
        column, entry = summary.columns[place], row.entries[place]
        figure, why = _figure(summary, row, column, cells)
        if figure is None or entry is None:
            continue
        if why is None:
            if column.task is None:
                why = _average_differs(summary, figure, column, verdicts)
            else:
                why = _differs(figure, cells[cells["task"] == column.task])
        if column.task is not None:
            verdicts[column.task] = why
        remark = _remark(summary, column)
        ours = 100 * entry.mean if column.percent else entry.mean
        difference = ours - _value(figure["value"])
        if why is not None or not math.isfinite(difference):
            yield place, Theirs(figure["value"], why=why, remark=remark)
            continue
        limits = summary.grid.tolerances
        limit = limits.get(figure["task"], limits.get(figure["metric"], limits.get("")))
        near = None if limit is None else abs(difference) <= limit + 1e-9
        yield place, Theirs(figure["value"], difference, near, remark=remark)


def _stands_for(summary: Summary, task: str) -> str:
    """The published task that a measured one is compared with: the one of its name, if not said."""
    return summary.grid.stands_for.get(task, {"task": task})["task"]


def _remark(summary: Summary, column: Column) -> str | None:
    """How the tasks of a column differ from the published ones, where the grid says so."""
    remarks = []
    for task in [column.task] if column.task is not None else column.tasks:
        if other := summary.grid.stands_for.get(task):
            renamed = "" if other["task"] == task else f"{task} for {other['task']}: "
            remarks.append(f"{renamed}{other['why']}")
    return "; ".join(remarks) or None


def _figure(
    summary: Summary, row: Row, column: Column, cells: pd.DataFrame
) -> tuple[Figure | None, str | None]:
    """What is printed of a method, width and task; and why of another model, where it is so."""
    task = AVERAGE if column.task is None else _stands_for(summary, column.task)
    lines = [
        f
        for f in summary.grid.published
        if f["method"].casefold() == row.label.casefold()
        and float(f["bits"]) == row.bits
        and f["task"] == task
        and (column.task is None or f["metric"] == column.metric)
    ]
    models = list(dict.fromkeys(cells["model"]))
    stated = summary.grid.published_model
    if stated is None or len(models) > 1:
        same = [f for f in lines if [_bare(f["model"])] == [_bare(m) for m in models]]
        if lines and not same:
            return None, None
        lines = same
    sizes = {format_setting(int(size), "group_size") for size in cells["group_size"].dropna()} or {
        ""
    }
    alike = [f for f in lines if {f["group_size"]} == sizes]
    if alike:
        return alike[0], None
    if lines:
        theirs = lines[0]["group_size"] or "none"
        return lines[0], f"group size {', '.join(sorted(sizes)) or 'none'}, theirs {theirs}"
    return None, None


def _differs(figure: Figure, rows: pd.DataFrame) -> str | None:
    """Why our number is another quantity than the printed one."""
    limits = rows["limit"].dropna()
    if len(limits):
        return f"only {int(limits.iloc[0])} items were scored"
    shots = set(rows["num_fewshot"].dropna().astype(int).astype(str)) or {"0"}
    if figure["num_fewshot"] and shots != {figure["num_fewshot"]}:
        return f"{', '.join(sorted(shots))} few-shot examples, theirs {figure['num_fewshot']}"
    if window := figure.get("window"):  # of exports before figures had one: nothing to check
        ours = {str(int(size)) for size in rows["window"].dropna()}
        if ours != {window}:
            return f"window {', '.join(sorted(ours)) or 'not recorded'}, theirs {window}"
    return None


def _average_differs(
    summary: Summary, figure: Figure, column: Column, verdicts: dict[str, str | None]
) -> str | None:
    printed = {
        f["task"]
        for f in summary.grid.published
        if (f["model"], f["method"], f["bits"])
        == (figure["model"], figure["method"], figure["bits"])
        and f["metric"] not in LOWER_IS_BETTER
        and f["task"] != AVERAGE
    }
    if printed != {_stands_for(summary, task) for task in column.tasks}:
        return f"theirs is over {', '.join(_title(task) for task in sorted(printed))}"
    reasons = [
        why for task in column.tasks if (why := verdicts.get(task, "not all tasks are shown"))
    ]
    return reasons[0] if reasons else None


def _bare(model: str) -> str:
    """`meta-llama/Llama-2-7b-hf@main` and `LLaMA-2-7B` are one model."""
    name = model.partition("@")[0].rpartition("/")[2].casefold().removesuffix("-hf")
    return re.sub(r"[^a-z0-9]", "", name)


def _title(task: str) -> str:
    return "Average" if task == AVERAGE else name_task(task)


def _value(printed: str) -> float:
    """A printed figure as a number; what is no number is NaN."""
    try:
        return float(printed)
    except ValueError:
        return math.nan
