"""The score against effective bits per weight, or the size of the model."""

from __future__ import annotations

import math
from collections.abc import Callable
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
_WHOLE = (
    "of the whole model: weights of the blocks with scales and zero points, embeddings, head and "
    "norms as they are held"
)
_ALIKE = 0.02  # of the largest size: less between models is one size
_APART = 0.05  # bits per weight: rows nearer than that cost the same


class _Costs(NamedTuple):
    """What rows cost, on the axis under their scores."""

    find: Callable[[Row], float | None]  # None where it is not known
    axis: str
    words: list[str]
    apart: float  # less between the least and the most is one cost


def draw_score_vs_bits(context: Context) -> Drawing | None:
    """The average (or the only score, or else perplexity) over bits, with the Pareto front."""
    summary = context.summary
    if summary.grid.report.size != "bits":
        return None
    unknown = any(row.bits_per_weight is None for row in summary.rows if not row.reference)
    counted = "nominal bits where scales and zero points are not known" if unknown else _COUNTED
    return _draw_against(
        context, _Costs(_find_bits, "effective bits per weight", [counted], _APART)
    )


def draw_score_vs_size(context: Context) -> Drawing | None:
    """The same over the size of the whole model, where `report.size` is gb."""
    rows = [row for row in context.summary.rows if not row.reference]
    sizes = [row.size_bytes for row in rows if row.size_bytes is not None]
    if context.summary.grid.report.size != "gb" or not sizes:
        return None
    unit, name = (1e9, "GB") if max(sizes) >= 1e8 else (1e6, "MB")

    def find(row: Row) -> float | None:
        return None if row.size_bytes is None else row.size_bytes / unit

    apart = _ALIKE * max(sizes) / unit
    return _draw_against(context, _Costs(find, f"model size ({name})", [_WHOLE], apart))


def _draw_against(context: Context, costs: _Costs) -> Drawing | None:
    summary, looks = context.summary, context.looks
    index = data.find_main_score(summary)
    index = 0 if index is None else index
    column = summary.columns[index]
    points, unshown = _find_points(context, index, costs)
    weights = [point.cost for line in points.values() for point in line]
    if not points or max(weights) - min(weights) < costs.apart:
        return None
    figure = Figure(figsize=(context.widths.choose(len(points) > FEW), 2.2))
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
    axes.set_xlabel(costs.axis)
    axes.set_ylabel(describe_quantity(column))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    write_remark(figure, unshown)
    draw_legend(figure, handles)
    words = [
        *costs.words,
        *describe_means(means_drawn, summary.grid.report, "error bars"),
    ]
    if len(front) > 1:
        better = "above" if column.higher else "below"
        words.append(f"no point lies {better} and left of the Pareto front")
    title = f"{title_quantities([column])} against {costs.axis.partition(' (')[0]}"
    return Drawing(figure, title, words)


class _Point(NamedTuple):
    """A row of the table, at what it costs."""

    cost: float
    mean: Mean
    entry: Entry


def _find_points(
    context: Context, index: int, costs: _Costs
) -> tuple[dict[str, list[_Point]], list[str]]:
    """The points of each name by rising cost, and in words those that are not finite or whose cost
    is not known; none where all cost the same."""
    summary = context.summary
    rows = [(row, e) for row in summary.rows if (e := row.entries[index]) and not row.reference]
    known = [cost for row, _ in rows if (cost := costs.find(row)) is not None]
    if not known or max(known) - min(known) < costs.apart:
        return {}, []  # before means are taken, which cost much of many rows
    means = data.average_by_row(context.models, index, get_scale(summary.columns[index]))
    points: dict[str, list[_Point]] = {}
    unshown, unknown = list[str](), list[str]()
    for row, entry in rows:
        mean, cost = means[row.name, row.bits], costs.find(row)
        which = f"{row.name}, {format_bits(row.bits)} bits"
        if cost is None:
            unknown.append(which)
        elif math.isfinite(mean.mean):
            points.setdefault(row.name, []).append(_Point(cost, mean, entry))
        else:
            unshown.append(f"{which}: {mean.mean}, not drawn")
    for line in points.values():
        line.sort(key=lambda point: (point.cost, point.mean.mean))
    unshown += [f"size not recorded, not drawn: {', '.join(unknown)}"] if unknown else []
    return points, unshown


def _find_bits(row: Row) -> float:
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


PLOTS = (Plot("score_vs_bits", draw_score_vs_bits), Plot("score_vs_size", draw_score_vs_size))
