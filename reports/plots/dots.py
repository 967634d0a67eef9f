"""Dot plots: a row a method, its numbers as points with intervals."""

from __future__ import annotations

import math
import textwrap

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports import style
from reports.plots.data import shortened
from reports.plots.panels import is_wide, legend, logarithmic, marks, of_entry, quantity, references
from reports.style import Look
from reports.summary import Row, Summary, number, number_of_bits

_LEAST = 1.25  # largest over smallest on an axis: less would make a small difference look large
_LETTERS = 22  # of a line of a row's name, which leave room for data in one column


def perplexity(summary: Summary, looks: dict[str, Look]) -> Figure | None:
    """A panel a column that is better lower, a row of dots for each row of the table.

    Dots and not bars: a logarithmic axis has no zero for a bar to stand on.
    """
    columns = [index for index, column in enumerate(summary.columns) if not column.higher]
    groups = [group for group in summary.groups() if not group[0].reference]
    rows = [row for group in groups for row in group]
    if not columns or not rows:
        return None
    common, names = shortened([row.name for row in rows])
    long = max(map(len, names)) > 2 * _LETTERS
    letters = 2 * _LETTERS if long else _LETTERS
    names = ["\n".join(textwrap.wrap(name, letters)) or name for name in names]
    places = _places(groups)
    line = 0.13 * max(name.count("\n") for name in names) + 0.16
    wide = long or len(columns) > 1
    size = (style.PAGE if wide else style.COLUMN, 0.75 + line * (places[-1] + 1))
    figure = Figure(figsize=size)
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    handles: dict[str, Line2D] = {}
    for axes, index in zip(panels, columns, strict=True):
        for drawn in references(axes, summary, index, upright=True):
            handles.setdefault(str(drawn.get_label()), drawn)
        _dots(axes, summary, rows, places, index, looks)
    ticks = dict(zip(places, names, strict=True))
    if len(groups) > 1:
        for group in groups:
            ticks[places[rows.index(group[0])] - 1] = f"{number_of_bits(group[0].bits)} bits"
    panels[0].set_yticks(list(ticks), list(ticks.values()))
    for label in panels[0].get_yticklabels()[len(places) :]:
        label.set_fontweight("bold")
    panels[0].set_ylim(places[-1] + 0.7, -0.7)
    if common:
        panels[0].set_title(common, loc="left")
    if handles:
        legend(figure, list(handles.values()))
    return figure


def _places(groups: list[tuple[Row, ...]]) -> list[float]:
    """Where each row stands, top down, with room for a heading above each group."""
    found, at = [], 0.0
    for group in groups:
        at += 1.0 if len(groups) > 1 else 0.0
        for _ in group:
            found.append(at)
            at += 1
    return found


def _dots(
    axes: Axes,
    summary: Summary,
    rows: list[Row],
    places: list[float],
    index: int,
    looks: dict[str, Look],
) -> None:
    column = summary.columns[index]
    means = [
        of_entry(entry, column)
        for row in summary.rows
        if (entry := row.entries[index]) is not None and math.isfinite(entry.mean)
    ]
    ends = [end for found in means for end in (found.mean - found.half, found.mean + found.half)]
    positive = [end for end in ends if end > 0]
    scaled = is_wide(positive)
    if positive:
        low, high = min(positive), max(positive)
        if scaled:
            logarithmic(axes, "x", low, high)
        stretch = max(1.0, _LEAST * low / high) ** 0.5
        low, high = low / stretch, high * stretch
        margin = (high / low) ** 0.06 if scaled else 0.06 * (high - low)
        axes.set_xlim(*((low / margin, high * margin) if scaled else (low - margin, high + margin)))
    if not scaled:
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    for row, at in zip(rows, places, strict=True):
        entry, look = row.entries[index], looks[row.name]
        words = "–" if entry is None else number(entry.mean, column, 1) + marks([entry])
        axes.annotate(
            words,
            (1, at),
            xycoords=axes.get_yaxis_transform(),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
        if entry is None or not (math.isfinite(entry.mean) and entry.mean > 0):
            continue
        shown = of_entry(entry, column)
        below = min(shown.half, shown.mean * (1 - 1e-3)) if scaled else shown.half
        axes.errorbar(
            shown.mean,
            at,
            xerr=[[below], [shown.half]],
            color=look.colour,
            marker=look.marker,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=1.0,
            capsize=2,
        )
    axes.set_xlabel(quantity(column) + (" (log scale)" if scaled else ""))
    axes.grid(True, axis="y", linestyle=":")
    axes.tick_params(axis="y", length=0)
