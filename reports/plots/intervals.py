"""Intervals in figures: how they look by what they are over, and what legend and caption say.

Over seeds and over the items that one model was scored on are two questions: whether another
training, or another text, would tell otherwise. They never look alike. Not here: the intervals
(`reports.numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from harness.core.report_options import ReportOptions
from reports.plots import style
from reports.plots.data import Mean, Over

_LOOKS: dict[Over, dict[str, Any]] = {
    "models": {"linewidth": 1.0, "linestyle": "-"},
    "items": {"linewidth": 0.8, "linestyle": (0, (3.0, 1.5)), "alpha": 0.8},
}
_CAPS: dict[Over, float] = {"models": 2.0, "items": 0.0}


def draw_bar(
    axes: Axes, at: float, mean: Mean, colour: str, upright: bool = True, least: float = -math.inf
) -> None:
    """The error bar of a mean at a place on the other axis, where it has an interval.

    upright: values are on y. least: where a logarithmic axis ends.
    """
    if mean.over is None:
        return
    low = max(mean.low, least)
    # By rounding, a limit may lie beyond a share of 0 or 1.
    ends = [[max(0.0, mean.mean - low)], [max(0.0, mean.high - mean.mean)]]
    x, y = (at, mean.mean) if upright else (mean.mean, at)
    _, _, lines = axes.errorbar(
        x,
        y,
        yerr=ends if upright else None,
        xerr=None if upright else ends,
        fmt="none",
        ecolor=colour,
        capsize=_CAPS[mean.over],
    )
    for line in lines:
        line.set(**_LOOKS[mean.over])


def make_interval_handles(drawn: Iterable[Mean], options: ReportOptions) -> list[Line2D]:
    """A legend's entries for kinds of bars; none where all are over seeds, as the caption says."""
    kinds = {each.over for each in drawn if math.isfinite(each.mean)}
    if "items" not in kinds:
        return []
    labels: dict[Over, str] = {
        "models": f"95 % over {name_over(options)}",
        "items": "95 % over items, one model",
    }
    return [
        Line2D([], [], color=style.REFERENCE, label=label, **_LOOKS[kind])
        for kind, label in labels.items()
        if kind in kinds
    ]


def describe_means(drawn: Iterable[Mean], options: ReportOptions, intervals: str) -> list[str]:
    """What points are, and what the intervals (`intervals`: error bars, bands) around them.

    Only of what is drawn: nothing is said of intervals where no point has one.
    """
    means = [each for each in drawn if math.isfinite(each.mean)]
    over = name_over(options)
    known = {each.over for each in means}
    items = "95 % intervals over the items of one model"
    if all(each.n == 1 for each in means):
        sentences = ["every point is one model"]
        if "items" in known:
            sentences.append(f"error bars, thin and broken, are {items}")
            if None in known:
                sentences[-1] += "; of points without none is known"
        return sentences
    sentences = [f"points are means over {over}"]
    if options.aggregate == "median":
        sentences[0] += ", where the table has medians"
    if "models" in known:
        sentences.append(f"{intervals} are 95 % t-intervals over {over}")
    if "items" in known:
        sentences.append(f"thin and broken error bars are {items}")
    if rest := [each for each in means if each.over is None]:
        alone = "one model" if all(each.n == 1 for each in rest) else "one model, or equal ones"
        sentences[-1] += f"; points without are {alone}"
    return sentences


def name_over(options: ReportOptions) -> str:
    """What several models of a row differ in."""
    return "seeds" if options.over == "seed" else f"values of {options.over}"
