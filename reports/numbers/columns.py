"""The columns of a table: which there are, what they are called, and how their numbers look.

Not here: the numbers themselves (`summary`).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from harness.core.errors import nearest
from harness.core.records import AVERAGE, COLUMNS, NO_FILTER, PROTOCOL
from harness.core.report_options import ReportOptions
from reports.reading.export import Export
from reports.reading.frames import list_records

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
    "boolq": "BoolQ",
    "lambada_openai": "LAMBADA",
    "openbookqa": "OpenBookQA",
    "sciq": "SciQ",
    "ppl": "PPL",
}


Quantity = tuple[str, str, str]
"""Task, metric and filter: what the values of one column have in common."""

QUANTITY = ("task", "metric", "filter")
"""The fields of a row that are its quantity."""


@dataclass(frozen=True)
class Column:
    """The values of one task, metric and filter, or the average when `task` is None."""

    task: str | None
    metric: str
    title: str
    higher: bool
    tasks: tuple[str, ...] = ()  # of the average
    decimals: int | None = None  # where the grid says
    filter: str = NO_FILTER
    is_perplexity: bool = False  # exp of a mean loss
    chance: float | None = None  # what guessing scores; of the average, its tasks' mean

    @property
    def percent(self) -> bool:
        return self.higher

    @property
    def in_differences(self) -> Column:
        """As differences are taken of it: of a perplexity, of its logarithm, which is the mean loss
        in nats. A ratio of perplexities is what two models differ by, whatever the text."""
        if not self.is_perplexity:
            return self
        return replace(self, title=f"ln {self.title}", is_perplexity=False, decimals=None)

    @property
    def quantity(self) -> Quantity:
        """What its values have in common; of the average, nothing has it."""
        return self.task or AVERAGE, self.metric, self.filter

    @property
    def name(self) -> str:
        """As files have it: `gsm8k.exact_match,strict-match`."""
        named = name_metric(self.metric, self.filter)
        return AVERAGE if self.task is None else f"{self.task}.{named}"

    def select(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Those of the rows whose values the column has; of the average none."""
        task, metric, filter = self.quantity
        own = (rows["task"] == task) & (rows["metric"] == metric) & (rows["filter"] == filter)
        return rows[own & (self.task is not None)]


def get_quantity(record: Mapping[Any, Any]) -> Quantity:
    return record["task"], record["metric"], record["filter"]


def name_metric(metric: str, filter: str) -> str:
    """`exact_match,strict-match`; without a filter the metric alone."""
    return metric if filter == NO_FILTER else f"{metric},{filter}"


def format_number(value: float, column: Column, decimals: int) -> str:
    """A number as the table shows it: 61.50, 5.47, 3453, 2.2e5, NaN.

    `decimals` are those of percentages; what the grid says of the column goes before.
    """
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if column.percent:
        return format_fixed(100 * value, decimals if column.decimals is None else column.decimals)
    if abs(value) >= 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    usual = 2 if column.is_perplexity or abs(value) >= 10 else 3
    shown = usual if column.decimals is None else column.decimals
    return format_fixed(value, shown if abs(value) < 1000 else 0)


def format_fixed(value: float, decimals: int) -> str:
    """With that many decimals; what rounds to zero has no sign.

    Twelve digits count: in a sum the last bits are the processor's, and would decide a tie.
    """
    return f"{float(f'{value:.12g}'):z.{decimals}f}"


def format_difference(value: float, decimals: int) -> str:
    """With its sign, +2.5 or −0.3; what rounds to zero has none: 0.0."""
    shown = format_fixed(value, decimals)
    if float(shown) == 0:
        return shown
    return f"−{shown[1:]}" if shown.startswith("-") else f"+{shown}"


def format_bits(bits: float) -> str:
    return f"{bits:g}"


def make_columns(shown: pd.DataFrame, export: Export) -> tuple[Column, ...]:
    """All of them: perplexities, then tasks, each in the rows' order, then the average of several.

    `shown`: the primary rows. The average is of `report.average`, else of the scores among
    `report.columns`, else of all scores.
    """
    options = export.grid.report
    kinds = list_records(shown.drop_duplicates(list(QUANTITY)))
    titles = _titles([get_quantity(record) for record in kinds], options.names)
    columns = [
        Column(
            record["task"],
            record["metric"],
            titles[get_quantity(record)],
            bool(record["higher_is_better"]),
            filter=record["filter"],
            is_perplexity=record["aggregation"] == "exp_mean",
            chance=_find_chance(shown, get_quantity(record)),
        )
        for record in kinds
    ]
    columns.sort(key=lambda column: column.higher)
    tasks = [column.task for column in columns if column.higher and column.task is not None]
    for task in options.average or ():
        if task in [column.task for column in columns if not column.higher]:
            raise export.error("grid.json", f"report.average: {task} is lower-is-better")
        _check_task(export, "average", task, tasks)
    measured = [column.task for column in columns if column.task is not None]
    for where, names in (("columns", options.shown), ("decimals", options.decimals_by_name)):
        for name in filter(None, names):
            _check_task(export, where, name, [*measured, *COLUMNS])
    averaged = options.list_averaged(tasks)
    if len(averaged) > 1:
        parts = [column.chance for column in columns if column.higher and column.task in averaged]
        known = [part for part in parts if part is not None]
        chance = sum(known) / len(known) if len(known) == len(parts) else None
        columns.append(Column(None, "average", "Average", True, averaged, chance=chance))
    decimals = options.decimals_by_name
    return tuple(
        replace(c, decimals=decimals.get(c.task or AVERAGE, decimals.get(""))) for c in columns
    )


def _find_chance(shown: pd.DataFrame, quantity: Quantity) -> float | None:
    """What guessing scores in a column, where its rows agree; of a group, over its members."""
    task, metric, filter = quantity
    own = (shown["task"] == task) & (shown["metric"] == metric) & (shown["filter"] == filter)
    levels = shown.loc[own, "chance"].drop_duplicates().tolist()
    alone = levels[0] if len(levels) == 1 else None
    return None if alone is None or math.isnan(alone) else float(alone)


def select_columns(columns: Sequence[Column], options: ReportOptions) -> list[int]:
    """Which of the columns stand in the table, in the order of `report.columns`."""
    if not options.shown:
        return list(range(len(columns)))
    names = [column.task or AVERAGE for column in columns]
    return [i for task in options.shown for i, name in enumerate(names) if name == task]


def _check_task(export: Export, where: str, task: str, known: Sequence[str]) -> None:
    if task not in known and not export.grid.holes:  # a hole may bring it
        message = f"report.{where}: task {task!r} is unknown; {nearest(task, known)}"
        raise export.error("grid.json", message)


def name_task(task: str, names: Mapping[str, str] = {}) -> str:
    """As `names` of the grid have it, else its usual title."""
    if task in names:
        return names[task]
    if task.startswith("kl:"):
        return f"KL {name_task(task[3:], names)}".removesuffix(" PPL")
    bare = task.removeprefix("testbed_").removeprefix("testbed-")
    if bare in TITLES or bare == task:
        return TITLES.get(bare, bare)
    words = " ".join(TITLES.get(part, part) for part in re.split("[-_]", bare))
    return words[:1].upper() + words[1:]


def _titles(quantities: Sequence[Quantity], names: Mapping[str, str]) -> dict[Quantity, str]:
    """Short titles where they stay unique, with the metric where a task has two."""
    titles = {}
    for task, metric, filter in quantities:
        several = [each for each in quantities if each[0] == task]
        title = name_task(task, names)
        named = f"{title} ({name_metric(metric, filter)})"
        titles[task, metric, filter] = title if len(several) == 1 else named
    taken = list(titles.values())
    return {
        each: title if taken.count(title) == 1 else f"{each[0]} ({name_metric(*each[1:])})"
        for each, title in titles.items()
    }


def find_usual_protocol(shown: pd.DataFrame, column: Column) -> dict[str, Any]:
    """How most numbers of the column were measured; of equally many, the one with most items."""
    records = list_records(column.select(shown)[list(PROTOCOL)])
    counts = Counter(tuple(get_protocol(record).values()) for record in records)
    known = [(count, dict(zip(PROTOCOL, told, strict=True))) for told, count in counts.items()]
    return max(
        known, key=lambda each: (each[0], each[1]["n"] or 0, json.dumps(each[1], sort_keys=True))
    )[1]


def get_protocol(record: Mapping[Any, Any]) -> dict[str, Any]:
    """The fields of a row that say how it was measured; what is not known is None."""
    values = [(key, record[key]) for key in PROTOCOL]
    # Not pandas' question, which takes as long as all the rest: NaN alone differs from itself.
    return {key: None if value is None or value != value else value for key, value in values}
