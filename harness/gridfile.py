"""The keys of a grid file, as pydantic models: what may be said, of which type.

Not here: what the names in it mean, and the expansion into cells (`grid`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

Decimals = Annotated[int, pydantic.Field(ge=0, le=9)]
Tolerance = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
SEEDS = range(-(2**63), 2**63)  # what the generators take
Seed = Annotated[int, pydantic.Field(ge=SEEDS[0], le=SEEDS[-1])]
# `{testbed-ppl: }` is a task without options, as `testbed-ppl` is.
Options = Annotated[
    dict[str, Any], pydantic.BeforeValidator(lambda said: {} if said is None else said)
]


class ReportSpec(pydantic.BaseModel):
    """`report:` of a grid: what the table's rows are, what is averaged, what it is called."""

    model_config = pydantic.ConfigDict(extra="forbid")
    rows: list[str] | str = "label"
    over: str = "seed"
    columns: list[str] | str | None = None  # tasks, "average", "device_hours"; in the table's order
    average: list[str] | None = None  # of which tasks; []: no average
    aggregate: Literal["mean", "median"] = "mean"  # over seeds
    spread: Literal["sd", "interval"] = "sd"  # what ± is: standard deviation, or 95 % interval
    decimals: Decimals | dict[str, Decimals] | None = None  # of all numbers, or by task
    effect: str | None = None  # the axis whose effect is tested, paired by seed
    caption: str | None = None
    note: str | None = None  # what a reader must know of the result, under the table
    title: str | None = None


class Published(pydantic.BaseModel):
    """`published:` of a grid: results/published/<name>.csv, of it the lines of `model`.

    `published: NAME` is short for `{name: NAME}`. A tolerance is in the printed unit: one of all
    figures, or by task or metric.
    """

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str
    model: str | None = None  # theirs; None: the one of the same name as the grid's
    tolerance: Tolerance | dict[str, Tolerance] | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given


class GridFile(pydantic.BaseModel):
    """The keys of a grid file."""

    model_config = pydantic.ConfigDict(extra="forbid")
    model: str
    dtype: str = "auto"
    trust_remote_code: bool = False
    attention: str | None = None
    method: str | dict[str, Any]
    defaults: dict[str, Any] = {}
    vary: dict[str, list[Any]] = {}
    compare: list[str | dict[str, Any]] = []
    evaluate: list[str | dict[str, Options]]
    diagnose: list[str | dict[str, Options]] = []
    published: Published | None = None
    report: ReportSpec = ReportSpec()
    seed: Seed | list[Seed] = 0
    allow_code_execution: bool = False
    mirror: str | None = None  # relative to the file that says it
