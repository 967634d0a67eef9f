"""The numbers of the table: one entry a row and column, with its spread and its marks.

An entry is the mean (or the median, where the grid asks) over *distinct models*: cells whose
`model_key` is equal are one model, so a deterministic method has no ±, whatever number of seeds was
listed. NaN is never skipped. Not here: which of them stand out (`ranking`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from harness.core.records import ITEM_KEY, PROTOCOL
from harness.core.report_options import ReportOptions
from reports.numbers import stats
from reports.numbers.columns import (
    Column,
    Quantity,
    get_protocol,
    get_quantity,
)
from reports.numbers.naming import format_setting, name_method, name_width
from reports.numbers.variance import Models, average_groups, have_same_items
from reports.reading.frames import list_records
from reports.reading.items import ItemIndex, Items

REFERENCE_BITS = 16
_FIELDS = [
    *dict.fromkeys(
        (
            *(*ITEM_KEY, *PROTOCOL, "aggregation", "value", "stderr", "stale"),
            *("name", "label", "seed", "model_key", "bits", "bits_per_weight"),
            *("rounded", "kept", "ends", "attachments", "size_bytes"),
        )
    )
]
"""Of a row, what its number rests on: of 10,000 rows the rest would be 10 MB."""


@dataclass(frozen=True)
class Entry:
    """A number of the table, in the rows' units; NaN is a value, a missing entry is None."""

    mean: float  # or the median over models, where the grid asks
    sd: float | None = None  # over models; None for one model, and beside a median
    spread: float | None = None  # behind ±: `sd`, or as `report.spread` says; None: there is no ±
    se: float | None = None  # over items, mean over models
    n: int = 1  # distinct models
    marks: tuple[str, ...] = ()
    best: bool = False  # of its group: cannot be told from the best, while others can
    second: bool = False  # by its digits, where nothing of the group was tested
    rank: tuple[int, int] | None = None  # in its group, simultaneous 95 %; None where untested
    p: float | None = None  # smallest against the better ones, corrected; None where none is
    untested: str = ""  # why it has no rank
    interval: tuple[float, float] | None = None  # 95 % over items
    fixed: bool = False  # one model, whatever the seed
    items: Models = field(default_factory=dict, compare=False, repr=False)  # by seed, of a mean


@dataclass(frozen=True)
class Row:
    name: str
    label: str
    bits: float
    bits_per_weight: float | None
    models: int
    entries: tuple[Entry | None, ...]
    facts: tuple[float | None, ...] = ()  # of its models, mean over them: see `model_columns`
    attachments: str | None = None  # what its models do as they run
    size_bytes: float | None = None  # mean over its models; None where one has none

    @property
    def reference(self) -> bool:
        return self.bits >= REFERENCE_BITS and self.attachments is None

    @property
    def method(self) -> str:
        """Its method without what tells it from others of that label."""
        return name_method(self.label, self.bits, self.attachments)

    @property
    def group(self) -> tuple[float, str | None]:
        """What it shares with the rows that it is compared with: bits of weights, and what else is
        rounded as models run."""
        return self.bits, self.attachments

    @property
    def width(self) -> str:
        """Its bits as tables show them, 2 or W2A8; of a reference those that it was published
        in."""
        published = self.bits_per_weight if self.reference else None
        return name_width(self.bits if published is None else published, self.attachments)


class Notes:
    """Marks a, b, … for what must be said of a number, one mark for the same words."""

    def __init__(self) -> None:
        self.marks: dict[str, str] = {}
        self.unlike: set[str] = set()  # marks of numbers that cannot be compared

    def mark(self, text: str, unlike: bool) -> str:
        text = " ".join(text.split())
        index = len(self.marks)
        letters = chr(ord("a") + index % 26) * (index // 26 + 1)
        mark = self.marks.setdefault(text, letters)
        if unlike:
            self.unlike.add(mark)
        return mark


def make_rows(
    shown: pd.DataFrame,
    columns: tuple[Column, ...],
    usual: list[dict[str, Any]],
    notes: Notes,
    index: ItemIndex,
    options: ReportOptions,
) -> list[Row]:
    """Rows by falling bits, of one width in the order of the labels, those that do something as
    they run last.

    `usual`: for each column of a task, how most of its values were measured.
    """
    # Once: a frame's selections cost a millisecond each, and a table has many numbers.
    records = list_records(shown[_FIELDS])
    labels, names = (_number(record[key] for record in records) for key in ("label", "name"))
    keys = sorted(
        {(record["bits"], record["name"], record["label"]) for record in records},
        key=lambda key: (-key[0], labels[key[2]], names[key[1]]),
    )
    cells_of: dict[tuple[Any, Any], _Cells] = {}
    for record in records:
        cells_of.setdefault((record["bits"], record["name"]), _Cells()).add(record)
    drafts = {
        (r, c): draft
        for r, (bits, name, _) in enumerate(keys)
        for c, draft in _draft_row(cells_of[bits, name], columns, usual, notes).items()
    }
    entries = dict(zip(drafts, _make_entries(list(drafts.values()), index, options), strict=True))
    table = []
    for r, (bits, name, label) in enumerate(keys):
        models_of = _distinct(cells_of[bits, name].records)
        sizes = np.array([each["size_bytes"] for each in models_of], dtype=float)
        weights = [w for each in models_of if not pd.isna(w := each["bits_per_weight"])]
        table.append(
            Row(
                name=name,
                label=label,
                bits=float(bits),
                bits_per_weight=float(np.mean(weights)) if weights else None,
                models=len(models_of),
                entries=tuple(entries.get((r, c)) for c in range(len(columns))),
                attachments=_find_attachments(models_of),
                size_bytes=None if pd.isna(sizes).any() else float(np.mean(sizes)),
            )
        )
    runs = _number([None, *(row.attachments for row in table)])
    return sorted(table, key=lambda row: (-row.bits, runs[row.attachments]))


_Record = dict[Any, Any]


@dataclass
class _Cells:
    """The rows of one name and width, and those of each quantity."""

    records: list[_Record] = field(default_factory=list)
    by_quantity: dict[Quantity, list[_Record]] = field(default_factory=dict)

    def add(self, record: _Record) -> None:
        self.records.append(record)
        self.by_quantity.setdefault(get_quantity(record), []).append(record)

    def select(self, column: Column) -> list[_Record]:
        """Those whose values the column has; of the average none."""
        return [] if column.task is None else self.by_quantity.get(column.quantity, [])


def _number(values: Iterable[Any]) -> dict[Any, int]:
    """Each value -> its place among the distinct ones."""
    return {each: place for place, each in enumerate(dict.fromkeys(values))}


def _distinct(rows: Iterable[_Record]) -> list[_Record]:
    """One row a model, its first."""
    first: dict[Any, _Record] = {}
    for record in rows:
        first.setdefault(record["model_key"], record)
    return list(first.values())


def _find_attachments(models: Sequence[_Record]) -> str | None:
    """What the models of a row do as they run; names tell those that do not do the same apart."""
    return next((each for m in models if isinstance(each := m.get("attachments"), str)), None)


def _count_seeds(rows: Iterable[_Record]) -> int:
    return len({record["seed"] for record in rows if not pd.isna(record["seed"])})


@dataclass(frozen=True)
class _Draft:
    """What a number will be computed from: of each model one row a task."""

    models: list[list[_Record]]
    marks: tuple[str, ...]
    fixed: bool  # one model, whatever the seed


def _draft_row(
    cells: _Cells, columns: Sequence[Column], usual: Sequence[dict[str, Any]], notes: Notes
) -> dict[int, _Draft]:
    """By number of a column; without those of which a row has no value."""
    drafts: dict[int, _Draft] = {}
    for number, (column, protocol) in enumerate(zip(columns, [*usual, {}], strict=False)):
        if column.task is None:
            marks = {columns[other]: draft.marks for other, draft in drafts.items()}
            draft = _average(cells, column, columns, marks, notes)
        else:
            draft = _draft(cells.select(column), protocol, notes)
        if draft is not None:
            drafts[number] = draft
    return drafts


def _draft(rows: list[_Record], usual: dict[str, Any], notes: Notes) -> _Draft | None:
    """Of one task."""
    marks, models = _marks(rows, usual, notes), [[record] for record in _distinct(rows)]
    fixed = len(models) == 1 and _count_seeds(rows) > 1
    return _Draft(models, tuple(marks), fixed) if models else None


def _average(
    cells: _Cells,
    column: Column,
    columns: Sequence[Column],
    marks: Mapping[Column, Sequence[str]],
    notes: Notes,
) -> _Draft | None:
    """Over a model's tasks first, then over models, and only over models that have every task.

    marks: of the row's numbers, by column.
    """
    parts = [c for c in columns if c.task in column.tasks and c.higher]
    if {part.task for part in parts} != set(column.tasks):
        return None
    models: dict[str, list[_Record]] = {}
    for part in parts:
        for record in _distinct(cells.select(part)):
            models.setdefault(record["model_key"], []).append(record)
    complete = [records for records in models.values() if len(records) == len(parts)]
    if not complete:
        return None
    unlike = {mark for part in parts for mark in marks.get(part, ()) if mark in notes.unlike}
    fixed = len(models) == 1 and _count_seeds(cells.records) > 1
    return _Draft(complete, tuple(sorted(unlike)), fixed)


def _make_entries(
    drafts: Sequence[_Draft], index: ItemIndex, options: ReportOptions
) -> Iterator[Entry]:
    """What several numbers need is computed for all of them at once."""
    median = options.aggregate == "median"
    values = [
        [math.fsum(record["value"] for record in rows) / len(rows) for rows in draft.models]
        for draft in drafts
    ]
    by_seed = [
        _find_items(draft.models, index) if not median or len(draft.models) == 1 else {}
        for draft in drafts
    ]
    items = average_groups(by_seed)
    intervals = _compute_intervals(drafts, items)
    for number, (draft, over) in enumerate(zip(drafts, stats.t_intervals(values), strict=True)):
        errors = [record["stderr"] for rows in draft.models for record in rows]
        error = math.fsum(errors) / len(errors) if len(errors) == len(draft.models) else math.nan
        error = _error(items[number]) if math.isnan(error) else error
        sd = over.sd if len(draft.models) > 1 and not median else None
        half = (over.high - over.low) / 2
        yield Entry(
            mean=float(np.median(values[number])) if median else over.mean,
            sd=sd,
            spread={"sd": sd, "interval": None if sd is None else half}.get(options.spread),
            se=None if math.isnan(error) else error,
            n=len(draft.models),
            marks=draft.marks,
            interval=intervals.get(number),
            fixed=draft.fixed,
            items=by_seed[number],
        )


def _find_items(models: list[list[_Record]], index: ItemIndex) -> Models:
    """By model; none where a model's are missing or are other items than the first one's."""
    by_model: dict[int, tuple[Items, ...]] = {}
    for number, rows in enumerate(models):
        parts = [index.behind(record) for record in rows]
        if not all(parts):
            return {}
        by_model[number] = tuple(i.weighted(1 / len(rows)) for part in parts if part for i in part)
    return by_model if have_same_items([by_model]) else {}


def _error(items: Sequence[Items]) -> float:
    """The standard error of a weighted mean of tasks; NaN where there are no items."""
    errors = [part.weight * stats.standard_error(part.scores) for part in items]
    return math.hypot(*errors) if errors else math.nan


def _compute_intervals(
    drafts: Sequence[_Draft], items: Sequence[Sequence[Items]]
) -> dict[int, tuple[float, float]]:
    """95 % over items (a task's, or of an average those of several) by the number of a draft."""
    tasks = [number for number, each in enumerate(items) if len(each) == 1]
    averages = [number for number, each in enumerate(items) if len(each) > 1]
    of_tasks = stats.task_intervals([items[number][0].scores for number in tasks])
    of_averages = stats.average_intervals([items[number] for number in averages])
    found = {}
    for number, each in zip([*tasks, *averages], [*of_tasks, *of_averages], strict=True):
        models = drafts[number].models
        if len(items[number]) > 1 or models[0][0]["aggregation"] != "exp_mean":
            found[number] = each.low, each.high
        elif len(models) == 1:
            # exp is monotonic, but a mean of several perplexities is not exp of their losses' mean.
            found[number] = math.exp(each.low), math.exp(each.high)
    return found


def _marks(rows: list[_Record], usual: dict[str, Any], notes: Notes) -> list[str]:
    protocols = [get_protocol(record) for record in rows]
    unlike = [protocol for protocol in protocols if protocol != usual]
    marks = []
    for protocol in unlike:
        text = _difference(protocol, usual)
        if len(unlike) < len(protocols):
            text = f"some of its seeds with {text}"
        marks.append(notes.mark(f"measured otherwise than its column: {text}", unlike=True))
    shares: set[tuple[Any, Any]] = {(each.get("rounded"), each.get("kept")) for each in rows}
    for rounded, kept in sorted(each for each in shares if not pd.isna(each[0]) and each[0] < 1):
        share = math.floor(1e4 * rounded) / 100  # down, so that not all never looks like all
        text = f"{share:.2f} % of the weights of its blocks are rounded; kept: {kept}"
        marks.append(notes.mark(text, unlike=False))
    for ends in sorted({str(each["ends"]) for each in rows if isinstance(each.get("ends"), str)}):
        marks.append(notes.mark(f"rounded outside of its blocks: {ends}", unlike=False))
    for reason in sorted({each["stale"] for each in rows if not pd.isna(each["stale"])}):
        marks.append(notes.mark(f"stale: {reason}", unlike=False))
    return list(dict.fromkeys(marks))


def _difference(protocol: dict[str, Any], usual: dict[str, Any]) -> str:
    differing = [key for key in PROTOCOL if protocol[key] != usual[key]]
    return ", ".join(
        f"{key} {format_setting(protocol[key])} (column: {format_setting(usual[key])})"
        for key in differing
    )
