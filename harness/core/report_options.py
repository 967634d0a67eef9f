"""`report:` of a grid: what its table shows and says. It goes into grid.json as it was asked for.

Not here: which names of rows, columns and axes a grid has (`harness.grid.names`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Interval, MinLen

from harness.core.errors import nearest

Digits = Annotated[int, Interval(ge=0, le=9)]
Width = Literal["acl", "iclr", "icml", "ieee", "neurips"]
Inches = Annotated[float, Interval(ge=2, le=20)]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What somebody found in the rows of a grid, in words; it is shown with those rows only."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    text: Annotated[str, "the finding"]
    rows: Annotated[str, "digest of the rows that it is about: see `rows_digest`"] = ""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """`report:` of a grid: what the table's rows are, what is averaged, what it is called."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    rows: Annotated[list[str] | str, "axes in the names of rows; `label` is the method's"] = "label"
    over: Annotated[str | None, "the axis that is averaged over"] = "seed"
    columns: Annotated[list[str] | str | None, "tasks and `COLUMNS`, in the table's order"] = None
    average: Annotated[list[str] | None, "the tasks averaged; []: no average; null: all"] = None
    aggregate: Annotated[Literal["mean", "median"], "over models"] = "mean"
    spread: Annotated[
        Literal["sd", "interval", "items"],
        "± is the SD, or half a 95 % interval, over models; `items`: 95 % intervals over items",
    ] = "sd"
    decimals: Annotated[Digits | dict[str, Digits] | None, "of all numbers, or by task"] = None
    effect: Annotated[str | None, "the axis whose effect is tested, paired by seed"] = None
    caption: Annotated[str | None, "what the table shows, in place of a sentence of its own"] = None
    note: Annotated[str | None, "what is true of every run of the grid; printed always"] = None
    finding: Annotated[Finding | None, "what was found in its rows; printed with those only"] = None
    title: Annotated[str | None, "of the report"] = None
    size: Annotated[
        Literal["bits", "gb"], "scores against bits per weight, or the model's size in GB"
    ] = "bits"
    width: Annotated[
        Width | Inches | None, "of figures over a page, in inches, or of a venue's papers"
    ] = None
    style: Annotated[
        str | None, "a file of matplotlib's settings (.mplstyle), over Bitgrid's own"
    ] = None
    names: Annotated[
        dict[str, Annotated[str, MinLen(1)]],
        "what an axis (`train.lr`), a value (`format=int-sym`) or a task is called",
    ] = field(default_factory=dict)

    @property
    def row_names(self) -> tuple[str, ...]:
        """`rows` as a list."""
        return (self.rows,) if isinstance(self.rows, str) else tuple(self.rows) or ("label",)

    @property
    def shown(self) -> tuple[str, ...]:
        """`columns` as a list; empty: every measured one."""
        return (self.columns,) if isinstance(self.columns, str) else tuple(self.columns or ())

    def list_averaged(self, scores: Iterable[str]) -> tuple[str, ...]:
        """The tasks of the average, of those whose `scores` are better higher; of fewer than two
        there is none."""
        if self.average is not None:
            return tuple(dict.fromkeys(self.average))
        return tuple(task for task in dict.fromkeys(scores) if not self.shown or task in self.shown)

    @property
    def decimals_by_name(self) -> dict[str, int]:
        """`decimals` by task; "" of all others."""
        decimals = self.decimals
        return (
            {} if decimals is None else decimals if isinstance(decimals, dict) else {"": decimals}
        )


def format_setting(value: object) -> str:
    """A setting as `names` has it: strings bare, the rest as JSON."""
    if type(value) is int:
        return str(value)  # most are; JSON takes ten times as long
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def find_misnamed(
    names: Mapping[str, str], settings: Iterable[Mapping[str, Any]], tasks: Iterable[str]
) -> tuple[str, str] | None:
    """The key of `names` that is of nothing, or whose words another value of its axis has, and
    what is wrong with it; None where all is well.

    settings: axis -> value, what varies of each cell.
    """
    known = dict.fromkeys(tasks)
    for axis, value in {(a, format_setting(v)) for each in settings for a, v in each.items()}:
        known |= dict.fromkeys(_list_nameable(axis, value))
    for key in names:
        if key not in known:
            return key, f"axis, value or task {key!r} is unknown; {nearest(key, known)}"
    taken: dict[tuple[str, str], str] = {}
    for key, words in names.items():
        axis = key.partition("=")[0] if "=" in key else ""
        if (other := taken.setdefault((axis, words), key)) != key:
            return key, f"{other!r} and {key!r} are both called {words!r}"
    return None


def _list_nameable(axis: str, value: str) -> Iterator[str]:
    """What can have a name: an axis, its value, and the components and their settings in it."""
    yield from (axis, f"{axis}={value}")
    for component in value.split(" + "):
        first, *settings = component.split(" ")
        yield f"{axis}={first}"
        for path, equals, part in (f"{axis}.{each}".partition("=") for each in settings):
            yield from (path, f"{path}={part}") if equals else ()


def rows_digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """A digest of methods, settings and values: it tells the rows of two runs apart.

    `rows`: fields of `Row` by name. Their order, repeats, labels and keys do not
    count.
    """
    names = ("method", "settings", "seed", "task", "metric", "filter", "value")
    lines = sorted({json.dumps([row[name] for name in names], sort_keys=True) for row in rows})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
