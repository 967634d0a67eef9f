"""The effect of one axis with everything else paired: same method, same other settings, same seed.

For each setting of the axis beside the first one that the grid lists: the mean over seeds of the
difference, its t-interval, and a p-value corrected by Holm for all comparisons of the grid. A seed
fixes the order of the data, so a pair differs in the axis alone.

Pairs are seeds, never other settings: each combination of the other axes has effects of its own. A
pair measured by two protocols is left out; one with NaN makes the effect NaN. Not here: drawing
(`reports.plots`), and whether items tell two methods apart (`ranking`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from harness.core.errors import nearest
from reports.numbers.columns import (
    Column,
    get_protocol,
    get_quantity,
    make_columns,
    select_columns,
)
from reports.numbers.naming import format_setting
from reports.numbers.stats import Interval, holm, t_interval
from reports.reading.export import Export

_Record = dict[Any, Any]


@dataclass(frozen=True)
class Effect:
    """What a setting of an axis changes in one column, against the first setting."""

    axis: str
    label: str  # of the method
    context: str  # settings of the other axes, `key=value`; empty where there are none
    bits: float | None  # None where the two settings differ in it
    baseline: str
    setting: str
    column: Column
    difference: Interval  # setting - baseline, in the rows' units; n pairs; p uncorrected
    p: float  # corrected by Holm for all effects that are returned together; NaN for one pair

    @property
    def better(self) -> bool:
        return (self.difference.mean > 0) == self.column.higher and self.difference.mean != 0


def compute_effects(export: Export) -> tuple[Effect, ...]:
    """The effects of `report.effect`, or of the axis that alone varies over two seeds or more.

    Empty where there is no such axis. Raises ReportError for an axis that the grid has not.
    """
    shown = export.rows[export.rows["primary"]]
    axis = _axis(export, shown)
    if axis is None:
        return ()
    columns = make_columns(shown, export)
    chosen = [columns[i] for i in select_columns(columns, export.grid.report)]
    uncorrected = list(_effects(shown, axis, chosen))
    corrected = holm([effect.difference.p for effect in uncorrected])
    return tuple(replace(effect, p=p) for effect, p in zip(uncorrected, corrected, strict=True))


def _axis(export: Export, shown: pd.DataFrame) -> str | None:
    values: dict[str, set[str]] = {}
    for settings in shown["settings"]:
        for name, value in settings.items():
            values.setdefault(name, set()).add(format_setting(value, name))
    wanted = export.grid.report.effect
    if wanted is not None:
        if wanted in values:
            return wanted
        if export.grid.holes:
            return None
        message = f"report.effect: axis {wanted!r} is unknown; {nearest(wanted, values)}"
        raise export.error("grid.json", message)
    varying = [name for name, several in values.items() if len(several) > 1]
    return varying[0] if len(varying) == 1 and shown["seed"].nunique() > 1 else None


def _effects(shown: pd.DataFrame, axis: str, columns: list[Column]) -> Iterator[Effect]:
    contexts: dict[tuple[str, str], dict[str, list[_Record]]] = {}
    for record in shown.to_dict("records"):
        if axis in record["settings"]:
            others = sorted((key, v) for key, v in record["settings"].items() if key != axis)
            context = " ".join(f"{key}={format_setting(value, key)}" for key, value in others)
            settings = contexts.setdefault((record["label"], context), {})
            settings.setdefault(format_setting(record["settings"][axis], axis), []).append(record)
    for (label, context), settings in contexts.items():
        (first, baseline), *rest = settings.items()
        for value, other in rest:
            widths = {float(record["bits"]) for record in [*baseline, *other]}
            bits = widths.pop() if len(widths) == 1 else None
            for column in columns:
                difference = _difference(_by_seed(baseline, column), _by_seed(other, column))
                if difference is not None:
                    yield Effect(
                        axis, label, context, bits, first, value, column, difference, math.nan
                    )


def _difference(
    baseline: dict[int, list[_Record]], other: dict[int, list[_Record]]
) -> Interval | None:
    """Over the seeds that both have, each pair of models once; None where there is none."""
    pairs: dict[tuple[str, str], float] = {}
    for seed, left in baseline.items():
        right = other.get(seed)
        if right and [get_protocol(record) for record in left] == [get_protocol(r) for r in right]:
            means = [sum(r["value"] for r in records) / len(records) for records in (left, right)]
            pairs[left[0]["model_key"], right[0]["model_key"]] = means[1] - means[0]
    return t_interval(list(pairs.values())) if pairs else None


def _by_seed(records: list[_Record], column: Column) -> dict[int, list[_Record]]:
    """Seed -> its rows behind the column, by task; only seeds that have one row of every task."""
    tasks = column.tasks or (column.task,)
    by_seed: dict[int, list[_Record]] = {}
    for record in records:
        own = record["higher_is_better"]
        if column.task is not None:
            own = get_quantity(record) == column.quantity
        if record["task"] in tasks and own and not pd.isna(record["seed"]):
            by_seed.setdefault(int(record["seed"]), []).append(record)
    return {
        seed: sorted(rows, key=lambda record: record["task"])
        for seed, rows in by_seed.items()
        if sorted(record["task"] for record in rows) == sorted(map(str, tasks))
    }
