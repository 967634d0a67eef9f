"""The keys of a grid file, as pydantic models: what may be said, of which type.

Not here: what the names in it mean, and the expansion into cells (`grid`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any

import pydantic

from harness.core.errors import nearest
from harness.core.misfit import Misfit, Where
from harness.core.records import COLUMNS, ReportOptions

Tolerance = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
SEEDS = range(-(2**63), 2**63)  # what the generators take
Seed = Annotated[int, pydantic.Field(strict=True, ge=SEEDS[0], le=SEEDS[-1])]
# `{testbed-ppl: }` is a task without options, as `testbed-ppl` is.
Options = Annotated[
    dict[str, Any], pydantic.BeforeValidator(lambda said: {} if said is None else said)
]


class StandsFor(pydantic.BaseModel):
    """A published task that a measured one is compared with, and how the two differ."""

    model_config = pydantic.ConfigDict(extra="forbid")
    task: str
    why: str  # it is not the same: shown beside every number


class Published(pydantic.BaseModel):
    """`published:` of a grid: figures by name (`harness.grid.published`), of them those of `model`.

    `published: NAME` is short for `{name: NAME}`. A tolerance is in the printed unit: one of all
    figures, or by (published) task or metric. `tasks` has those that are measured otherwise than the
    published ones, or under another name.
    """

    model_config = pydantic.ConfigDict(extra="forbid")
    name: str
    model: str | None = None  # theirs; None: the one of the same name as the grid's
    tolerance: Tolerance | dict[str, Tolerance] | None = None
    tasks: dict[str, StandsFor] = {}

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
    report: ReportOptions = ReportOptions()
    seed: Seed | list[Seed] = 0
    allow_code_execution: bool = False
    mirror: str | None = None  # relative to the file that says it


def list_misnamed(
    file: GridFile,
    axes: Collection[str],
    tasks: Collection[str],
    printed: Collection[str],
    metrics: Collection[str],
) -> Iterator[Misfit]:
    """Names in `report` that are no axis or task of the grid, and in `published` no task or metric.

    `printed` and `metrics` are those of the published figures.
    """
    report, theirs = file.report, file.published or Published(name="")
    axis, task = ("axis", [*axes]), ("task", [*tasks])
    # A shared base may name in `rows` what this grid does not vary: it is left out of the names.
    constant = ("model", "seed", "label", "method", *file.defaults)
    shown = ("task", [*tasks, *COLUMNS])
    for where, given, (kind, known) in (
        (("report", "rows"), report.rows, ("axis", [*axes, *constant])),
        (("report", "over"), report.over, ("axis", [*axes, "seed"])),
        (("report", "effect"), report.effect, axis),
        (("report", "average"), report.average, task),
        (("report", "columns"), report.columns, shown),
        (("report", "decimals"), report.decimals, shown),
        (("published", "tasks"), theirs.tasks, task),
        (
            ("published", "tolerance"),
            theirs.tolerance,
            ("task or metric", [*shown[1], *printed, *metrics]),
        ),
    ):
        for place, name in _names(given):
            # A group of tasks, as mmlu, has its parts' names before an underscore.
            part = kind != "axis" and name.startswith(tuple(f"{group}_" for group in tasks))
            if name not in known and not part:
                words = (
                    f"{'.'.join(where)}: the grid has no {kind} {name!r}; {nearest(name, known)}"
                )
                yield Misfit((*where, *place), words)
    for ours, said in theirs.tasks.items():
        if said.task not in printed:
            words = f"published.tasks: no {said.task!r} is printed; {nearest(said.task, printed)}"
            yield Misfit(("published", "tasks", ours, "task"), words)


def _names(given: object) -> Iterator[tuple[Where, str]]:
    """The names in one, a list or a mapping of them, each with its place there."""
    if isinstance(given, str):
        yield (), given
    elif isinstance(given, list):
        yield from (((number,), name) for number, name in enumerate(given))
    elif isinstance(given, dict):
        yield from (((name,), name) for name in given)
