"""Scores against what they cost, along an axis, and from task to task."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from reports.numbers.columns import number_of_bits
from reports.numbers.entries import REFERENCE_BITS, Entry, Row
from reports.numbers.summary import Summary
from reports.plots import data, style
from reports.plots.data import Mean, Sweep
from reports.plots.panels import (
    FEW,
    handle,
    is_wide,
    legend,
    logarithmic,
    marks,
    places,
    quantity,
    references,
    say,
    scale,
)
from reports.plots.style import Look

_APART = 0.05  # bits per weight: rows nearer than that cost the same
_MORE = 1.2  # most over least: less is one cost
_PANELS = 8  # of a figure over both columns
_LETTERS = 15  # an inch, of a panel's title


def against_bits(summary: Summary, models: pd.DataFrame, looks: dict[str, Look]) -> Figure | None:
    """The average (or the only score, or else perplexity) over bits, with the Pareto front."""
    index = data.main_score(summary)
    index = 0 if index is None else index
    column = summary.columns[index]
    means = data.by_row(models, index, scale(column))
    points: dict[str, list[tuple[float, Mean]]] = {}
    marked: dict[str, list[Entry]] = {}
    unshown = []
    for row in summary.rows:
        entry, found = row.entries[index], means[row.name, row.bits]
        if entry is None or row.reference:
            continue
        if math.isfinite(found.mean):
            weight = row.bits if row.bits_per_weight is None else row.bits_per_weight
            points.setdefault(row.name, []).append((weight, found))
            marked.setdefault(row.name, []).append(entry)
        else:
            words = f"{row.name}, {number_of_bits(row.bits)} bits"
            unshown.append(f"{words}: {found.mean}, not drawn")
    weights = [weight for line in points.values() for weight, _ in line]
    if not points or max(weights) - min(weights) < _APART:
        return None
    figure = Figure(figsize=(style.COLUMN if len(points) <= FEW else style.PAGE, 2.2))
    axes = figure.subplots()
    handles: list[Line2D] = references(axes, summary, index)
    shown = [(weight, each.mean) for line in points.values() for weight, each in line]
    handles += _front(axes, data.pareto(shown, column.higher), max(weights))
    for name, line in points.items():
        line.sort()
        _line(axes, [weight for weight, _ in line], [each for _, each in line], looks[name])
        handles.append(handle(looks[name], name + marks(marked[name])))
    axes.margins(x=0.08, y=0.1)
    values = [value for _, value in shown]
    if not column.higher and is_wide(values):
        logarithmic(axes, "y", min(values), max(values))
    axes.set_xlabel("effective bits per weight")
    axes.set_ylabel(quantity(column))
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    say(figure, unshown)
    legend(figure, handles)
    return figure


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


def _line(axes: Axes, at: list[float], means: list[Mean], look: Look) -> None:
    axes.errorbar(
        at,
        [each.mean for each in means],
        yerr=[each.half for each in means],
        color=look.colour,
        marker=look.marker,
        markeredgecolor="white",
        markeredgewidth=0.5,
        elinewidth=0.8,
        capsize=1.5,
    )


def sweep(summary: Summary, models: pd.DataFrame, known: dict[str, Look]) -> Figure | None:
    """For each numeric axis the average and each perplexity (a panel each) over its values."""
    found = data.sweeps(models)
    score = data.main_score(summary)
    columns = [] if score is None else [score]
    columns += [i for i, column in enumerate(summary.columns) if not column.higher][:2]
    if not found or not columns:
        return None
    size = (style.COLUMN if len(found) == 1 else style.PAGE, 0.4 + 1.5 * len(columns))
    figure = Figure(figsize=size)
    panels = figure.subplots(len(columns), len(found), squeeze=False, sharex="col")
    names = [name for each in found for name in (*each.series, *each.level)]
    looks = known if set(names) <= set(known) else style.looks(names)
    handles: dict[str, Line2D] = {}
    for across, each in enumerate(found):
        for down, index in enumerate(columns):
            axes = panels[down][across]
            drawn = references(axes, summary, index)
            handles |= {str(line.get_label()): line for line in drawn}
            _swept(axes, each, index, scale(summary.columns[index]), looks)
            if across == 0:
                axes.set_ylabel(quantity(summary.columns[index]))
        panels[-1][across].set_xlabel(each.axis)
    for each in found:
        handles |= {name: handle(looks[name], name) for name in each.series}
        handles |= {name: handle(looks[name], name, line=True) for name in each.level}
    legend(figure, list(handles.values()))
    return figure


def _swept(axes: Axes, sweep: Sweep, index: int, factor: float, looks: dict[str, Look]) -> None:
    for name, rows in sweep.level.items():
        axes.axhline(
            factor * data.mean(data.values(rows, index)).mean,
            color=looks[name].colour,
            ls=looks[name].dash,
            lw=1.0,
        )
    for name, points in sweep.series.items():
        means = [
            data.mean(factor * value for value in data.values(rows, index))
            for rows in points.values()
        ]
        at, look = list(points), looks[name]
        axes.plot(at, [m.mean for m in means], color=look.colour, marker=look.marker, mec="white")
        axes.fill_between(
            at,
            [m.mean - m.half for m in means],
            [m.mean + m.half for m in means],
            color=look.colour,
            alpha=0.2,
            lw=0,
        )
    places(axes, sorted({at for points in sweep.series.values() for at in points}))
    axes.margins(y=0.1)


def against_cost(
    summary: Summary,
    models: pd.DataFrame,
    cost: pd.Series,
    known: dict[str, Look],
    unit: Callable[[float], tuple[float, str]],
) -> Figure | None:
    """What more training buys. Points of a line differ in one numeric axis.

    cost: of each of `models`, NaN where it was not trained. unit: what the largest is divided by for
    the axis, and the axis's words.
    """
    index = data.main_score(summary)
    index = 0 if index is None else index
    column = summary.columns[index]
    models = models.assign(cost=cost.astype(float))
    quantised = models[models["bits"] < REFERENCE_BITS]
    trained = quantised[quantised["cost"].notna()]
    totals = trained["cost"]
    if totals.empty or totals.max() < _MORE * totals.min():
        return None
    swept = data.sweeps(trained, least=2)
    axis = swept[0].axis if len(swept) == 1 else None
    quantised = quantised.assign(series=quantised["name"])
    if axis is not None:
        quantised.loc[trained.index, "series"] = data.series_names(trained, axis, bits=False)
    looks = known if set(quantised["series"]) <= set(known) else style.looks(quantised["series"])
    bits = sorted(trained["bits"].unique(), reverse=True)
    figure = Figure(figsize=(style.COLUMN if len(bits) == 1 else style.PAGE, 2.2))
    panels = figure.subplots(1, len(bits), squeeze=False, sharex=True, sharey=True)[0]
    size, words = unit(float(totals.max()))
    handles: dict[str, Line2D] = {}
    for axes, each in zip(panels, bits, strict=True):
        handles |= {str(line.get_label()): line for line in references(axes, summary, index)}
        here = quantised[quantised["bits"] == each]
        for name, rows in here.groupby("series", sort=False):
            look, means = looks[str(name)], data.by_row(rows, index, scale(column))
            level = rows["cost"].isna().all()
            handles[str(name)] = handle(look, str(name), line=level)
            if level:
                axes.axhline(means[str(name), each].mean, color=look.colour, ls=look.dash, lw=1.0)
                continue
            points = sorted(
                (float(same["cost"].mean()) / size, means[str(row), each])
                for row, same in rows.groupby("name", sort=False)
            )
            _line(axes, [at for at, _ in points], [mean for _, mean in points], look)
        if is_wide(totals):
            logarithmic(axes, "x", float(totals.min()) / size, float(totals.max()) / size)
        axes.margins(x=0.08, y=0.1)
        if not is_wide(totals):
            axes.set_xlim(0, 1.06 * float(totals.max()) / size)
        axes.set_title(f"{number_of_bits(each)} bits")
        axes.set_xlabel(words)
    panels[0].set_ylabel(quantity(column))
    legend(figure, list(handles.values()))
    return figure


def slopes(summary: Summary) -> Figure | None:
    """A panel a method: each task from the 16-bit model down to the fewest bits."""
    tasks = [i for i, c in enumerate(summary.columns) if c.higher and c.task is not None]
    reference = next((row for row in summary.rows if row.reference), None)
    if len(tasks) < 2 or reference is None:
        return None
    methods: dict[str, list[Row]] = {}
    for row in summary.rows:
        if not row.reference and row.name != reference.name:
            methods.setdefault(row.name, []).append(row)
    fewest = min((row.bits for rows in methods.values() for row in rows), default=math.inf)
    chosen = {n: rows for n, rows in methods.items() if any(row.bits == fewest for row in rows)}
    if not chosen:
        return None
    shown = dict(list(chosen.items())[:_PANELS])
    widths = sorted({row.bits for rows in shown.values() for row in rows}, reverse=True)
    across = min(4, len(shown))
    down = math.ceil(len(shown) / across)
    size = (style.COLUMN if across <= 2 else style.PAGE, 0.3 + 1.75 * down)
    figure = Figure(figsize=size)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
    looks = style.looks([summary.columns[index].title for index in tasks])
    for axes, (name, rows) in zip(panels, shown.items(), strict=False):
        ordered = [reference, *sorted(rows, key=lambda row: -row.bits)]
        for index in tasks:
            look = looks[summary.columns[index].title]
            entries = [(row.bits, row.entries[index]) for row in ordered]
            finite = [(b, e.mean) for b, e in entries if e is not None and math.isfinite(e.mean)]
            axes.plot(
                [0 if bits >= REFERENCE_BITS else 1 + widths.index(bits) for bits, _ in finite],
                [100 * value for _, value in finite],
                color=look.colour,
                marker=look.marker,
                markeredgecolor="white",
                markeredgewidth=0.5,
            )
        letters = int(_LETTERS * size[0] / across)
        axes.set_title(textwrap.fill(name, letters, break_on_hyphens=False))
        ticks = [reference.bits, *widths]
        axes.set_xticks(range(len(ticks)), [number_of_bits(bits) for bits in ticks])
        axes.set_xlim(-0.25, len(ticks) - 0.75)
        axes.grid(False, axis="x")
        axes.set_xlabel("bits")
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.supylabel("score (%)", fontsize=8)
    if len(chosen) > len(shown):
        say(figure, [f"the first {len(shown)} of {len(chosen)} methods"])
    legend(figure, [handle(look, title) for title, look in looks.items()])
    return figure
