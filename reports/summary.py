"""What stands in the comparison table: its rows, its columns, and every entry with its marks.

The rules, all of them here:

- Rows are grouped by bits, the 16-bit reference first, then falling; `naming` tells rows apart.
- An entry is the mean over *distinct models*: cells whose `model_key` is equal are one model, so a
  deterministic method has no ±, whatever number of seeds was listed. ± is the sample standard
  deviation.
- The average is taken over a model's tasks first, then over models, and only over models that have
  every task. NaN is never skipped.
- A number measured otherwise than most of its column has a mark, and does not compete for best.
- Best is decided on the digits shown, within a group of at least two numbers; ties all win.

Not here: which columns there are (`columns`), how a table is written (`table`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.errors import ReportError
from reports import rows as exported
from reports.columns import (
    Column,
    make_columns,
    number,
    number_of_bits,
    protocol_of,
    usual_protocol,
)
from reports.naming import name_cells, setting
from reports.rows import PROTOCOL, Grid

REFERENCE_BITS = 16


@dataclass(frozen=True)
class Entry:
    """A number of the table, in the rows' units; NaN is a value, a missing entry is None."""

    mean: float
    sd: float | None = None  # over models; None for one model
    se: float | None = None  # over items, mean over models
    n: int = 1  # distinct models
    marks: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    label: str
    bits: float
    bits_per_weight: float | None
    models: int
    entries: tuple[Entry | None, ...]

    @property
    def reference(self) -> bool:
        return self.bits >= REFERENCE_BITS


@dataclass(frozen=True)
class Summary:
    grid: Grid
    testbed: bool
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...]  # mark, what it says
    protocols: tuple[dict[str, Any], ...]  # one a task column: its field -> the usual value
    stale: tuple[str, ...]
    names: dict[str, str]  # cell -> name of its row, also of cells that only have curves
    decimals: int  # of percentages

    @property
    def several(self) -> bool:
        """Whether any row stands on more than one model."""
        return any(row.models > 1 for row in self.rows)

    def groups(self) -> list[tuple[Row, ...]]:
        bits = dict.fromkeys(row.bits for row in self.rows)
        return [tuple(row for row in self.rows if row.bits == each) for each in bits]


def summarise(folder: Path) -> Summary:
    """The table of one exported grid."""
    grid, frame = exported.load_grid(folder), exported.load(folder)
    if frame.empty:
        raise ReportError(_nothing(folder, grid))
    shown = frame[frame["primary"]].copy()
    if shown.empty:
        raise ReportError(
            f"{folder / 'rows.jsonl'}: no row is marked primary, so no column is known"
        )
    names = name_cells([frame, exported.load_curves(folder)], grid.spec)
    shown["name"] = shown["cell"].map(names)
    columns = make_columns(shown, grid, folder)
    usual = [usual_protocol(shown, column) for column in columns if column.task is not None]
    notes = _Notes()
    table = _entries(shown, columns, usual, notes)
    items = shown.loc[shown["higher_is_better"], "n"].dropna()
    decimals = 1 if (items < 1000).any() else 2  # more would be noise
    return Summary(
        grid=grid,
        testbed=grid.testbed or bool(frame["testbed"].any()),
        columns=columns,
        rows=_with_best(table, columns, decimals, notes),
        notes=tuple((mark, words) for words, mark in notes.marks.items()),
        protocols=tuple(usual),
        stale=_stale(frame, names),
        names=names,
        decimals=decimals,
    )


# --- entries ------------------------------------------------------------------------------------


class _Notes:
    """Marks a, b, … for what must be said of a number, one mark for the same words."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}
        self.unlike: set[str] = set()  # marks of numbers that cannot be compared

    def mark(self, words: str, unlike: bool) -> str:
        words = " ".join(words.split())
        index = len(self.marks)
        letters = chr(ord("a") + index % 26) * (index // 26 + 1)
        mark = self.marks.setdefault(words, letters)
        if unlike:
            self.unlike.add(mark)
        return mark


def _entries(
    shown: pd.DataFrame, columns: tuple[Column, ...], usual: list[dict[str, Any]], notes: _Notes
) -> list[Row]:
    per_model = (
        shown.groupby(["bits", "name", "model_key", "task", "metric"], sort=False)
        .agg(
            value=("value", _mean),
            stderr=("stderr", _mean),
        )
        .reset_index()
    )
    labels, names = list(dict.fromkeys(shown["label"])), list(dict.fromkeys(shown["name"]))
    keys = sorted(
        set(zip(shown["bits"], shown["name"], shown["label"], strict=True)),
        key=lambda key: (-key[0], labels.index(key[2]), names.index(key[1])),
    )
    table = []
    for bits, name, label in keys:
        cells = shown[(shown["bits"] == bits) & (shown["name"] == name)]
        models = per_model[(per_model["bits"] == bits) & (per_model["name"] == name)]
        entries: list[Entry | None] = []
        for column, protocol in zip(columns, [*usual, {}], strict=False):
            if column.task is None:
                entries.append(_average(models, column, columns, entries, notes))
                continue
            here = models[(models["task"] == column.task) & (models["metric"] == column.metric)]
            rows = cells[(cells["task"] == column.task) & (cells["metric"] == column.metric)]
            marks = _marks(rows, protocol, notes)
            entries.append(_entry(here["value"], here["stderr"], marks) if len(here) else None)
        weight = cells.drop_duplicates("model_key")["bits_per_weight"].mean()
        table.append(
            Row(
                name=name,
                label=label,
                bits=float(bits),
                bits_per_weight=None if pd.isna(weight) else float(weight),
                models=int(cells["model_key"].nunique()),
                entries=tuple(entries),
            )
        )
    return table


def _mean(values: pd.Series) -> float:
    """A mean that NaN makes NaN."""
    return float(values.mean(skipna=False))


def _entry(values: pd.Series, errors: pd.Series | None, marks: Sequence[str]) -> Entry:
    error = math.nan if errors is None else _mean(errors)
    return Entry(
        mean=_mean(values),
        sd=float(values.std(skipna=False)) if len(values) > 1 else None,
        se=None if math.isnan(error) else error,
        n=len(values),
        marks=tuple(marks),
    )


def _average(
    models: pd.DataFrame,
    column: Column,
    columns: Sequence[Column],
    entries: Sequence[Entry | None],
    notes: _Notes,
) -> Entry | None:
    scores = {(c.task, c.metric) for c in columns if c.task in column.tasks and c.higher}
    if {task for task, _ in scores} != set(column.tasks):
        return None
    part = models[[key in scores for key in zip(models["task"], models["metric"], strict=True)]]
    tasks = part.groupby("model_key", sort=False)["value"].agg(["size", _mean])
    complete = tasks.loc[tasks["size"] == len(scores), "_mean"]
    if complete.empty:
        return None
    marks = sorted(
        {
            mark
            for c, entry in zip(columns, entries, strict=False)
            if entry and (c.task, c.metric) in scores
            for mark in entry.marks
            if mark in notes.unlike
        }
    )
    return _entry(complete, None, marks)


def _marks(rows: pd.DataFrame, usual: dict[str, Any], notes: _Notes) -> list[str]:
    found = [protocol_of(record) for record in rows[PROTOCOL].to_dict("records")]
    unlike = [protocol for protocol in found if protocol != usual]
    marks = []
    for protocol in unlike:
        words = _difference(protocol, usual)
        if len(unlike) < len(found):
            words = f"some of its seeds with {words}"
        marks.append(notes.mark(f"measured otherwise than its column: {words}", unlike=True))
    for reason in sorted(set(rows["stale"].dropna())):
        marks.append(notes.mark(f"stale: {reason}", unlike=False))
    return list(dict.fromkeys(marks))


def _difference(protocol: dict[str, Any], usual: dict[str, Any]) -> str:
    differing = [key for key in PROTOCOL if protocol[key] != usual[key]]
    return ", ".join(
        f"{key} {setting(protocol[key])} (column: {setting(usual[key])})" for key in differing
    )


def _with_best(
    table: list[Row], columns: Sequence[Column], decimals: int, notes: _Notes
) -> tuple[Row, ...]:
    best: dict[tuple[float, int], float] = {}
    for bits in dict.fromkeys(row.bits for row in table):
        for index, column in enumerate(columns):
            shown = [
                float(number(entry.mean, column, decimals))
                for row in table
                if row.bits == bits and (entry := row.entries[index]) is not None
                if _competes(entry, notes)
            ]
            if len(shown) > 1:
                best[bits, index] = max(shown) if column.higher else min(shown)

    def judged(row: Row, index: int, entry: Entry | None) -> Entry | None:
        if entry is None or not _competes(entry, notes):
            return entry
        value = float(number(entry.mean, columns[index], decimals))
        return replace(entry, best=best.get((row.bits, index)) == value)

    return tuple(
        replace(row, entries=tuple(judged(row, i, entry) for i, entry in enumerate(row.entries)))
        for row in table
    )


def _competes(entry: Entry, notes: _Notes) -> bool:
    return math.isfinite(entry.mean) and not notes.unlike.intersection(entry.marks)


# --- what is missing ----------------------------------------------------------------------------


def _stale(frame: pd.DataFrame, names: dict[str, str]) -> tuple[str, ...]:
    lines = []
    for row in frame[frame["stale"].notna()].to_dict("records"):
        which = f"{names[row['cell']]}, {number_of_bits(row['bits'])} bits"
        seed = "" if pd.isna(row["seed"]) else f", seed {row['seed']}"
        lines.append(f"{which}, {row['task']} {row['metric']}{seed}: {row['stale']}")
    return tuple(dict.fromkeys(lines))


def _nothing(folder: Path, grid: Grid) -> str:
    open_cells = f"{len(grid.holes)} of {grid.cells} cells are open"
    words = f"{folder / 'rows.jsonl'}: no finished row; {open_cells}"
    reasons = [str(hole.get("reason", "")) for hole in grid.holes]
    failed = [reason for reason in reasons if reason != "not run yet"]
    return f"{words}, the first: {(failed or reasons)[0]}" if reasons else words
