"""The score against effective bits per weight."""

from __future__ import annotations

import math

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
    summary, models, looks = context.summary, context.models, context.looks
    index = data.find_main_score(summary)
    index = 0 if index is None else index
    column = summary.columns[index]
    costs = [_find_cost(row) for row in summary.rows if row.entries[index] and not row.reference]
    if not costs or max(costs) - min(costs) < _APART:
        return None  # before means are taken, which cost much of many rows
    means = data.average_by_row(models, index, get_scale(column))
    points: dict[str, list[tuple[float, Mean]]] = {}
    marked: dict[str, list[Entry]] = {}
    unshown = []
    for row in summary.rows:
        entry, mean = row.entries[index], means[row.name, row.bits]
        if entry is None or row.reference:
            continue
        if math.isfinite(mean.mean):
            points.setdefault(row.name, []).append((_find_cost(row), mean))
            marked.setdefault(row.name, []).append(entry)
        else:
            which = f"{row.name}, {format_bits(row.bits)} bits"
            unshown.append(f"{which}: {mean.mean}, not drawn")
    weights = [weight for line in points.values() for weight, _ in line]
    if not points or max(weights) - min(weights) < _APART:
        return None
    figure = Figure(figsize=(style.COLUMN if len(points) <= FEW else style.PAGE, 2.2))
    axes = figure.subplots()
    handles: list[Line2D] = [
        *draw_references(axes, summary, index),
        *draw_chance(axes, column),
    ]
    shown = [(weight, each.mean) for line in points.values() for weight, each in line]
    front = data.find_pareto_front(shown, column.higher)
    handles += _front(axes, front, max(weights))
    for name, line in points.items():
        line.sort(key=lambda point: (point[0], point[1].mean))
        draw_means(axes, [weight for weight, _ in line], [each for _, each in line], looks[name])
        handles.append(make_handle(looks[name], name + list_marks(marked[name])))
    means_drawn = [mean for line in points.values() for _, mean in line]
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
