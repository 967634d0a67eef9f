"""Curves as the page's script draws them: the numbers of a figure, cut and rounded, as JSON.

    across, up   the words at the axes; log: whether `up` is logarithmic
    step         whether places are steps, so that a line has no `at`
    unit         what `at` is divided by for the axis
    panels       their titles
    common       what all names of the legend begin with
    notes        what is to be said beneath
    lines        one a row of the table and panel:
        name, short     of its row, and as the legend has it
        panel           its number
        colour, dash    as in the figure: "-", "--", ":", "-."
        steps, at       [N] the steps, and the tokens trained on by then
        mean, low, high [N] over seeds, smoothed; null: not finite
        seeds           its models: [name, [N] losses as they were recorded]

Not here: smoothing (`data.make_band`), and what draws it (`pages/assets/charts.js`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from harness.core.report_options import format_setting
from reports.numbers.wording import Wording
from reports.plots.data import Band
from reports.plots.style import Look

Chart: TypeAlias = Mapping[str, Any]

POINTS = 400  # of a line: as many as a panel has pixels
DIGITS = 4  # of a loss


def make_line(
    band: Band, models: Sequence[pd.DataFrame], look: Look, wording: Wording
) -> dict[str, Any]:
    """A line of a chart without its names and panel; models: step and loss each, as in `band`."""
    kept = choose_points(len(band.steps))
    losses = [_round(_at_steps(each, band.steps)[kept]) for each in models]
    return {
        "colour": look.colour,
        "dash": look.dash,
        "steps": [int(step) for step in band.steps[kept]],
        "at": [round(float(at)) for at in band.at[kept]],
        "mean": _round(band.mean[kept]),
        "low": _round(band.low[kept]) if len(models) > 1 else [],
        "high": _round(band.high[kept]) if len(models) > 1 else [],
        "seeds": [list(pair) for pair in zip(_name_models(models, wording), losses, strict=True)],
    }


def choose_points(count: int) -> list[int]:
    """Places of every k-th of `count` points, and of the last; k the least for `POINTS`."""
    step = max(1, math.ceil(count / POINTS))
    return sorted({*range(0, count, step), *([count - 1] if count else [])})


def describe_points(counts: Sequence[int], several: bool) -> list[str]:
    """What a chart of lines of so many points leaves out, and how it rounds.

    several: whether a line's places are tokens of several models.
    """
    most = max(counts, default=0)
    sentences = []
    if most > POINTS:
        every = math.ceil(most / POINTS)
        sentences.append(f"of {most:,} steps every {every}. and the last are in this page")
    if several:
        sentences.append("tokens of several models are their mean")
    return [*sentences, f"losses are rounded to {DIGITS} digits here; curves.jsonl has all"]


def _at_steps(model: pd.DataFrame, steps: np.ndarray) -> np.ndarray:
    losses = model.drop_duplicates("step").set_index("step")["loss"]
    return losses.loc[steps].to_numpy(float)


def _round(values: np.ndarray) -> list[float | None]:
    return [float(f"{each:.{DIGITS}g}") if math.isfinite(each) else None for each in values]


def _name_models(models: Sequence[pd.DataFrame], wording: Wording) -> list[str]:
    """The seed, after the settings in which these models of one row differ."""
    told = [{k: format_setting(v) for k, v in each["settings"].iloc[0].items()} for each in models]
    differ = [
        key
        for key in dict.fromkeys(key for each in told for key in each)
        if len({each.get(key) for each in told}) > 1
    ]
    names = []
    for each, model in zip(told, models, strict=True):
        own = wording.name_settings(tuple((key, each[key]) for key in differ if key in each))
        seed = model["seed"].iloc[0]
        names.append(", ".join(filter(None, [own, "" if pd.isna(seed) else f"seed {seed}"])))
    return names
