"""The scores of the items behind rows, and which items stand behind which row.

A row names its items: they have its key, task, metric and filter, and its `aggregation` says how
its value follows from them. Nothing is guessed from values. Not here: what is computed from items
(`reports.numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.core.errors import ReportError
from harness.core.records import ITEM_KEY, RowItems
from reports.reading.frames import list_records

Floats = NDArray[np.float64]
Key = tuple[str, ...]
"""The values of a row's or an item's fields `ITEM_KEY`."""

ITEM_COLUMNS = dict.fromkeys(ITEM_KEY, "str") | {"item": "int64", "score": "float64"}
"""The columns of `load_items` and their types; `item` is the number of an item in its task."""

_NO_MEAN: Key = ()  # of a member whose value is not the mean of its items: no items are found


@dataclass(frozen=True)
class Items:
    """The items of one task that weigh alike: numbers (N,) int64, scores (N,)."""

    task: str
    numbers: NDArray[np.int64]
    scores: Floats
    weight: float = 1.0  # of their mean in the row's value

    def weighted(self, factor: float) -> Items:
        return replace(self, weight=self.weight * factor)

    def alike(self, other: Items) -> bool:
        """Whether these are the same items with the same weight."""
        same = self.task == other.task and self.weight == other.weight
        return same and np.array_equal(self.numbers, other.numbers)


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


def make_index(lines: Iterable[tuple[str, RowItems]], rows: pd.DataFrame) -> ItemIndex:
    """Of the lines of items.jsonl.gz, each with its place in words, and the rows of the export.

    Raises ReportError for items that do not give the value of their row.
    """
    by_row: dict[Key, Items] = {}
    told = rows[[*ITEM_KEY, "aggregation", "value"]]  # few columns: there may be 10,000 rows
    values = {get_key(row): row for row in list_records(told)}
    for where, line in lines:
        scores = np.asarray(line.scores, np.float64)
        numbers = np.arange(len(scores)) if line.items is None else np.asarray(line.items, np.int64)
        if len(numbers) != len(scores) or not len(scores):
            raise ReportError(f"{where}: {len(numbers)} items, but {len(scores)} scores")
        by_row[get_key(vars(line))] = Items(line.task, numbers, scores)
        _check_value(where, scores, values.get(get_key(vars(line)), {}))
    members: dict[Key, list[Key]] = {}
    named = [*ITEM_KEY, "group", "aggregation"]
    for row in list_records(rows.loc[rows["group"].notna(), named].drop_duplicates()):
        group = members.setdefault(get_key({**row, "task": row["group"]}), [])
        group.append(get_key(row) if row["aggregation"] == "mean" else _NO_MEAN)
    return ItemIndex(by_row, members)


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


def _check_value(where: str, scores: Floats, row: Mapping[Any, Any]) -> None:
    mean, aggregation = float(scores.mean()), row.get("aggregation")
    if aggregation not in ("mean", "exp_mean"):
        return
    expected = math.exp(min(mean, 700.0)) if aggregation == "exp_mean" else mean
    value = row["value"]
    if math.isfinite(value) and not math.isclose(expected, value, rel_tol=1e-6, abs_tol=1e-9):
        raise ReportError(
            f"{where}: these items give {expected:g}, but the value of their row is {value:g}"
        )


def get_key(record: Mapping[Any, Any]) -> Key:
    """The fields by which items are joined with their row."""
    return tuple(str(record[name]) for name in ITEM_KEY)
