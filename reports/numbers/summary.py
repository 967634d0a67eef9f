"""What stands in the comparison table: its rows, its columns, and every entry with its marks.

The rules that are here:

- Rows are grouped by bits, the 16-bit reference first, then falling; `naming` tells rows apart.
- A number measured otherwise than most of its column has a mark, and does not compete for best.
- Columns are those of `report.columns`, in its order; every measured one where it says nothing.

Not here: which columns there are (`columns`), what an entry is (`entries`), who is best (`ranking`),
how a table is written (`table`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import ReportError
from reports.numbers import cost
from reports.numbers.columns import (
    DEVICE_HOURS,
    Column,
    make_columns,
    number_of_bits,
    shown_columns,
    usual_protocol,
)
from reports.numbers.entries import Notes, Row, make_rows
from reports.numbers.naming import name_cells
from reports.numbers.ranking import rank
from reports.reading import rows as exported
from reports.reading.items import read
from reports.reading.rows import Grid


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
    comparisons: int = 0  # with a best number, whose p-values were corrected together
    tests: tuple[str, ...] = ()  # those that were used
    device_hours: pd.Series | None = None  # of training, by key of the model; where asked for
    devices: tuple[str, ...] = ()  # that it was trained on

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
    notes = Notes()
    table = make_rows(shown, columns, usual, notes, read(folder), grid.spec)
    chosen = shown_columns(columns, grid.spec)
    if not chosen:
        raise ReportError(f"{folder / 'grid.json'}: report.columns: none of them was measured yet")
    table = [replace(row, entries=tuple(row.entries[i] for i in chosen)) for row in table]
    hours, devices = None, list[str]()
    if DEVICE_HOURS in (grid.spec.columns or ()):
        stages = exported.load_provenance(folder)
        hours = cost.device_hours(frame, exported.load_curves(folder), stages)
        devices = cost.device_names(frame, stages)
        table = [replace(row, device_hours=_mean_hours(row, shown, hours)) for row in table]
    items = shown.loc[shown["higher_is_better"], "n"].dropna()
    decimals = 1 if (items < 1000).any() else 2  # more would be noise
    ranked = rank(table, [columns[i] for i in chosen], decimals, notes)
    marks = {mark for row in table for entry in row.entries if entry for mark in entry.marks}
    return Summary(
        grid=grid,
        testbed=grid.testbed or bool(frame["testbed"].any()),
        columns=tuple(columns[i] for i in chosen),
        rows=ranked.rows,
        notes=tuple((mark, words) for words, mark in notes.marks.items() if mark in marks),
        protocols=tuple(usual[i] for i in chosen if columns[i].task is not None),
        stale=_stale(frame, names),
        names=names,
        decimals=decimals,
        comparisons=ranked.comparisons,
        tests=ranked.tests,
        device_hours=hours,
        devices=tuple(devices),
    )


def _mean_hours(row: Row, shown: pd.DataFrame, hours: pd.Series) -> float | None:
    """Over the row's models; None where one of them was not trained."""
    models = shown.loc[(shown["name"] == row.name) & (shown["bits"] == row.bits), "model_key"]
    known = hours.reindex(models.unique())
    return None if known.isna().any() else float(known.mean())


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
