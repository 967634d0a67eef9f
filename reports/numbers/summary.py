"""What stands in the comparison table: its rows, its columns, and every entry with its marks.

The rules that are here:

- Rows are grouped by bits, the 16-bit reference first, then falling, and those of one width by what
  is rounded as their models run (W2, W2A8); `naming` tells rows apart.
- A number measured otherwise than most of its column has a mark, and does not compete for best.
- Columns are those of `report.columns`, in its order; every measured one where it says nothing.

Not here: which columns there are (`columns`), what an entry is (`entries`), who is best
(`ranking`), how a table is written (`reports.pages.table`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import pandas as pd

from harness.core.errors import ReportError
from harness.core.records import Drawn, GridHead
from harness.core.report_options import find_misnamed
from reports.numbers.budgets import describe_budgets
from reports.numbers.columns import (
    Column,
    find_usual_protocol,
    format_bits,
    make_columns,
    select_columns,
)
from reports.numbers.domains import describe_domains
from reports.numbers.entries import Notes, Row, make_rows
from reports.numbers.model_columns import MODEL_COLUMNS, ModelColumn
from reports.numbers.naming import name_cells
from reports.numbers.ranking import rank
from reports.numbers.tuning import Tuned, describe_tuning, list_tuned
from reports.numbers.wording import Wording
from reports.reading.export import Export
from reports.reading.frames import list_records


@dataclass(frozen=True)
class ModelFacts:
    """A column of facts of models, and what it says of this grid."""

    column: ModelColumn
    values: pd.Series  # by key of the model
    description: str


class Remark(NamedTuple):
    """What who made the grid says of it, or that something of it is left out."""

    heading: str
    text: str
    of_rows: bool = True  # about these rows, so that it belongs in a caption


@dataclass(frozen=True)
class Summary:
    """The comparison table of a grid, in numbers."""

    grid: GridHead
    caveats: tuple[str, ...]  # what whoever sees the values must know
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[tuple[str, str], ...]  # mark, what it says
    protocols: tuple[dict[str, Any], ...]  # one a task column: its field -> the usual value
    stale: tuple[str, ...]
    names: dict[str, str]  # cell -> name of its row, also of cells that only have curves
    decimals: int  # of percentages
    remarks: tuple[Remark, ...] = ()  # what who made the grid says of it, and found in it
    comparisons: int = 0  # of two numbers of a group
    tests: tuple[str, ...] = ()  # those that were used
    seeds_fixed: bool = False  # whether some methods were compared as the one model that each has
    model_facts: tuple[ModelFacts, ...] = ()  # where asked for
    models: tuple[str, ...] = ()  # the full-precision ones behind the rows
    tuned: tuple[Tuned, ...] = ()  # rows that could be tuned, in a grid that says so

    @property
    def several(self) -> bool:
        """Whether any row stands on more than one model."""
        return any(row.models > 1 for row in self.rows)

    def groups(self) -> list[tuple[Row, ...]]:
        """Rows by bits of weights and what else is rounded: those that are compared."""
        groups = dict.fromkeys(row.group for row in self.rows)
        return [tuple(row for row in self.rows if row.group == each) for each in groups]

    def fact(self, name: str) -> pd.Series | None:
        """The values of a column of facts by key of the model; None where it was not asked for."""
        return next((each.values for each in self.model_facts if each.column.name == name), None)


def summarise(export: Export) -> Summary:
    """The table of one exported grid. Raises ReportError where there is nothing to show."""
    grid, options, frame = export.grid, export.grid.report, export.rows
    if frame.empty:
        raise _nothing(export)
    shown = frame[frame["primary"]].copy()
    if shown.empty:
        raise export.error("rows.jsonl", "no row is marked primary, so no column is known")
    misnamed = find_misnamed(options.names, frame["settings"], shown["task"].unique())
    if misnamed is not None and not grid.holes:  # a hole may bring it
        raise export.error("grid.json", f"report.names: {misnamed[1]}")
    names = name_cells([frame, export.curves], options)
    shown["name"] = shown["cell"].map(names)
    columns = make_columns(shown, export)
    usual = [find_usual_protocol(shown, column) for column in columns if column.task is not None]
    notes = Notes()
    table = make_rows(shown, columns, usual, notes, export.items, options)
    chosen = select_columns(columns, options)
    if not chosen:
        raise export.error("grid.json", "report.columns: none of them was measured yet")
    facts = tuple(
        ModelFacts(column, column.values(export), column.describe(export))
        for name, column in MODEL_COLUMNS.items()
        if name in options.shown
    )
    table = [
        replace(
            row,
            entries=tuple(row.entries[i] for i in chosen),
            facts=tuple(_mean_fact(row, shown, each.values) for each in facts),
        )
        for row in table
    ]
    items = shown.loc[shown["higher_is_better"], "n"].dropna()
    decimals = 1 if (items < 1000).any() else 2  # more would be noise
    ranked = rank(table, [columns[i] for i in chosen], decimals, notes)
    marks = {mark for row in table for entry in row.entries if entry for mark in entry.marks}
    return Summary(
        grid=grid,
        caveats=tuple(dict.fromkeys(frame["caveat"].dropna())),
        columns=tuple(columns[i] for i in chosen),
        rows=ranked.rows,
        notes=tuple((mark, text) for text, mark in notes.marks.items() if mark in marks),
        protocols=tuple(usual[i] for i in chosen if columns[i].task is not None),
        stale=_stale(frame, names),
        names=names,
        decimals=decimals,
        remarks=tuple(_remarks(export, shown, [columns[i] for i in chosen])),
        comparisons=ranked.comparisons,
        tests=ranked.tests,
        seeds_fixed=ranked.seeds_fixed,
        model_facts=facts,
        models=tuple(dict.fromkeys(shown["model"])),
        tuned=list_tuned(shown),
    )


def _mean_fact(row: Row, shown: pd.DataFrame, values: pd.Series) -> float | None:
    """Over the row's models; None where one of them has none."""
    models = shown.loc[(shown["name"] == row.name) & (shown["bits"] == row.bits), "model_key"]
    known = values.reindex(models.unique())
    return None if known.isna().any() else float(known.mean())


def _remarks(export: Export, shown: pd.DataFrame, columns: Sequence[Column]) -> list[Remark]:
    """The grid's note, what is in-domain, the grid's finding where it is about these rows, how rows
    were tuned, what differs between their seeds, and what budget they had."""
    note, finding = export.grid.report.note, export.grid.report.finding
    wording = Wording(export.grid.report.names)
    remarks = [Remark("Note", note)] if note else []
    if domains := describe_domains(shown, columns):
        remarks.append(Remark("In-domain", domains))
    if finding is not None and finding.rows == export.rows_digest:
        remarks.append(Remark("Finding", finding.text))
    elif finding is not None:
        about = f"rows {finding.rows}" if finding.rows else "rows that it does not name"
        text = f"a finding about {about}; these are rows {export.rows_digest}."
        remarks.append(Remark("Left out", text, of_rows=False))
    if export.grid.report.size == "gb" and shown["size_bytes"].isna().all():
        text = "scores against size: no row has a size, which older rows do not record."
        remarks.append(Remark("Left out", text, of_rows=False))
    if tuning := describe_tuning(list_tuned(shown), not export.curves.empty, wording):
        remarks.append(Remark("Tuning", tuning, of_rows=False))
    if export.grid.varies and shown["seed"].nunique() > 1:
        remarks.append(Remark("Seeds", _VARIES[export.grid.varies], of_rows=False))
    if budgets := describe_budgets(shown, export.curves, export.rows):
        remarks.append(Remark("Budget", budgets, of_rows=False))
    return remarks


_VARIES: dict[Drawn, str] = {
    "all": "they differ in all that is random: the order of training data, text that a model "
    "writes, where calibration text begins, and what inits and roundings draw.",
    "order": "they differ in the order of training data alone.",
    "data": "they differ in the text that a model writes to be trained on alone.",
    "calibration": "they differ in calibration text, and in what inits and roundings draw, alone.",
}


def _stale(frame: pd.DataFrame, names: dict[str, str]) -> tuple[str, ...]:
    lines = []
    for row in list_records(frame[frame["stale"].notna()]):
        which = f"{names[row['cell']]}, {format_bits(row['bits'])} bits"
        seed = "" if pd.isna(row["seed"]) else f", seed {row['seed']}"
        lines.append(f"{which}, {row['task']} {row['metric']}{seed}: {row['stale']}")
    return tuple(dict.fromkeys(lines))


def _nothing(export: Export) -> ReportError:
    grid = export.grid
    message = f"no finished row; {len(grid.holes)} of {grid.cells} cells are open"
    failed = [hole.reason for hole in grid.holes if not hole.waits]
    reasons = failed or [hole.reason for hole in grid.holes]
    first = f", the first: {reasons[0]}" if reasons else ""
    return export.error("rows.jsonl", f"{message}{first}")
