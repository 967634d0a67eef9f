"""Scores along a numeric axis, and against what training cost."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.core.records import DEVICE_HOURS
from reports.numbers.budgets import count_tokens
from reports.numbers.columns import format_bits
from reports.numbers.entries import REFERENCE_BITS
from reports.numbers.wording import Wording
from reports.plots import data, style
from reports.plots.context import Context, Drawing, Plot
from reports.plots.data import Mean, Sweep
from reports.plots.intervals import describe_means, draw_bar, make_interval_handles
from reports.plots.panels import (
    choose_unit,
    describe_quantity,
    draw_chance,
    draw_legend,
    draw_means,
    draw_references,
    get_scale,
    is_wide,
    make_handle,
    set_logarithmic,
    set_places,
    title_quantities,
    write_remark,
)
from reports.plots.style import Look

_MORE = 1.2  # most over least: less is one cost
_LINES = 24  # along an axis: of more, none can be followed


def draw_sweep(context: Context) -> Drawing | None:
    """For each numeric axis the average and each perplexity (a panel each) over its values."""
    summary, known = context.summary, context.looks
    wording = context.wording
    swept, unshown = _choose_lines(data.find_sweeps(context.models, wording), wording)
    score = data.find_main_score(summary)
    columns = [] if score is None else [score]
    columns += [i for i, column in enumerate(summary.columns) if not column.higher][:2]
    if not swept or not columns:
        return None
    size = (
        context.widths.choose(len(swept) > 1),
        0.4 + 1.5 * len(columns),
    )
    figure = Figure(figsize=size)
    panels = figure.subplots(len(columns), len(swept), squeeze=False, sharex="col")
    names = [name for each in swept for name in (*each.series, *each.level)]
    looks = known if set(names) <= set(known) else style.make_looks(names)
    handles: dict[str, Line2D] = {}
    means: list[Mean] = []
    for across, each in enumerate(swept):
        for down, index in enumerate(columns):
            axes = panels[down][across]
            drawn = draw_references(axes, summary, index)
            drawn += draw_chance(axes, summary.columns[index])
            handles |= {str(line.get_label()): line for line in drawn}
            means += _swept(axes, each, index, get_scale(summary.columns[index]), looks)
            if across == 0:
                axes.set_ylabel(describe_quantity(summary.columns[index]))
        panels[-1][across].set_xlabel(wording.name_axis(each.axis))
    for each in swept:
        handles |= {name: make_handle(looks[name], name) for name in each.series}
        handles |= {name: make_handle(looks[name], name, line=True) for name in each.level}
    write_remark(figure, unshown)
    kinds = make_interval_handles(means, summary.grid.report)
    draw_legend(figure, [*handles.values(), *kinds])
    words = [*describe_means(means, summary.grid.report, "bands"), *unshown]
    if any(each.level for each in swept):
        words.append("level lines are methods or settings without a value on the axis")
    shown = title_quantities(summary.columns[index] for index in columns)
    axes_named = ", ".join(wording.name_axis(each.axis) for each in swept)
    return Drawing(figure, f"{shown} along {axes_named}", words)


def _choose_lines(swept: list[Sweep], wording: Wording) -> tuple[list[Sweep], list[str]]:
    """The first lines along each axis, in the table's order, and what is not drawn, in words."""
    chosen, unshown = [], []
    for each in swept:
        names = [*each.series, *each.level]
        shown = set(names[:_LINES])
        if len(names) > len(shown):
            along = f"lines along {wording.name_axis(each.axis)}"
            more = f"{len(names) - len(shown)} of {len(names)} {along} not drawn"
            unshown.append(f"{more}: those after the first {len(shown)} of the table")
        series = {name: points for name, points in each.series.items() if name in shown}
        level = {name: rows for name, rows in each.level.items() if name in shown}
        chosen.append(Sweep(each.axis, series, level))
    return chosen, unshown


def _swept(
    axes: Axes, sweep: Sweep, index: int, factor: float, looks: dict[str, Look]
) -> list[Mean]:
    """Draws one axis in one column; returns the means of its points."""
    drawn: list[Mean] = []
    for name, rows in sweep.level.items():
        axes.axhline(
            data.average_models(rows, index, factor).mean,
            color=looks[name].colour,
            ls=looks[name].dash,
            lw=1.0,
        )
    for name, points in sweep.series.items():
        means = [data.average_models(rows, index, factor) for rows in points.values()]
        at, look = list(points), looks[name]
        axes.plot(at, [m.mean for m in means], color=look.colour, marker=look.marker, mec="white")
        drawn += means
        over_models = [mean.over == "models" for mean in means]
        if any(over_models):
            pairs = list(zip(means, over_models, strict=True))
            axes.fill_between(
                at,
                [mean.low if known else mean.mean for mean, known in pairs],
                [mean.high if known else mean.mean for mean, known in pairs],
                color=look.colour,
                alpha=0.2,
                lw=0,
            )
        for place, mean in zip(at, means, strict=True):
            if mean.over == "items":
                draw_bar(axes, place, mean, look.colour)
    set_places(axes, sorted({at for points in sweep.series.values() for at in points}))
    axes.margins(y=0.1)
    return drawn


def draw_score_vs_tokens(context: Context) -> Drawing | None:
    """The score against the tokens that a model was trained on."""
    tokens = count_tokens(context.models, context.curves, context.export.rows)
    walked = any(each.name == "round-blocks" for each in context.export.stages.values())
    words = ["what blocks learn from, one by one, is not counted"] if walked else []
    return _draw_against_cost(context, tokens, choose_unit, "tokens trained on", words)


def draw_score_vs_hours(context: Context) -> Drawing | None:
    """The score against device-hours of training, where the grid asks for them."""
    hours = context.summary.fact(DEVICE_HOURS)
    cost = context.models["model_key"].map({} if hours is None else hours)
    words = ["a device is a GPU, on CPUs a process"]
    hours_axis = "device-hours of training"
    return _draw_against_cost(context, cost, lambda _: (1.0, hours_axis), hours_axis, words)


def _draw_against_cost(
    context: Context,
    cost: pd.Series,
    unit: Callable[[float], tuple[float, str]],
    against: str,
    words: list[str],
) -> Drawing | None:
    """What more training buys. Points of a line differ in one numeric axis.

    cost: of each model, NaN where it was not trained. unit: what the largest is divided by for the
    axis, and the axis's words. against, words: of the title and of the caption.
    """
    summary, known = context.summary, context.looks
    index = data.find_main_score(summary) or 0
    models = context.models.assign(cost=cost.astype(float))
    quantised = _name_lines(models[models["bits"] < REFERENCE_BITS], context.wording)
    trained = quantised[quantised["cost"].notna()]
    totals = trained["cost"]
    if totals.empty or totals.max() < _MORE * totals.min():
        return None
    names = quantised["series"]
    looks = known if set(names) <= set(known) else style.make_looks(names)
    bits = sorted(trained["bits"].unique(), reverse=True)
    figure = Figure(figsize=(context.widths.choose(len(bits) > 1), 2.2))
    panels = figure.subplots(1, len(bits), squeeze=False, sharex=True, sharey=True)[0]
    size, axis_label = unit(float(totals.max()))
    handles: dict[str, Line2D] = {}
    means: list[Mean] = []
    for axes, each in zip(panels, bits, strict=True):
        level = draw_references(axes, summary, index) + draw_chance(axes, summary.columns[index])
        handles |= {str(line.get_label()): line for line in level}
        here = quantised[quantised["bits"] == each]
        drawn, lines = _draw_lines(
            axes, here, index, (size, get_scale(summary.columns[index])), looks
        )
        means, handles = means + drawn, handles | lines
        _limit_cost(axes, totals / size)
        axes.set_title(f"{format_bits(each)} bits")
        axes.set_xlabel(axis_label)
    panels[0].set_ylabel(describe_quantity(summary.columns[index]))
    kinds = make_interval_handles(means, summary.grid.report)
    draw_legend(figure, [*handles.values(), *kinds])
    words = [*words, *describe_means(means, summary.grid.report, "error bars")]
    if (
        quantised[quantised["bits"].isin(bits)]
        .groupby(["bits", "series"])["cost"]
        .count()
        .eq(0)
        .any()
    ):
        words.append("level lines are methods without a training that was recorded")
    return Drawing(figure, f"{title_quantities([summary.columns[index]])} against {against}", words)


def _name_lines(models: pd.DataFrame, wording: Wording) -> pd.DataFrame:
    """With a column `series`: the line that a model is on, its name where it was not trained."""
    trained = models[models["cost"].notna()]
    swept = data.find_sweeps(trained, wording, least=2)
    models = models.assign(series=models["name"])
    if len(swept) == 1:
        models.loc[trained.index, "series"] = data.name_series(
            trained, wording, swept[0].axis, bits=False
        )
    return models


def _draw_lines(
    axes: Axes,
    models: pd.DataFrame,
    index: int,
    units: tuple[float, float],
    looks: dict[str, Look],
) -> tuple[list[Mean], dict[str, Line2D]]:
    """Draws the models of one width, untrained ones as level lines; returns the means of the
    points, and the legend's entries.

    units: what costs are divided by, what scores are multiplied by.
    """
    drawn: list[Mean] = []
    handles: dict[str, Line2D] = {}
    for name, rows in models.groupby("series", sort=False):
        look, means = looks[str(name)], data.average_by_row(rows, index, units[1])
        level = bool(rows["cost"].isna().all())
        handles[str(name)] = make_handle(look, str(name), line=level)
        if level:
            (mean,) = means.values()
            axes.axhline(mean.mean, color=look.colour, ls=look.dash, lw=1.0)
            continue
        found = (
            (float(same["cost"].mean()) / units[0], means[str(row), float(same["bits"].iloc[0])])
            for row, same in rows.groupby("name", sort=False)
        )
        points = sorted(found, key=lambda point: (point[0], point[1].mean))
        draw_means(axes, [at for at, _ in points], [mean for _, mean in points], look)
        drawn += [mean for _, mean in points]
    return drawn, handles


def _limit_cost(axes: Axes, costs: pd.Series) -> None:
    """An axis of costs begins at zero, or is logarithmic where they are far apart."""
    axes.margins(x=0.08, y=0.1)
    if is_wide(costs):
        set_logarithmic(axes, "x", float(costs.min()), float(costs.max()))
    else:
        axes.set_xlim(0, 1.06 * float(costs.max()))


PLOTS = (
    Plot("sweep", draw_sweep),
    Plot("score_vs_tokens", draw_score_vs_tokens),
    Plot("score_vs_hours", draw_score_vs_hours),
)
