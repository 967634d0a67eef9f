"""What papers print beside what was measured.

A figure is a line of a published file (`harness.grid.published` reads it): strings, the value as
printed. Beside a measured number stand theirs and the difference, ours - theirs, in the printed
unit. Nothing is subtracted where the model, the group size, the metric, the few-shot count or the
window differ, or where only some items were scored; a note says which. A task that the grid says
stands for another one is subtracted, with a note of how they differ. What has no printed partner
has a note of what is missing. What a file does not state is not checked.

The figures of a paper's 16-bit model stand beside the reference, whatever either is called.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from harness.core.model_names import list_name_parts, may_be_called
from harness.core.records import AVERAGE
from reports.numbers.columns import Column, format_bits, format_difference, format_number
from reports.numbers.entries import REFERENCE_BITS, Row
from reports.numbers.naming import format_group_size
from reports.numbers.summary import Summary
from reports.pages.printed import Figure, is_lower, name_printed_task, read_value
from reports.pages.printed import make_sheets as make_sheets
from reports.pages.sheet import MISSING, Cell, Sheet


@dataclass(frozen=True)
class Theirs:
    """A printed figure beside one of ours."""

    printed: str
    difference: float | None = None  # ours - theirs, in the printed unit
    near: bool | None = None  # within the stated tolerance
    why: str | None = None  # it is not subtracted
    remark: str | None = None  # how what was measured differs, where the grid says so


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
    groups: dict[object, list[tuple[Cell, ...]]] = {}
    for index, row in enumerate(summary.rows):
        missing = _find_missing(summary, row, None)
        cells = [Cell(row.width), Cell(row.name, marks=_mark(missing, marks))]
        for place, (column, entry) in enumerate(zip(summary.columns, row.entries, strict=True)):
            ours = format_number(entry.mean, column, summary.decimals) if entry else MISSING
            printed = theirs.get((index, place))
            if printed is not None:
                cells.append(_beside(ours, printed, marks))
                continue
            lacks = "" if missing or entry is None else _find_missing(summary, row, column)
            cells.append(Cell(ours, marks=_mark(lacks, marks)))
        groups.setdefault(row.group, []).append(tuple(cells))
    source = ", ".join(dict.fromkeys(f["source"] for f in summary.grid.published))
    arrows = [f"{c.title} {'↑' if c.higher else '↓'}" for c in summary.columns]
    sentences = [
        f"Ours / as printed in {source} (ours - theirs).",
        _compare_models(summary),
        _tolerance(summary),
        _list_unmeasured(summary),
    ]
    return Sheet(
        name=f"{summary.grid.name}-published",
        caption=" ".join(filter(None, sentences)),
        head=("Bits", "Method", *arrows),
        groups=tuple(tuple(rows) for rows in groups.values()),
        notes=tuple((mark, text) for text, mark in marks.items()),
    )


def title_comparison(summary: Summary) -> str:
    """The heading of the comparison; that theirs is another model stands in it."""
    stated = summary.grid.published_model
    if stated is None or any(may_be_called(model, stated) for model in summary.models):
        return "Beside the published figures"
    return f"Beside the published figures of another model, {stated}"


def _compare_models(summary: Summary) -> str:
    """That the grid's model is called otherwise than theirs, or is another one."""
    stated = summary.grid.published_model
    if stated is None or len(summary.models) != 1:  # of several each is asked for by its name
        return ""
    (ours,) = summary.models
    if not may_be_called(ours, stated):
        return f"Theirs are of {stated}, ours of {ours}: nothing is subtracted."
    same = list_name_parts(ours) == list_name_parts(stated)
    return "" if same else f"That {ours} is their {stated} is what the grid says."


def _list_unmeasured(summary: Summary) -> str:
    """Printed methods that the grid has not."""
    ours = {row.method.casefold() for row in summary.rows}
    has_reference = any(row.reference for row in summary.rows)
    theirs = dict.fromkeys(
        f["method"]
        for f in summary.grid.published
        if f["method"].casefold() not in ours
        and not (has_reference and float(f["bits"]) >= REFERENCE_BITS)
    )
    return f"Printed and not measured here: {', '.join(theirs)}." if theirs else ""


def _mark(text: str, marks: dict[str, str]) -> tuple[str, ...]:
    """The mark of a note, a new one for new words: a … z, aa …; none for no words."""
    if not text:
        return ()
    place = len(marks)
    return (marks.setdefault(text, chr(ord("a") + place % 26) * (place // 26 + 1)),)


def _find_missing(summary: Summary, row: Row, column: Column | None) -> str:
    """Why nothing is printed of a row, or of one number of it; empty where something is."""
    lines = [f for f in summary.grid.published if _is_of_method(f, row)]
    if not lines:
        return "no published figure of this method"
    widths = dict.fromkeys(f["bits"] for f in lines)
    lines = [f for f in lines if _is_of_width(f, row)]
    if not lines:
        return f"published at {', '.join(widths)} bits only"
    if column is None:
        return ""
    task = AVERAGE if column.task is None else _stands_for(summary, column.task)
    lines = [f for f in lines if f["task"] == task]
    if not lines:
        return "no published figure of this method and task"
    metrics = dict.fromkeys(f["metric"] for f in lines)
    if column.task is not None and column.metric not in metrics:
        return f"published in another metric: {', '.join(metrics)}"
    return f"published of other models only: {', '.join(dict.fromkeys(f['model'] for f in lines))}"


def _is_of_method(figure: Figure, row: Row) -> bool:
    """The reference is a paper's 16-bit model, whatever types they were computed in. A row of
    models that do something as they run is of no method that does not say so."""
    if row.reference:
        return float(figure["bits"]) >= REFERENCE_BITS
    return figure["method"].casefold() == row.method.casefold()


def _is_of_width(figure: Figure, row: Row) -> bool:
    return float(figure["bits"]) == row.bits or (
        row.reference and float(figure["bits"]) >= REFERENCE_BITS
    )


def explain_silence(summary: Summary) -> str | None:
    """In words: that the grid asks for published figures and none is of what was measured."""
    grid = summary.grid
    if not grid.published:
        return None
    theirs = {
        name: dict.fromkeys(f[name] for f in grid.published)
        for name in ("model", "task", "bits", "method")
    }
    widths = dict.fromkeys(format_bits(row.bits) for row in summary.rows)
    methods = dict.fromkeys(row.method for row in summary.rows)
    ours = [column.task for column in summary.columns if column.task is not None]
    return (
        f"None of these figures is of what was measured. Published: {', '.join(theirs['task'])} of "
        f"{', '.join(theirs['model'])} at {', '.join(theirs['bits'])} bits by "
        f"{', '.join(theirs['method'])}; measured: {', '.join(ours)} of {grid.model} at "
        f"{', '.join(widths)} bits by {', '.join(methods)}."
    )


def _beside(ours: str, theirs: Theirs, marks: dict[str, str]) -> Cell:
    remarks = [f"not subtracted: {theirs.why}"] if theirs.why else []
    remarks += [theirs.remark] if theirs.remark else []
    marked = tuple(mark for text in remarks for mark in _mark(text, marks))
    if theirs.why is not None or theirs.difference is None:
        return Cell(ours, after=f"/ {theirs.printed}", marks=marked)
    decimals = len(theirs.printed.partition(".")[2]) if "e" not in theirs.printed else 0
    text = format_difference(theirs.difference, decimals)
    return Cell(ours, after=f"/ {theirs.printed} ({text})", marks=marked, near=theirs.near)


def _tolerance(summary: Summary) -> str:
    tolerances = summary.grid.tolerances
    if not tolerances:
        return "No tolerance was stated."
    listed = ", ".join(
        f"{name} {limit if isinstance(limit, str) else format(limit, 'g')}".strip()
        for name, limit in tolerances.items()
    )
    return f"✓ within the stated tolerance ({listed}, in the printed unit), ✗ outside it."


def find_limit(summary: Summary, figure: Figure) -> float | None:
    """How far from a figure is within the stated tolerance, in the printed unit; None: not said."""
    limits = summary.grid.tolerances
    names = (figure["method"], figure["task"], figure["metric"], "")
    limit = next((limits[name] for name in names if name in limits), None)
    if isinstance(limit, str):
        return float(limit.removesuffix("%")) / 100 * abs(read_value(figure["value"]))
    return limit


def fits(summary: Summary, figure: Figure, row: Row, column: Column) -> bool:
    """Whether a place in the table is of a figure's method, width, task and metric."""
    task = AVERAGE if column.task is None else _stands_for(summary, column.task)
    is_metric = column.task is None or column.metric == figure["metric"]
    return (
        _is_of_method(figure, row)
        and _is_of_width(figure, row)
        and task == figure["task"]
        and is_metric
    )


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
        remark = "; ".join(filter(None, [_remark(summary, column), _rename(figure, row)])) or None
        ours = 100 * entry.mean if column.percent else entry.mean
        difference = ours - read_value(figure["value"])
        if why is not None or not math.isfinite(difference):
            yield place, Theirs(figure["value"], why=why, remark=remark)
            continue
        limit = find_limit(summary, figure)
        near = None if limit is None else abs(difference) <= limit + 1e-9
        yield place, Theirs(figure["value"], difference, near, remark=remark)


def _rename(figure: Figure, row: Row) -> str:
    """That the reference is computed in another type than theirs."""
    if row.method.casefold() == figure["method"].casefold():
        return ""
    return f"ours is {row.method}, theirs {figure['method']}"


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
    lines = [f for f in summary.grid.published if fits(summary, f, row, column)]
    models = list(dict.fromkeys(cells["model"]))
    stated = summary.grid.published_model
    if stated is None or len(models) > 1:
        parts = [list_name_parts(model) for model in models]
        lines = [f for f in lines if [list_name_parts(f["model"])] == parts]
    elif lines and not all(may_be_called(model, stated) for model in models):
        return lines[0], f"theirs is of {stated}, ours of {', '.join(models)}"
    weight = row.bits_per_weight
    if lines and row.reference and weight is not None and weight < REFERENCE_BITS:
        return lines[0], f"ours was published in {weight:.2f} bits a weight, theirs is 16-bit"
    sizes = {format_group_size(int(size)) for size in cells["group_size"].dropna()} or {""}
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
        counts = _count_items(rows)
        scored = "–".join(dict.fromkeys(map(str, (counts[0], counts[-1]))))
        each = "" if counts == [int(limits.iloc[0])] else f" (limit {int(limits.iloc[0])})"
        return f"only {scored} items were scored{each}"
    shots = set(rows["num_fewshot"].dropna().astype(int).astype(str)) or {"0"}
    if figure["num_fewshot"] and shots != {figure["num_fewshot"]}:
        return f"{', '.join(sorted(shots))} few-shot examples, theirs {figure['num_fewshot']}"
    if window := figure.get("window"):  # of exports before figures had one: nothing to check
        ours = {str(int(size)) for size in rows["window"].dropna()}
        if ours != {window}:
            return f"window {', '.join(sorted(ours)) or 'not recorded'}, theirs {window}"
    return None


def _count_items(rows: pd.DataFrame) -> list[int]:
    """Different numbers of items behind rows with a limit, rising.

    The limit of a task with parts, as MMLU's subjects, is one of each part.
    """
    known = rows[rows["limit"].notna()]
    counts = set()
    for limit, n, whole in zip(known["limit"], known["n"], known["aggregation"], strict=True):
        if whole == "mean" or pd.isna(n):
            n = limit if pd.isna(n) else min(n, limit)
        counts.add(int(n))
    return sorted(counts)


def _average_differs(
    summary: Summary, figure: Figure, column: Column, verdicts: dict[str, str | None]
) -> str | None:
    printed = {
        f["task"]
        for f in summary.grid.published
        if (f["model"], f["method"], f["bits"])
        == (figure["model"], figure["method"], figure["bits"])
        and not is_lower(f)
        and f["task"] != AVERAGE
    }
    if printed != {_stands_for(summary, task) for task in column.tasks}:
        return f"theirs is over {', '.join(name_printed_task(task) for task in sorted(printed))}"
    reasons = [
        why for task in column.tasks if (why := verdicts.get(task, "not all tasks are shown"))
    ]
    return reasons[0] if reasons else None
