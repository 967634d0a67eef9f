"""The keys of a grid file, as pydantic models: what may be said, of which type.

Not here: what the names in it mean, and the expansion into cells (`grid`).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from harness.core.checked import AsWritten
from harness.core.report_options import ReportOptions

Difference = Annotated[float, pydantic.Field(ge=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[str, pydantic.Field(pattern=r"^\d{1,6}(\.\d{1,6})? ?%$")]
Tolerance = Difference | Share
Seed = Annotated[int, pydantic.Field(strict=True, ge=-(2**63), le=2**63 - 1)]
# `{testbed-ppl: }` is a task without options, as `testbed-ppl` is.
Options = Annotated[
    dict[str, Any], pydantic.BeforeValidator(lambda value: {} if value is None else value)
]


class StandsFor(AsWritten, pydantic.BaseModel):
    """A published task that a measured one is compared with, and how the two differ."""

    model_config = pydantic.ConfigDict(extra="forbid")
    task: str
    why: str  # it is not the same: shown beside every number


class Published(AsWritten, pydantic.BaseModel):
    """`published:` of a grid: figures by name (`harness.grid.published`), of them those of `model`.

    `published: NAME` is short for `{name: NAME}`. A tolerance is in the printed unit, or a
    share of the figure (`2%`): one of all, or by (published) method, task or metric. `tasks` has
    those that are measured otherwise than the published ones, or under another name.
    """

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str
    model: str | None = None  # theirs; None: the one of the same name as the grid's
    tolerance: Tolerance | dict[str, Tolerance] | None = None
    tasks: dict[str, StandsFor] = {}

    @pydantic.model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class TuneText(AsWritten, pydantic.BaseModel):
    """The text on which settings are chosen, in windows that no score of the grid reads."""

    model_config = pydantic.ConfigDict(extra="forbid")
    text: str
    split: Literal["train", "calibration", "heldout"] = "heldout"
    cut: Literal["joined", "packed"] = "joined"
    window: Annotated[int, pydantic.Field(ge=2, le=2**24)] = 512  # tokens
    skip: Annotated[int, pydantic.Field(ge=0, le=100_000_000)] = 0  # windows
    limit: Annotated[int, pydantic.Field(ge=1, le=100_000_000)] = 64  # windows


class Tune(AsWritten, pydantic.BaseModel):
    """`tune:` of a grid: settings by dotted path with the values that are tried, and how one is
    chosen. Every other key is such a path."""

    model_config = pydantic.ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[Any]] = pydantic.Field(init=False)
    on: TuneText
    metric: Literal["nll", "kl"] = "nll"
    # The most trials for one row of a table; null: every combination of the values.
    budget: Annotated[int, pydantic.Field(ge=1, le=1_000_000)] | None = None
    # halving: the worse half of the trials ends after a part of its steps; null: none does.
    early: Literal["halving"] | None = None

    @property
    def axes(self) -> dict[str, list[Any]]:
        """The settings that are tried, each with its values."""
        return dict(self.__pydantic_extra__)


class SeedsOf(AsWritten, pydantic.BaseModel):
    """`seeds:` of a grid: kinds of what is drawn at random; one may be a list, and varies."""

    model_config = pydantic.ConfigDict(extra="forbid")
    order: Seed | list[Seed] = 0  # of training data, and what a method of one step draws
    data: Seed | list[Seed] = 0  # text that a model writes to be trained on
    # Where calibration text begins, and what inits and roundings draw.
    calibration: Seed | list[Seed] = 0


Unit = Literal["tokens", "flops", "hours"]
Amount = Annotated[float, pydantic.Field(gt=0, le=1e30, allow_inf_nan=False)]
Budget = Annotated[dict[Unit, Amount], pydantic.Field(min_length=1, max_length=1)]


class GridFile(AsWritten, pydantic.BaseModel):
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
    report: ReportOptions = ReportOptions()
    seed: Seed | list[Seed] = 0  # of all that is random
    seeds: SeedsOf | None = None  # or of one kind of it alone
    tune: Tune | None = None
    # Gives every method the training budget of the grid's own, or so many of a unit.
    match: Unit | Budget | None = None
    allow_code_execution: bool = False
    # Methods times values of all axes: more is taken for a slip of the pen.
    max_points: Annotated[int, pydantic.Field(ge=1, le=1_000_000)] = 2_000
    mirror: str | None = None  # relative to the file that says it
