"""The score against effective bits per weight."""

from __future__ import annotations

import math
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports.numbers.columns import format_bits
from reports.numbers.entries import Entry, Row
from reports.plots import data, style
from reports.plots.context import Context, Drawing, Plot
from reports.plots.data import Mean
from reports.plots.intervals import describe_means, make_interval_handles
from reports.plots.panels import (
    FEW,
    describe_quantity,
    draw_chance,
    draw_legend,
    draw_means,
    draw_references,
    get_scale,
    is_wide,
    list_marks,
    make_handle,
    set_logarithmic,
    title_quantities,
    write_remark,
)

_COUNTED = "scales and zero points are counted"
_APART = 0.05  # bits per weight: rows nearer than that cost the same


def draw_score_vs_bits(context: Context) -> Drawing | None:
    """The average (or the only score, or else perplexity) over bits, with the Pareto front."""
    summary, looks = context.summary, context.looks
    index = data.find_main_score(summary)
    index = 0 if index is None else index
    column = summary.columns[index]
    points, unshown = _find_points(context, index)
    weights = [point.cost for line in points.values() for point in line]
    if not points or max(weights) - min(weights) < _APART:
        return None
    figure = Figure(figsize=(style.COLUMN if len(points) <= FEW else style.PAGE, 2.2))
    axes = figure.subplots()
    handles: list[Line2D] = [
        *draw_references(axes, summary, index),
        *draw_chance(axes, column),
    ]
    shown = [(point.cost, point.mean.mean) for line in points.values() for point in line]
    front = data.find_pareto_front(shown, column.higher)
    handles += _front(axes, front, max(weights))
    for name, line in points.items():
        means = [point.mean for point in line]
        draw_means(axes, [point.cost for point in line], means, looks[name])
        marks = list_marks(point.entry for point in line)
        handles.append(make_handle(looks[name], name + marks))
    means_drawn = [point.mean for line in points.values() for point in line]
    handles += make_interval_handles(means_drawn, summary.grid.report)
    axes.margins(x=0.08, y=0.1)
    values = [value for _, value in shown]
    if not column.higher and is_wide(values):
        set_logarithmic(axes, "y", min(values), max(values))
    axes.set_xlabel("effective bits per weight")
    axes.set_ylabel(describe_quantity(column))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    write_remark(figure, unshown)
    draw_legend(figure, handles)
    unknown = any(row.bits_per_weight is None for row in summary.rows if not row.reference)
    words = [
        "nominal bits where scales and zero points are not known" if unknown else _COUNTED,
        *describe_means(means_drawn, summary.grid.report, "error bars"),
    ]
    if len(front) > 1:
        better = "above" if column.higher else "below"
        words.append(f"no point lies {better} and left of the Pareto front")
    title = f"{title_quantities([column])} against effective bits per weight"
    return Drawing(figure, title, words)


class _Point(NamedTuple):
    """A row of the table, at what it costs."""

    cost: float
    mean: Mean
    entry: Entry


def _find_points(context: Context, index: int) -> tuple[dict[str, list[_Point]], list[str]]:
    """The points of each name by rising cost, and in words those that are not finite; none where
    all cost the same."""
    summary = context.summary
    rows = [(row, e) for row in summary.rows if (e := row.entries[index]) and not row.reference]
    costs = [_find_cost(row) for row, _ in rows]
    if not costs or max(costs) - min(costs) < _APART:
        return {}, []  # before means are taken, which cost much of many rows
    means = data.average_by_row(context.models, index, get_scale(summary.columns[index]))
    points: dict[str, list[_Point]] = {}
    unshown = []
    for (row, entry), cost in zip(rows, costs, strict=True):
        mean = means[row.name, row.bits]
        if math.isfinite(mean.mean):
            points.setdefault(row.name, []).append(_Point(cost, mean, entry))
        else:
            which = f"{row.name}, {format_bits(row.bits)} bits"
            unshown.append(f"{which}: {mean.mean}, not drawn")
    for line in points.values():
        line.sort(key=lambda point: (point.cost, point.mean.mean))
    return points, unshown


def _find_cost(row: Row) -> float:
    return row.bits if row.bits_per_weight is None else row.bits_per_weight


def _front(axes: Axes, front: list[tuple[float, float]], end: float) -> list[Line2D]:
    """A staircase: what can be had for at most so many bits."""
    if len(front) < 2:
        return []
    at = [*(weight for weight, _ in front), max(end, front[-1][0])]
    values = [*(value for _, value in front), front[-1][1]]
    return axes.plot(
        at,
        values,
        drawstyle="steps-post",
        color=style.FRONT,
        linewidth=3,
        solid_capstyle="butt",
        zorder=1,
        label="Pareto front",
    )


PLOTS = (Plot("score_vs_bits", draw_score_vs_bits),)
