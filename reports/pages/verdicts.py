"""Figure by figure, whether what a grid measured is what others printed.

Not here: which of our numbers stands beside a figure, and when it is another quantity
(`published`); running the grid (`harness.cli.figures`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from harness.core.errors import ReportError
from reports.numbers.columns import format_bits, format_fixed, format_number
from reports.numbers.summary import Summary, summarise
from reports.pages.printed import Figure, name_printed_task, read_value
from reports.pages.published import compare, find_limit, fits
from reports.reading.export import Export

State: TypeAlias = Literal["within", "outside", "no tolerance", "not compared", "not run"]


@dataclass(frozen=True)
class Verdict:
    """What is said of a printed figure. ours: as tables show it; why: what keeps it apart."""

    figure: Figure
    state: State
    ours: str = ""
    why: str = ""
    limit: float | None = None  # the tolerance, in the printed unit

    def describe(self) -> str:
        """Which figure it is: `RTN, 4 bits, group 128: WikiText-2 ppl`."""
        figure = self.figure
        size = figure["group_size"]
        group = f", {f'group {size}' if size.isdigit() else size}" if size else ""
        task = name_printed_task(figure["task"])
        return f"{figure['method']}, {figure['bits']} bits{group}: {task} {figure['metric']}"


def judge(export: Export) -> list[Verdict]:
    """One of each figure that the exported grid asks for, in the order of their file."""
    try:
        summary = summarise(export)
    except ReportError as error:  # no row is there
        return [Verdict(figure, "not run", why=str(error)) for figure in export.grid.published]
    return [_judge(figure, summary, export) for figure in export.grid.published]


def _judge(figure: Figure, summary: Summary, export: Export) -> Verdict:
    # Alone with those of other tasks, which an average is over: of two papers each has its own say.
    others = [f for f in summary.grid.published if f["task"] != figure["task"]]
    alone = replace(summary, grid=replace(summary.grid, published=[figure, *others]))
    places = [
        place
        for place in compare(alone, export.rows).items()
        if fits(summary, figure, summary.rows[place[0][0]], summary.columns[place[0][1]])
    ]
    if not places:
        return Verdict(figure, "not run", why="; ".join(_explain(figure, summary)))
    # Of several groups of weights one is the figure's, and the others say why they are not.
    (row, column), theirs = min(places, key=lambda place: place[1].why is not None)
    entry = summary.rows[row].entries[column]
    assert entry is not None
    ours = format_number(entry.mean, summary.columns[column], 2)
    if theirs.why is not None or theirs.difference is None:
        return Verdict(figure, "not compared", ours, theirs.why or "one of them is no number")
    state: State = "no tolerance"
    printed = figure["value"]
    decimals = len(printed.partition(".")[2]) if "e" not in printed else 0
    ours = format_fixed(theirs.difference + read_value(printed), max(2, decimals))
    if theirs.near is not None:
        state = "within" if theirs.near else "outside"
    return Verdict(figure, state, ours, theirs.remark or "", find_limit(summary, figure))


def _explain(figure: Figure, summary: Summary) -> Iterator[str]:
    """Why nothing stands beside a figure: the first thing that lacks; and what is still open."""
    name = figure["method"].casefold()
    rows = [row for row in summary.rows if row.method.casefold() == name]
    widths = [format_bits(row.bits) for row in rows]
    holes = [hole for hole in summary.grid.holes if hole.label.casefold() == name]
    if not rows and not holes:
        yield f"the grid has no method called {figure['method']}"
    elif rows and format_bits(float(figure["bits"])) not in widths and not holes:
        yield f"measured at {', '.join(dict.fromkeys(widths))} bits only"
    elif rows and not holes:
        yield "not measured of this model and task"
    yield from dict.fromkeys(hole.reason for hole in holes)
