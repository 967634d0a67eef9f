"""The effect of one axis with everything else paired: same method, same other settings, same seed.

For each setting of the axis beside the first one that the grid lists: the mean over seeds of the
difference, its t-interval, and a p-value corrected by Holm for all comparisons of the grid. A seed
fixes the order of the data, so a pair differs in the axis alone.

Pairs are seeds, never other settings: each combination of the other axes has effects of its own. A
pair measured by two protocols is left out; one with NaN makes the effect NaN. Not here: drawing
(`plots`), and whether items tell two methods apart (`compare`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import ReportError, nearest
from reports.numbers.columns import Column, make_columns, protocol_of, shown_columns
from reports.numbers.naming import setting
from reports.numbers.stats import LEVEL, Interval, holm, t_interval
from reports.pages.sheet import MISSING, Cell, Sheet
from reports.reading import rows as exported
from reports.reading.rows import Grid

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


def effects(folder: Path) -> tuple[Effect, ...]:
    """The effects of `report.effect`, or of the axis that alone varies over two seeds or more.

    Empty where there is no such axis. Raises ReportError for an axis that the grid has not.
    """
    grid, frame = exported.load_grid(folder), exported.load(folder)
    shown = frame[frame["primary"]]
    axis = _axis(folder, grid, shown)
    if axis is None:
        return ()
    columns = make_columns(shown, grid, folder)
    found = list(_effects(shown, axis, [columns[i] for i in shown_columns(columns, grid.spec)]))
    corrected = holm([effect.difference.p for effect in found])
    return tuple(replace(effect, p=p) for effect, p in zip(found, corrected, strict=True))


def sheet(found: Sequence[Effect], decimals: int) -> Sheet:
    """One line a comparison, one table of an axis."""
    groups: dict[tuple[str, str, str], list[tuple[Cell, ...]]] = {}
    for effect in found:
        rows = groups.setdefault((effect.label, effect.context, effect.setting), [])
        name = " ".join(part for part in (effect.label, effect.context) if part)
        change, low, high = (_shown(effect, value, decimals) for value in _ends(effect.difference))
        known = not math.isnan(effect.difference.low)
        rows.append(
            (
                Cell(name),
                Cell(f"{effect.baseline} → {effect.setting}"),
                Cell(f"{effect.column.title} {'↑' if effect.column.higher else '↓'}"),
                Cell(change, best=effect.p < 1 - LEVEL),
                Cell(f"[{low}, {high}]" if known else MISSING),
                Cell(f"{effect.p:.3f}" if known else MISSING),
                Cell(str(effect.difference.n)),
            )
        )
    tested = sum(not math.isnan(effect.p) for effect in found)
    return Sheet(
        name=f"effect-{found[0].axis}",
        caption=(
            f"The effect of {found[0].axis}, all else paired: mean over seeds of the difference, "
            "with Student's 95 % interval, scores in percentage points. p: paired t-test, "
            f"Holm-corrected for {tested} comparisons; in bold below 0.05."
        ),
        head=("Method", "Change", "Column", "Difference", "95 % interval", "p", "Seeds"),
        groups=tuple(tuple(rows) for rows in groups.values()),
        left=3,
    )


def _ends(difference: Interval) -> tuple[float, float, float]:
    return difference.mean, difference.low, difference.high


def _shown(effect: Effect, value: float, decimals: int) -> str:
    """With its sign; a difference of scores in points."""
    if effect.column.percent:
        return f"{100 * value:+.{decimals}f}".replace("-", "−")
    return f"{value:+.3f}".replace("-", "−")


def _axis(folder: Path, grid: Grid, shown: pd.DataFrame) -> str | None:
    values: dict[str, set[str]] = {}
    for axes in shown["axes"]:
        for name, value in axes.items():
            values.setdefault(name, set()).add(setting(value, name))
    wanted = grid.spec.effect
    if wanted is not None:
        if wanted in values:
            return wanted
        if grid.holes:
            return None
        raise ReportError(
            f"{folder / 'grid.json'}: report.effect: no axis {wanted!r}; {nearest(wanted, values)}"
        )
    varying = [name for name, given in values.items() if len(given) > 1]
    return varying[0] if len(varying) == 1 and shown["seed"].nunique() > 1 else None


def _effects(shown: pd.DataFrame, axis: str, columns: list[Column]) -> Iterator[Effect]:
    contexts: dict[tuple[str, str], dict[str, list[_Record]]] = {}
    for record in shown.to_dict("records"):
        if axis in record["axes"]:
            others = sorted((key, v) for key, v in record["axes"].items() if key != axis)
            context = " ".join(f"{key}={setting(value, key)}" for key, value in others)
            settings = contexts.setdefault((record["label"], context), {})
            settings.setdefault(setting(record["axes"][axis], axis), []).append(record)
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
        if right and [protocol_of(record) for record in left] == [protocol_of(r) for r in right]:
            means = [sum(r["value"] for r in records) / len(records) for records in (left, right)]
            pairs[left[0]["model_key"], right[0]["model_key"]] = means[1] - means[0]
    return t_interval(list(pairs.values())) if pairs else None


def _by_seed(records: list[_Record], column: Column) -> dict[int, list[_Record]]:
    """Seed -> its rows behind the column, by task; only seeds that have one row of every task."""
    tasks = column.tasks or (column.task,)
    found: dict[int, list[_Record]] = {}
    for record in records:
        own = record["metric"] == column.metric if column.task else record["higher_is_better"]
        if record["task"] in tasks and own and not pd.isna(record["seed"]):
            found.setdefault(int(record["seed"]), []).append(record)
    return {
        seed: sorted(rows, key=lambda record: record["task"])
        for seed, rows in found.items()
        if sorted(record["task"] for record in rows) == sorted(map(str, tasks))
    }
