"""The scores of the items behind rows, and which items stand behind which row.

A row names its items: they have its key, task, metric and filter, and its `aggregation` says how
its value follows from them. Nothing is guessed from values. Not here: what is computed from items
(`reports.numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.core.errors import ReportError
from harness.core.records import ITEM_KEY, Row, RowItems

Floats = NDArray[np.float64]
Key = tuple[str, ...]
"""The values of a row's or an item's fields `ITEM_KEY`."""

ITEM_COLUMNS = dict.fromkeys(ITEM_KEY, "str") | {"item": "int64", "score": "float64"}
"""The columns of `load_items` and their types; `item` is the number of an item in its task."""

_find_key = itemgetter(*ITEM_KEY)
_NO_MEAN: Key = ()  # of a member whose value is not the mean of its items: no items are found


@dataclass(frozen=True)
class Items:
    """The items of one task that weigh alike: numbers (N,) int64, scores (N,)."""

    task: str
    numbers: NDArray[np.int64]
    scores: Floats
    weight: float = 1.0  # of their mean in the row's value

    def weighted(self, factor: float) -> Items:
        return self if factor == 1 else replace(self, weight=self.weight * factor)

    def alike(self, other: Items) -> bool:
        """Whether these are the same items with the same weight."""
        same = self.task == other.task and self.weight == other.weight
        return same and (
            self.numbers is other.numbers or np.array_equal(self.numbers, other.numbers)
        )


@dataclass(frozen=True)
class ItemIndex:
    """All items of an export, and the rows whose mean the row of a group is."""

    by_row: dict[Key, Items] = field(default_factory=dict)
    members: dict[Key, list[Key]] = field(default_factory=dict)

    def behind(self, row: Mapping[Any, Any]) -> list[Items] | None:
        """The items whose weighted means make a row's value; None where they are not there.

        Of an `exp_mean`, whose value is exp of the mean, too.
        """
        key = get_key(row)
        if row["aggregation"] in ("mean", "exp_mean"):
            own = self.by_row.get(key)
            return None if own is None else [own]
        if row["aggregation"] != "macro_mean":
            return None
        parts = [self.by_row.get(member) for member in self.members.get(key, ())]
        if not parts or None in parts:
            return None
        return [part.weighted(1 / len(parts)) for part in parts if part is not None]


def make_index(lines: Iterable[tuple[str, RowItems]], rows: Sequence[Row]) -> ItemIndex:
    """Of the lines of items.jsonl.gz, each with its place in words, and the rows of the export.

    Raises ReportError for items that do not give the value of their row.
    """
    by_row: dict[Key, Items] = {}
    by_key = {get_key(vars(row)): row for row in rows}
    counted: dict[int, NDArray[np.int64]] = {}  # shared: that two are one array is seen at once
    for where, line in lines:
        count, key = len(line.scores), get_key(vars(line))
        if line.items is None:
            numbers = counted.setdefault(count, np.arange(count))
        else:
            numbers = np.asarray(line.items, np.int64)
        if len(numbers) != count or not count:
            raise ReportError(f"{where}: {len(numbers)} items, but {count} scores")
        by_row[key] = Items(line.task, numbers, np.asarray(line.scores, np.float64))
        if key in by_key:
            _check_value(where, line.scores, by_key[key])
    members: dict[Key, dict[Key, None]] = {}
    for key, row in by_key.items():
        if row.group is not None:
            group = members.setdefault(get_key({**vars(row), "task": row.group}), {})
            group[key if row.aggregation == "mean" else _NO_MEAN] = None
    return ItemIndex(by_row, {group: list(keys) for group, keys in members.items()})


def make_items_frame(index: ItemIndex) -> pd.DataFrame:
    """One row an item, with the columns `ITEM_COLUMNS`."""
    parts: dict[str, list[Any]] = {name: [] for name in ITEM_COLUMNS}
    for key, items in index.by_row.items():
        for name, value in zip(ITEM_KEY, key, strict=True):
            parts[name].append(np.full(len(items.numbers), value))
        parts["item"].append(items.numbers)
        parts["score"].append(items.scores)
    return pd.DataFrame(
        {
            name: pd.Series(np.concatenate(parts[name]) if parts[name] else [], dtype=dtype)
            for name, dtype in ITEM_COLUMNS.items()
        }
    )


def _check_value(where: str, scores: Sequence[float], row: Row) -> None:
    if row.aggregation not in ("mean", "exp_mean"):
        return
    mean, value = sum(scores) / len(scores), math.nan if row.value is None else row.value
    expected = math.exp(min(mean, 700.0)) if row.aggregation == "exp_mean" else mean
    if math.isfinite(value) and not math.isclose(expected, value, rel_tol=1e-6, abs_tol=1e-9):
        raise ReportError(
            f"{where}: these items give {expected:g}, but the value of their row is {value:g}"
        )


def get_key(record: Mapping[Any, Any]) -> Key:
    """The fields by which items are joined with their row."""
    key: Key = _find_key(record)
    return key
