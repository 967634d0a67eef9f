"""The scores of every item behind a row: `items.jsonl.gz`, read and checked.

A folder of an older export has none; then nothing is said that needs them. Not here: what is
computed from them (`stats`, `ranking`).
"""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.core.errors import ReportError
from reports.numbers.stats import Floats
from reports.reading.rows import SCHEMA, Field

if TYPE_CHECKING:
    import pandas as pd

FILE = "items.jsonl.gz"

ITEM_FIELDS: dict[str, Field] = {
    "key": Field((str,), "str", "key of the evaluation stage, as in the rows"),
    "task": Field((str,), "str", "task; of a group of tasks, one of its members"),
    "metric": Field((str,), "str", "metric, as in the rows"),
    "item": Field((int,), "int64", "number of the item in the task, equal for all models"),
    "score": Field((float,), "float64", "its score; for ppl the mean NLL of its window, in nats"),
}
"""The columns of `load_items`, in order."""


@dataclass(frozen=True)
class Items:
    """The items of one task that weigh alike: numbers (N,) int64, scores (N,)."""

    task: str
    numbers: np.ndarray
    scores: Floats
    weight: float = 1.0  # of their mean in the row's value

    def weighted(self, factor: float) -> Items:
        return replace(self, weight=self.weight * factor)

    def alike(self, other: Items) -> bool:
        """Whether these are the same items with the same weight."""
        same = self.task == other.task and self.weight == other.weight
        return same and np.array_equal(self.numbers, other.numbers)


Index = dict[tuple[str, str, str], Items]


def load_items(folder: Path) -> pd.DataFrame:
    """One row an item of each evaluation; see `ITEM_FIELDS`. Empty where none were exported."""
    import pandas as pd

    found = read(folder)
    parts = [
        {
            "key": np.full(len(items.numbers), key),
            "task": np.full(len(items.numbers), task),
            "metric": np.full(len(items.numbers), metric),
            "item": items.numbers,
            "score": items.scores,
        }
        for (key, task, metric), items in found.items()
    ]
    return pd.DataFrame(
        {
            name: pd.Series(
                np.concatenate([part[name] for part in parts]) if parts else [], dtype=field.dtype
            )
            for name, field in ITEM_FIELDS.items()
        }
    )


def read(folder: Path) -> Index:
    """(key, task, metric) -> its items."""
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise ReportError(f"{path}: not a gzipped text ({error}); export the grid again") from error
    found: Index = {}
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
            if record["schema"] != SCHEMA:
                raise ReportError(f"{where}: schema version {record['schema']!r}, not {SCHEMA}")
            scores = np.asarray(record["scores"], np.float64)
            numbers = record["items"]
            numbers = np.arange(len(scores)) if numbers is None else np.asarray(numbers, np.int64)
            if numbers.shape != scores.shape or scores.ndim != 1 or not len(scores):
                raise ValueError(f"{numbers.shape} items, {scores.shape} scores")
            key = record["key"], record["task"], record["metric"]
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(f"{where}: not the items of a row ({error!r})") from error
        found[key] = Items(key[1], numbers, scores)
    return found


def behind(index: Index, row: dict[Any, Any]) -> list[Items] | None:
    """The items whose weighted means make a row's value; None where they are not there.

    The value of a group of tasks, as of MMLU, is the unweighted mean of its members'.
    """
    key, task, metric = row["key"], row["task"], row["metric"]
    own = index.get((key, task, metric))
    if own is not None:
        parts = [own]
    else:
        found = [items for (k, _, m), items in index.items() if (k, m) == (key, metric)]
        parts = [items.weighted(1 / len(found)) for items in found]
    if not parts:
        return None
    mean = math.fsum(part.weight * float(part.scores.mean()) for part in parts)
    value = math.exp(min(mean, 700.0)) if metric == "ppl" else mean
    return parts if math.isclose(value, row["value"], rel_tol=1e-6, abs_tol=1e-9) else None
