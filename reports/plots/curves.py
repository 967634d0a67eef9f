"""Training curves: loss against tokens, with bands over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reports.numbers.columns import format_bits
from reports.plots.chart import describe_points, make_line
from reports.plots.context import Context, Drawing, Plot
from reports.plots.data import Band, make_band, shorten
from reports.plots.panels import (
    choose_unit,
    draw_legend,
    is_wide,
    make_handle,
    set_logarithmic,
    write_remark,
)
from reports.plots.style import Look

_TASK = ("data", "teacher")  # axes that change what a loss is of
_POINTS = 1500  # of a curve: more cannot be seen


def draw_training_loss(context: Context) -> Drawing | None:
    """A panel a number of bits; a row's seeds are a mean and a band, one seed a smoothed line."""
    curves, looks = context.curves, context.looks
    finite = curves.loc[np.isfinite(curves["loss"]), "loss"]
    if finite.empty:
        return None
    bits = sorted(curves["bits"].unique(), reverse=True)
    tokens = bool(curves["tokens"].notna().all())
    place = "tokens" if tokens else "step"
    size, axis_label = (
        choose_unit(float(curves[place].max())) if tokens else (1.0, "optimiser step")
    )
    figure = Figure(figsize=(context.widths.choose(len(bits) > 1), 2.2))
    panels = figure.subplots(1, len(bits), squeeze=False, sharey=True)[0]
    notes: list[str] = []
    bands: list[Band] = []
    lines = []
    for panel, (axes, each) in enumerate(zip(panels, bits, strict=True)):
        for name, rows in curves[curves["bits"] == each].groupby("name", sort=False):
            seeds = [line for _, line in rows.groupby("cell", sort=False)]
            loss_band, look = make_band(seeds, place), looks[str(name)]
            bands.append(loss_band)
            line = make_line(loss_band, seeds, look, context.wording)
            lines.append({**line, "name": str(name), "panel": panel})
            notes += _list_gaps(f"{name}, {format_bits(each)} bits", loss_band)
            _draw_row(axes, loss_band, seeds[0] if len(seeds) == 1 else None, look, place, size)
        if is_wide(finite):
            set_logarithmic(axes, "y", float(finite.min()), float(finite.max()))
        axes.set_title(f"{format_bits(each)} bits")
        axes.set_xlabel(axis_label)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    panels[0].set_ylabel("training loss" + (" (log scale)" if is_wide(finite) else ""))
    drawn = [name for name in looks if name in set(curves["name"])]
    write_remark(figure, notes)
    common, short = shorten(drawn)
    shown = dict(zip(drawn, short, strict=True))
    handles = [make_handle(looks[name], short, line=True) for name, short in shown.items()]
    draw_legend(figure, handles, common)
    words = _describe(bands, context.objectives)
    if others := _find_other_tasks(curves["settings"]):
        words.append(f"losses that differ in {' or '.join(others)} do not compare")
    several = tokens and any(band.seeds > 1 for band in bands)
    chart = {
        "across": axis_label,
        "up": panels[0].get_ylabel(),
        "log": is_wide(finite),
        "step": not tokens,
        "unit": size,
        "panels": [axes.get_title() for axes in panels],
        "common": common,
        "notes": [*notes, *describe_points([len(band.steps) for band in bands], several)],
        "lines": [{**line, "short": shown[line["name"]]} for line in lines],
    }
    return Drawing(figure, "Training loss", words, chart)


def _draw_row(
    axes: Axes, band: Band, alone: pd.DataFrame | None, look: Look, place: str, size: float
) -> None:
    """The smoothed mean, over the band of several models or the curve of the one that is alone."""
    step = max(1, math.ceil(len(band.at) / _POINTS))
    at, colour = band.at[::step] / size, look.colour
    if alone is None:
        low, high = band.low[::step], band.high[::step]
        axes.fill_between(at, low, high, color=colour, alpha=0.25, lw=0)
    else:
        raw = alone.sort_values("step").iloc[::step]
        losses = raw["loss"].where(np.isfinite(raw["loss"]))
        axes.plot(raw[place] / size, losses, color=colour, alpha=0.25, linewidth=0.6)
    axes.plot(at, band.mean[::step], color=colour, ls=look.dash)


def _list_gaps(name: str, band: Band) -> Iterator[str]:
    """What of a row's curves the figure does not show."""
    if band.gaps:
        yield f"{name}: not finite at {band.gaps} steps"
    if band.apart:
        yield f"{name}: {band.apart} steps that not all of its models have are left out"


def _find_other_tasks(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """What of a loss's meaning varies beside the objective: the text, or the teacher."""
    values: dict[str, set[str]] = {}
    for each in settings:
        for axis in _TASK:
            own = {k: v for k, v in each.items() if k.partition(".")[0] == axis}
            values.setdefault(axis, set()).add(str(sorted(own.items())))
    return [axis for axis, found in values.items() if len(found) > 1]


def _describe(bands: Sequence[Band], objectives: Mapping[str, str]) -> list[str]:
    """objectives: by name of a row; empty where one is not known."""
    sentences = []
    smoothed = ", smoothed" if any(band.window > 1 for band in bands) else ""
    if any(band.seeds > 1 for band in bands):
        sentences.append(
            f"of several seeds the line is their mean{smoothed}, the band from least to largest"
        )
    if any(band.seeds == 1 for band in bands):
        pale = ", the pale line is not" if smoothed else ""
        sentences.append(f"of one seed the line is its loss{smoothed}{pale}")
    if smoothed:
        widest = max(band.window for band in bands)
        sentences.append(f"smoothed: the mean over up to {widest} steps, fewer near the ends")
    known = dict.fromkeys(objectives.values())
    if "" in known:
        sentences.append("objectives may differ: only curves of one objective compare")
    elif 1 < len(known) == len(objectives):
        sentences.append("each curve has an objective of its own: their heights do not compare")
    elif len(known) > 1:
        by_objective = "; ".join(
            f"{each}: {', '.join(name for name, own in objectives.items() if own == each)}"
            for each in known
        )
        sentences.append(f"only curves of one objective compare ({by_objective})")
    return sentences


PLOTS = (Plot("training_loss", draw_training_loss),)
