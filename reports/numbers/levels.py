"""From rows to what the effect of an axis is computed from: scores by setting and by seed.

A comparison is of the settings of one axis, in one column, by one method with its other settings
equal. Scores that were measured by another protocol than most of the comparison are left out.

Not here: the test (`effects`).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.core.errors import nearest
from reports.numbers.blocks import Level
from reports.numbers.columns import Column, get_protocol, get_quantity
from reports.numbers.naming import format_setting
from reports.numbers.wording import Told, Wording, tell_apart, write_raw
from reports.reading.export import Export
from reports.reading.frames import list_records
from reports.reading.items import ItemIndex, Items

_Record = dict[Any, Any]
_NO_SEED = -1  # of a row that has none


@dataclass(frozen=True)
class Comparison:
    """Settings of an axis against the first of them."""

    label: str
    context: str
    bits: float | None  # None where the settings differ in it
    column: Column
    levels: tuple[Level, ...]  # the reference first; empty ones with why in `missing`
    missing: dict[str, str]  # setting -> why it has no score to compare


def find_axis(export: Export, shown: pd.DataFrame) -> str | None:
    """`report.effect`, or the axis that alone varies over two seeds or more; None without one.

    Raises ReportError for an axis that the grid has not.
    """
    values: dict[str, set[str]] = {}
    for settings in shown.drop_duplicates("cell")["settings"]:
        for name, value in settings.items():
            values.setdefault(name, set()).add(format_setting(value))
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


def make_comparisons(
    shown: pd.DataFrame,
    axis: str,
    columns: Sequence[Column],
    index: ItemIndex,
    wording: Wording,
) -> Iterator[Comparison]:
    """One a method, context and column; where settings differ in bits, one a setting."""
    contexts: dict[tuple[str, Told], dict[str, list[_Record]]] = {}
    for record in list_records(shown):
        if axis in record["settings"]:
            others = sorted((key, v) for key, v in record["settings"].items() if key != axis)
            told = tuple((key, format_setting(value)) for key, value in others)
            settings = contexts.setdefault((record["label"], told), {})
            settings.setdefault(format_setting(record["settings"][axis]), []).append(record)
    context_names = tell_apart(
        {told: wording.name_settings(told) for _, told in contexts},
        {told: write_raw(told) for _, told in contexts},
    )
    values = {value: value for settings in contexts.values() for value in settings}
    value_names = tell_apart({v: wording.name_value(axis, v) for v in values}, values)
    for (label, told), by_value in contexts.items():
        context = context_names[told]
        settings = {value_names[value]: records for value, records in by_value.items()}
        widths = {
            name: frozenset(float(record["bits"]) for record in records)
            for name, records in settings.items()
        }
        first, *rest = settings
        together = (
            [[first, *rest]] if len(set(widths.values())) == 1 else [[first, n] for n in rest]
        )
        for names in together if rest else []:
            used = frozenset[float]().union(*(widths[name] for name in names))
            bits = next(iter(used)) if len(used) == 1 else None
            for column in columns:
                read = {name: _read(settings[name], column) for name in names}
                if any(read.values()):
                    levels, missing = _make_levels(read, column, index)
                    compared = column.in_differences
                    yield Comparison(label, context, bits, compared, levels, missing)


_BySeed = dict[int, list[_Record]]


def _read(records: list[_Record], column: Column) -> _BySeed:
    """Seed -> its rows behind the column, by task; only seeds that have one row of every task."""
    tasks = column.tasks or (column.task,)
    by_seed: _BySeed = {}
    for record in records:
        own = record["higher_is_better"]
        if column.task is not None:
            own = get_quantity(record) == column.quantity
        if record["task"] in tasks and own:
            seed: int = _NO_SEED if pd.isna(record["seed"]) else int(record["seed"])
            by_seed.setdefault(seed, []).append(record)
    return {
        seed: sorted(rows, key=lambda record: record["task"])
        for seed, rows in by_seed.items()
        if sorted(record["task"] for record in rows) == sorted(map(str, tasks))
    }


def _make_levels(
    read: dict[str, _BySeed], column: Column, index: ItemIndex
) -> tuple[tuple[Level, ...], dict[str, str]]:
    protocols = Counter(
        _describe_protocol(rows) for by_seed in read.values() for rows in by_seed.values()
    )
    usual = protocols.most_common(1)[0][0]
    levels, missing = [], {}
    for setting, by_seed in read.items():
        kept = {s: rows for s, rows in by_seed.items() if _describe_protocol(rows) == usual}
        level = _make_level(setting, kept, column, index)
        odd = [f"seed {each}" for each, value in level.values.items() if not math.isfinite(value)]
        if not by_seed:
            missing[setting] = "not measured"
        elif not kept:
            missing[setting] = "measured by another protocol"
        elif odd:
            missing[setting] = f"no finite score at {', '.join(odd)}"
        levels.append(level)
    return tuple(levels), missing


def _make_level(setting: str, by_seed: _BySeed, column: Column, index: ItemIndex) -> Level:
    values = {s: math.fsum(r["value"] for r in rows) / len(rows) for s, rows in by_seed.items()}
    if column.is_perplexity:
        values = {s: math.log(each) if each > 0 else math.nan for s, each in values.items()}
    keys = {seed: str(rows[0]["model_key"]) for seed, rows in by_seed.items()}
    items = {seed: _find_items(rows, index) for seed, rows in by_seed.items()}
    one_model = len(set(keys.values())) == 1 and len(keys) > 1
    return Level(
        setting=setting,
        values=values,
        keys=keys,
        items={s: i for s, i in items.items() if i is not None} if all(items.values()) else {},
        fixed=one_model or _NO_SEED in keys,
    )


def _find_items(rows: list[_Record], index: ItemIndex) -> tuple[Items, ...] | None:
    """Whose weighted means vary as the value does; None where they are not known. Of a perplexity,
    whose logarithm is compared, these are the losses themselves."""
    found: list[Items] = []
    for row in rows:
        part = index.behind(row)
        if not part or not math.isfinite(row["value"]):
            return None
        found += [items.weighted(1 / len(rows)) for items in part]
    return tuple(found)


def _describe_protocol(rows: list[_Record]) -> str:
    return json.dumps([get_protocol(record) for record in rows], sort_keys=True, default=str)
