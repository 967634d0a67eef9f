"""The columns of a table: which there are, what they are called, and how their numbers look.

Not here: the numbers themselves (`summary`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import ReportError, nearest
from reports.reading.rows import PROTOCOL, Grid, Spec

# Columns by their names in a grid's `report:`, beside tasks.
AVERAGE, DEVICE_HOURS = "average", "device_hours"
TITLES = {
    "wikitext2": "WikiText-2",
    "c4": "C4",
    "mmlu": "MMLU",
    "piqa": "PIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoGrande",
    "arc_challenge": "ARC-c",
    "arc_easy": "ARC-e",
    "gsm8k": "GSM8K",
    "humaneval": "HumanEval",
    "ppl": "PPL",
}


@dataclass(frozen=True)
class Column:
    """One (task, metric), or the average when `task` is None."""

    task: str | None
    metric: str
    title: str
    higher: bool
    tasks: tuple[str, ...] = ()  # of the average
    decimals: int | None = None  # where the grid says

    @property
    def percent(self) -> bool:
        return self.higher


def number(value: float, column: Column, decimals: int) -> str:
    """A number as the table shows it: 61.50, 5.47, 3453, 2.2e5, NaN.

    `decimals` are those of percentages; what the grid says of the column goes before.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if column.percent:
        return f"{100 * value:.{decimals if column.decimals is None else column.decimals}f}"
    if abs(value) >= 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    shown = 2 if column.decimals is None else column.decimals
    return f"{value:.{shown}f}" if abs(value) < 1000 else f"{value:.0f}"


def number_of_bits(bits: float) -> str:
    return f"{bits:g}"


def make_columns(shown: pd.DataFrame, grid: Grid, folder: Path) -> tuple[Column, ...]:
    """All of them: perplexities, then tasks, each in the rows' order, then the average of several.

    The average is of `report.average`, else of the scores among `report.columns`, else of all.
    """
    kinds = shown.drop_duplicates(["task", "metric"])
    keys = list(zip(kinds["task"], kinds["metric"], kinds["higher_is_better"], strict=True))
    titles = _titles([(task, metric) for task, metric, _ in keys])
    found = [Column(t, m, titles[t, m], bool(higher)) for t, m, higher in keys]
    found.sort(key=lambda column: column.higher)
    scores = [column for column in found if column.higher]
    tasks = [column.task for column in scores if column.task is not None]
    wanted, path = grid.spec.average, folder / "grid.json"
    for task in wanted or ():
        if task in [column.task for column in found if not column.higher]:
            raise ReportError(f"{path}: report.average: {task} is lower-is-better")
        _check_task(path, "average", task, tasks, grid)
    measured = [column.task for column in found if column.task is not None]
    for task in [*(grid.spec.columns or ()), *filter(None, grid.spec.decimals)]:
        where = "columns" if task in (grid.spec.columns or ()) else "decimals"
        _check_task(path, where, task, [*measured, AVERAGE, DEVICE_HOURS], grid)
    if wanted is None and grid.spec.columns is not None:
        tasks = [task for task in tasks if task in grid.spec.columns]
    averaged = tuple(dict.fromkeys(wanted if wanted is not None else tasks))
    if len(averaged) > 1:
        found.append(Column(None, "average", "Average", True, averaged))
    default = grid.spec.decimals.get("")
    return tuple(
        replace(c, decimals=grid.spec.decimals.get(c.task or AVERAGE, default)) for c in found
    )


def shown_columns(columns: Sequence[Column], spec: Spec) -> list[int]:
    """Which of the columns stand in the table, in the order of `report.columns`."""
    if spec.columns is None:
        return list(range(len(columns)))
    names = [column.task or AVERAGE for column in columns]
    return [i for task in spec.columns for i, name in enumerate(names) if name == task]


def _check_task(path: Path, where: str, task: str, known: Sequence[str], grid: Grid) -> None:
    if task not in known and not grid.holes:  # a hole may bring it
        raise ReportError(f"{path}: report.{where}: no task {task!r}; {nearest(task, known)}")


def task_title(task: str) -> str:
    bare = task.removeprefix("testbed_").removeprefix("testbed-")
    return TITLES.get(bare, bare if bare == task else bare.replace("_", " ").capitalize())


def _titles(keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Short titles where they stay unique, with the metric where a task has two."""
    titles = {}
    for task, metric in keys:
        bare = task_title(task)
        several = [key for key in keys if key[0] == task]
        titles[task, metric] = bare if len(several) == 1 else f"{bare} ({metric})"
    taken = list(titles.values())
    return {key: t if taken.count(t) == 1 else f"{key[0]} ({key[1]})" for key, t in titles.items()}


def usual_protocol(shown: pd.DataFrame, column: Column) -> dict[str, Any]:
    """How most numbers of the column were measured; of equally many, the one with most items."""
    rows = shown[(shown["task"] == column.task) & (shown["metric"] == column.metric)]
    counts: dict[str, int] = {}
    seen: dict[str, dict[str, Any]] = {}
    for record in rows[PROTOCOL].to_dict("records"):
        found = protocol_of(record)
        told = json.dumps(found, sort_keys=True)
        counts[told] = counts.get(told, 0) + 1
        seen[told] = found
    best = max(counts, key=lambda told: (counts[told], seen[told]["n"] or 0, told))
    return seen[best]


def protocol_of(record: Mapping[Any, Any]) -> dict[str, Any]:
    return {key: None if pd.isna(record[key]) else record[key] for key in PROTOCOL}
