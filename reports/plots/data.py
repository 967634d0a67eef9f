"""The numbers behind the figures: one value a model, intervals, fronts, axes.

Nothing is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from reports.numbers.columns import QUANTITY, Quantity, format_bits, get_quantity
from reports.numbers.entries import REFERENCE_BITS
from reports.numbers.naming import format_setting
from reports.numbers.stats import t_interval
from reports.numbers.summary import Summary
from reports.numbers.wording import Wording, join_words, tell_apart, write_raw
from reports.reading.frames import list_records

Over = Literal["models", "items"]
"""What an interval is over: models of several seeds, or the items that one model was scored on."""


_UNKNOWN = (math.nan, math.nan)


class Mean(NamedTuple):
    """A mean over `n` models and its 95 % interval; `over` is None where there is none to draw."""

    mean: float
    low: float = math.nan
    high: float = math.nan
    n: int = 1
    over: Over | None = None


def compute_mean(values: Iterable[float], of_items: tuple[float, float] | None = None) -> Mean:
    """Of several values with Student's interval over them; of one value with `of_items`.

    NaN among the values makes the mean NaN; so does a lack of values.
    """
    numbers = list(values)
    if not numbers:
        return Mean(math.nan)
    interval = t_interval(numbers)
    over: Over = "models" if len(numbers) > 1 else "items"
    low, high = (interval.low, interval.high) if over == "models" else of_items or _UNKNOWN
    if not (math.isfinite(low) and low < high < math.inf):
        return Mean(interval.mean, n=len(numbers))
    return Mean(interval.mean, low, high, len(numbers), over)


def find_pareto_front(
    points: Iterable[tuple[float, float]], higher: bool
) -> list[tuple[float, float]]:
    """Those points (cost, value) that no other reaches at most the cost and at least the value of.

    By rising cost; of equal points one. Points that are not finite are on no front.
    """
    sign = -1 if higher else 1
    finite = {point for point in points if all(map(math.isfinite, point))}
    front: list[tuple[float, float]] = []
    for cost, value in sorted(finite, key=lambda point: (point[0], sign * point[1])):
        if not front or sign * value < sign * front[-1][1]:
            front.append((cost, value))
    return front


def list_models(frame: pd.DataFrame, summary: Summary) -> pd.DataFrame:
    """One row a distinct model of each row of the table.

    Columns: name, label, settings, seed, cell, bits, bits_per_weight, model_key, and under its
    index the value of each column of the table: a float, or None where the model has none; under
    `of_items` the intervals over items, index -> ends, of a row that is one model.
    """
    shown = frame[frame["primary"]].copy()
    shown["name"] = shown["cell"].map(summary.names)
    identity = ["name", "bits", "model_key"]
    facts = ["label", "settings", "seed", "cell", "bits_per_weight"]
    models = shown.drop_duplicates(identity)[[*identity, *facts]].reset_index(drop=True)
    values: dict[tuple[Any, ...], dict[Quantity, float]] = {}
    for record in list_records(shown[[*identity, *QUANTITY, "value"]]):
        of_model = values.setdefault(tuple(record[key] for key in identity), {})
        of_model.setdefault(get_quantity(record), record["value"])
    # Of all tasks, as an average may be over some that have no column.
    better = shown.loc[shown["higher_is_better"], list(QUANTITY)].drop_duplicates()
    scores = list(map(get_quantity, list_records(better)))
    for index, column in enumerate(summary.columns):
        keys = [key for key in scores if key[0] in column.tasks]
        if column.task is not None:
            keys = [column.quantity]
        averages = [
            sum(known[key] for key in keys) / len(keys) if set(keys) <= set(known) else None
            for known in values.values()
        ]
        models[index] = pd.Series(averages, dtype="object")
    of_items = {
        (row.name, row.bits): {
            index: entry.interval
            for index, entry in enumerate(row.entries)
            if entry is not None and entry.n == 1 and entry.interval is not None
        }
        for row in summary.rows
    }
    rows = zip(models["name"], models["bits"], strict=True)
    models["of_items"] = pd.Series([of_items[row] for row in rows], dtype="object")
    return models


def average_models(models: pd.DataFrame, index: int, factor: float) -> Mean:
    """The mean over those that have a value of a column of the table, times `factor`."""
    known = models[[value is not None for value in models[index]]]
    ends = known["of_items"].iloc[0].get(index) if len(known) == 1 else None
    scaled = None if ends is None else (factor * ends[0], factor * ends[1])
    return compute_mean((factor * float(value) for value in known[index]), scaled)


def average_by_row(
    models: pd.DataFrame, index: int, factor: float
) -> dict[tuple[str, float], Mean]:
    """(name, bits) of a row of the table -> the mean over its models, times `factor`."""
    return {
        (rows["name"].iloc[0], float(rows["bits"].iloc[0])): average_models(rows, index, factor)
        for _, rows in models.groupby(["name", "bits"], sort=False)
    }


def find_main_score(summary: Summary) -> int | None:
    """The index of the average, or else of the last score."""
    return next(
        (i for i in reversed(range(len(summary.columns))) if summary.columns[i].higher), None
    )


def split_settings(settings: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """A cell's settings as numbers and as words.

    A component with its parts, `objective: "cakld gamma=0.5"`, is the words `objective: cakld` and
    the number `objective.gamma`.
    """
    numbers: dict[str, float] = {}
    words: dict[str, str] = {}
    for axis, value in settings.items():
        text = format_setting(value)
        whole = value == 0 and axis.rpartition(".")[2] == "group_size"  # a channel: no number
        if isinstance(value, int | float) and not isinstance(value, bool) and not whole:
            numbers[axis] = float(value)
            continue
        rest = []
        for part in text.split(" "):
            key, equals, value_text = part.partition("=")
            number = _number(value_text) if equals else None
            if number is None:
                rest.append(part)
            else:
                numbers[f"{axis}.{key}"] = number
        if rest:
            words[axis] = " ".join(rest)
    return numbers, words


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass
class Sweep:
    """Models along one numeric axis: series -> value on the axis -> rows of `list_models`.

    `level`: name -> rows of the models that have no value on it.
    """

    axis: str
    series: dict[str, dict[float, pd.DataFrame]] = field(default_factory=dict)
    level: dict[str, pd.DataFrame] = field(default_factory=dict)


def find_sweeps(models: pd.DataFrame, wording: Wording, least: int = 3) -> list[Sweep]:
    """Every numeric axis on which some series has `least` values; bits are no such axis."""
    quantised = models[models["bits"] < REFERENCE_BITS]
    parsed = [split_settings(settings) for settings in quantised["settings"]]
    swept = []
    for axis in dict.fromkeys(axis for numbers, _ in parsed for axis in numbers):
        if _is_bits(axis):
            continue
        sweep = Sweep(axis)
        at = pd.Series(
            [numbers.get(axis, math.nan) for numbers, _ in parsed], index=quantised.index
        )
        on, off = quantised[at.notna()], quantised[at.isna()]
        names = name_series(on, wording, without=axis)
        for name, rows in on.groupby(names, sort=False):
            by_place = rows.groupby(at[rows.index])  # by rising place
            sweep.series[str(name)] = {float(str(place)): same for place, same in by_place}
        for name, rows in off.groupby(_with_bits(off, among=quantised), sort=False):
            sweep.level[str(name)] = rows
        if any(len(places) >= least for places in sweep.series.values()):
            swept.append(sweep)
    return swept


def name_series(
    models: pd.DataFrame, wording: Wording, without: str | None, bits: bool = True
) -> pd.Series:
    """What joins the points of a line: the label and every setting that varies, but one axis.

    `bits`: whether lines of several bits are several lines.
    """
    settings = []
    for varied, width in zip(models["settings"], models["bits"], strict=True):
        numbers, words = split_settings(varied)
        shown = {**words, **{key: f"{value:g}" for key, value in numbers.items()}}
        shown = {key: text for key, text in shown.items() if not _is_bits(key)}
        settings.append({**shown, "bits": format_bits(width)} if bits else shown)
    varying = {
        key
        for key in {key for each in settings for key in each}
        if key != without and len({each.get(key) for each in settings}) > 1
    }
    lines = [
        (label, tuple((key, each[key]) for key in sorted(each) if key in varying))
        for label, each in zip(models["label"], settings, strict=True)
    ]
    names = tell_apart(
        {(label, told): join_words(label, wording.name_settings(told)) for label, told in lines},
        {(label, told): f"{label} {write_raw(told)}" for label, told in lines},
    )
    return pd.Series([names[line] for line in lines], index=models.index, dtype="object")


def _is_bits(axis: str) -> bool:
    return axis.rpartition(".")[2] == "bits"


def _with_bits(models: pd.DataFrame, among: pd.DataFrame) -> pd.Series:
    """Names of rows, told apart by bits where `among` has several."""
    if among["bits"].nunique() < 2:
        return models["name"]
    pairs = zip(models["name"], models["bits"], strict=True)
    names = [f"{name}, {format_bits(bits)} bits" for name, bits in pairs]
    return pd.Series(names, index=models.index, dtype="object")


class Band(NamedTuple):
    """A curve over the seeds of one row: step, place, mean, smallest and largest, each (N,)."""

    steps: np.ndarray
    at: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    seeds: int
    gaps: int  # steps at which some seed's loss is not finite
    window: int  # steps that are averaged
    apart: int  # steps that some seeds alone have, which are left out


def make_band(lines: Sequence[pd.DataFrame], place: str) -> Band:
    """Smoothed losses of several seeds at the steps that all have: step, `place`, loss each.

    A window of about 8 % of the steps (`smooth`). A step at which any seed's loss is not finite is
    a gap in all of them, and no part of any window.
    """
    by_step = [line.drop_duplicates("step").set_index("step").sort_index() for line in lines]
    losses = pd.concat([line["loss"] for line in by_step], axis=1, join="inner").sort_index()
    places = [line[place] if place in line else line.index.to_series() for line in by_step]
    at = pd.concat(places, axis=1, join="inner").sort_index().astype(float).mean(axis=1)
    known = np.isfinite(losses.to_numpy(float)).all(axis=1)
    half = len(losses) // 25
    values = np.full((len(losses), len(lines)), np.nan)
    for index in range(len(lines)):
        values[known, index] = smooth(losses.to_numpy(float)[known, index], half)
    return Band(
        losses.index.to_numpy(),
        at.to_numpy(),
        values.mean(axis=1),
        values.min(axis=1),
        values.max(axis=1),
        len(lines),
        int((~known).sum()),
        2 * half + 1,
        len(set().union(*(line.index for line in by_step))) - len(losses),
    )


def smooth(values: np.ndarray, half: int) -> np.ndarray:
    """Means of (N,) over up to `half` neighbours on either side, as many on one as on the other.

    Hence the first and the last value stay, and so does every straight line: a window that is cut
    on one side alone would begin a falling curve below its first value.
    """
    if not len(values):
        return values
    reach = np.minimum(half, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    sums = np.append(0.0, np.cumsum(values - values[0]))  # of equal values nothing but zeros
    places = np.arange(len(values))
    means = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    return np.where(reach == 0, values, values[0] + means)


def shorten(names: Sequence[str]) -> tuple[str, list[str]]:
    """What all names begin with, a method and settings, and what is left of each."""
    if len(names) < 2:
        return "", list(names)
    parts = [name.split(", ") for name in names]
    same = 0
    while all(len(each) > same + 1 and each[same] == parts[0][same] for each in parts):
        same += 1
    return ", ".join(parts[0][:same]), [", ".join(each[same:]) for each in parts]
