"""Whether the names in `report:` and `published:` are axes, tasks and figures that there are.

Not here: the names of methods and settings (`points`), of tasks (`harness.evaluation`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from harness.config.document import Document
from harness.core.errors import GridError, nearest
from harness.core.misfit import Misfit, Where
from harness.core.records import COLUMNS
from harness.grid import published
from harness.grid.schema import GridFile, Published


class _Names(NamedTuple):
    """Names that stand at a place of a grid, and those that may stand there."""

    where: Where
    value: object  # a name, or a list or a mapping of them
    kind: str
    known: Collection[str]


def check_names(
    document: Document, file: GridFile, axes: Collection[str], tasks: Collection[str]
) -> None:
    """Raise GridError where `report` or `published` name what is not there."""
    figures: list[dict[str, str]] = []
    if file.published is not None:
        try:
            path = published.find(file.published.name, file.published.model)
            figures = published.figures(path, file.published.model)
        except GridError as error:
            raise document.error(("published",), str(error)) from None
    for wrong in _list_misnamed(file, axes, tasks, figures):
        raise document.error(*wrong)


def _list_misnamed(
    file: GridFile,
    axes: Collection[str],
    tasks: Collection[str],
    figures: Collection[dict[str, str]],
) -> Iterator[Misfit]:
    comparison = file.published or Published(name="")
    published_tasks = {figure["task"] for figure in figures}
    metrics = {figure["metric"] for figure in figures}
    # A group of tasks, as mmlu, has its parts' names before an underscore.
    parts = tuple(f"{group}_" for group in tasks)
    for names in _list_named(file, comparison, axes, tasks, published_tasks | metrics):
        for place, name in _list_places(names.value):
            is_part = names.kind != "axis" and name.startswith(parts)
            if name not in names.known and not is_part:
                path = ".".join(str(step) for step in names.where)
                near = nearest(name, names.known)
                message = f"{path}: {names.kind} {name!r} is unknown; {near}"
                yield Misfit((*names.where, *place), message)
    for measured, stand_in in comparison.tasks.items():
        if stand_in.task not in published_tasks:
            near = nearest(stand_in.task, published_tasks)
            message = f"published.tasks: task {stand_in.task!r} has no published figure; {near}"
            yield Misfit(("published", "tasks", measured, "task"), message)


def _list_named(
    file: GridFile,
    comparison: Published,
    axes: Collection[str],
    tasks: Collection[str],
    published_names: Collection[str],
) -> Iterator[_Names]:
    report, columns = file.report, [*tasks, *COLUMNS]
    # A shared base may name in `rows` what this grid does not vary: it is left out of the names.
    constant = ("model", "seed", "label", "method", *file.defaults)
    tolerable = [*columns, *published_names]
    yield _Names(("report", "rows"), report.rows, "axis", [*axes, *constant])
    yield _Names(("report", "over"), report.over, "axis", [*axes, "seed"])
    yield _Names(("report", "effect"), report.effect, "axis", axes)
    yield _Names(("report", "average"), report.average, "task", tasks)
    yield _Names(("report", "columns"), report.columns, "task", columns)
    yield _Names(("report", "decimals"), report.decimals, "task", columns)
    yield _Names(("published", "tasks"), comparison.tasks, "task", tasks)
    yield _Names(("published", "tolerance"), comparison.tolerance, "task or metric", tolerable)


def _list_places(value: object) -> Iterator[tuple[Where, str]]:
    """The names in one, a list or a mapping of them, each with its place there."""
    if isinstance(value, str):
        yield (), value
    elif isinstance(value, list):
        yield from (((number,), name) for number, name in enumerate(value))
    elif isinstance(value, dict):
        yield from (((name,), name) for name in value)
