"""Whether the names in `report:` and `published:` are axes, tasks and figures that there are, and
whether each label and each cell's id is the name of one thing.

Not here: the names of methods and settings (`points`), of tasks (`harness.evaluation`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from harness.config.document import Document
from harness.config.settings import describe_setting, list_settings
from harness.core.errors import GridError, nearest
from harness.core.misfit import Misfit, Where
from harness.core.model_names import may_be_called
from harness.core.paths import read_path
from harness.core.records import AVERAGE, COLUMNS
from harness.core.report_options import find_misnamed
from harness.evaluation.evaluations import find_evaluation
from harness.grid import published
from harness.grid.points import Point
from harness.grid.schema import GridFile, Published


class _Names(NamedTuple):
    """Names that stand at a place of a grid, and those that may stand there."""

    where: Where
    value: object  # a name, or a list or a mapping of them
    kind: str
    known: Collection[str]


def check_names(
    document: Document,
    file: GridFile,
    settings: Sequence[Mapping[str, Any]],
    tasks: Collection[str],
) -> None:
    """Raise GridError where `report` or `published` name what is not there.

    settings: axis -> value, what varies of each cell and, where settings are tuned, each trial.
    """
    axes = dict.fromkeys(axis for each in settings for axis in each)
    figures: list[dict[str, str]] = []
    if file.published is not None:
        try:
            path = published.find(file.published.name, file.published.model)
            figures = published.figures(path, file.published.model)
        except GridError as error:
            raise document.error(("published",), str(error)) from None
        _check_model(document, file.model, file.published)
    for wrong in _list_misnamed(file, axes, tasks, figures):
        raise document.error(*wrong)
    if (misnamed := find_misnamed(file.report.names, settings, _list_scored(tasks))) is not None:
        key, why = misnamed
        raise document.error(("report", "names", key), f"report.names: {why}")


def _check_model(document: Document, model: str, stated: Published) -> None:
    """Raise GridError where a model on the hub cannot be the one whose figures are asked for.

    A folder may be called as it likes, and the testbed stands in for a paper's model: the report
    says so in their case, and subtracts nothing.
    """
    on_hub = "/" in model and not read_path(model, GridError).exists()
    if stated.model is not None and on_hub and not may_be_called(model, stated.model):
        known = dict.fromkeys(f["model"] for f in published.figures(published.find(stated.name)))
        alike = [name for name in known if may_be_called(model, name)]
        hint = f"figures of {alike[0]!r} are there" if alike else "it has none of this model"
        raise document.error(
            ("published", "model"),
            f"published.model: {stated.model!r} is not the grid's model {model!r}; {hint}",
        )


def check_tasks(document: Document, tasks: Sequence[str]) -> None:
    """Raise GridError where two tasks of `evaluate` have rows of one name: a group and a member."""
    owners: dict[str, str] = {}
    for number, name in enumerate(tasks):
        for task in find_evaluation(name).tasks:
            if (owner := owners.setdefault(task, name)) != name:
                shared = "" if task in (name, owner) else f" share the task {task!r}, and"
                raise document.error(
                    ("evaluate", number),
                    f"{owner!r} and {name!r}{shared} would both have rows of it: leave one out",
                )


def check_report(document: Document, file: GridFile, tasks: Collection[str]) -> None:
    """Raise GridError where `report.average` or `report.columns` leave nothing to be shown."""
    columns = {
        column: evaluation
        for evaluation in map(find_evaluation, tasks)
        for column in evaluation.columns
    }
    scores = [column for column, evaluation in columns.items() if evaluation.higher_is_better]
    for number, task in enumerate(file.report.average or ()):
        if task not in scores:
            message = f"report.average: {task!r} cannot join a mean of scores: lower is better"
            raise document.error(("report", "average", number), message)
    shown = file.report.shown
    has_average = AVERAGE in shown and len(file.report.list_averaged(scores)) > 1
    if shown and not has_average and not any(name in columns for name in shown):
        hint = "; an average is of two tasks or more: see 'average'" if AVERAGE in shown else ""
        message = f"report.columns: none of {', '.join(shown)} is a column of scores{hint}"
        raise document.error(("report", "columns"), message)


def check_distinct(
    document: Document, name: str, is_label: bool, point: Point, first: Point
) -> None:
    """Raise GridError where a label or a cell's id, which `first` has, is another point's too.

    Tables tell rows apart by label, settings and seed. Two methods of one label would be taken for
    one, and of two cells of one id no report could be made.
    """
    ours, theirs = point.contender, first.contender
    if point is first or (ours is theirs and is_label):  # whose axes tell them apart
        return
    differences = _list_differences(first, point)
    if ours is theirs:
        raise document.error(
            ("vary",), f"two cells are called {name!r}, which differ in {differences}"
        )
    file, line = document.find(theirs.where)
    raise document.error(
        ours.where,
        f"{name!r} is the name of another method already ({file.name}:{line}), which differs in "
        f"{differences}: give this one a 'label' of its own",
    )


def _list_differences(first: Point, second: Point) -> str:
    """What the methods of two points differ in: components, or else settings."""
    entries = first.contender.entry, second.contender.entry
    one, other = (dict(list_settings(point.method)) for point in (first, second))
    unlike: list[str] = []
    for path in {**one, **other}:
        pair = one.get(path), other.get(path)
        is_inside = any(path.startswith(f"{above}.") for above in unlike)
        is_same_class = dataclasses.is_dataclass(pair[0]) and type(pair[0]) is type(pair[1])
        if pair[0] != pair[1] and not is_inside and not is_same_class:
            unlike.append(path)
    pairs = {
        path: (describe_setting(one.get(path)), describe_setting(other.get(path)))
        for path in unlike
    }
    if entries[0].name != entries[1].name:
        pairs = {"method": (entries[0].name, entries[1].name), **pairs}
    return ", ".join(f"{path} ({theirs}, here {ours})" for path, (theirs, ours) in pairs.items())


def _list_misnamed(
    file: GridFile,
    axes: Collection[str],
    tasks: Collection[str],
    figures: Collection[dict[str, str]],
) -> Iterator[Misfit]:
    comparison = file.published or Published(name="")
    published_tasks = {figure["task"] for figure in figures}
    others = {figure[kind] for figure in figures for kind in ("metric", "method")}
    # Figures of a group of tasks, as mmlu, have its parts' names before an underscore.
    parts = tuple(f"{group}_" for group in tasks)
    for names in _list_named(file, comparison, axes, tasks, published_tasks | others):
        for place, name in _list_places(names.value):
            is_part = names.where[0] == "published" and name.startswith(parts)
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
    scored = _list_scored(tasks)
    report, columns = file.report, [*scored, *COLUMNS]
    # A shared base may name in `rows` what this grid does not vary: it is left out of the names.
    constant = ("model", "seed", "label", "method", *file.defaults)
    tolerable = [*columns, *published_names]
    yield _Names(("report", "rows"), report.rows, "axis", [*axes, *constant])
    yield _Names(("report", "over"), report.over, "axis", [*axes, "seed"])
    yield _Names(("report", "effect"), report.effect, "axis", axes)
    yield _Names(("report", "average"), report.average, "task", scored)
    yield _Names(("report", "columns"), report.columns, "task", columns)
    yield _Names(("report", "decimals"), report.decimals, "task", columns)
    yield _Names(("published", "tasks"), comparison.tasks, "task", tasks)
    yield _Names(
        ("published", "tolerance"), comparison.tolerance, "method, task or metric", tolerable
    )


def _list_scored(tasks: Collection[str]) -> list[str]:
    return [column for task in tasks for column in find_evaluation(task).columns]


def _list_places(value: object) -> Iterator[tuple[Where, str]]:
    """The names in one, a list or a mapping of them, each with its place there."""
    if isinstance(value, str):
        yield (), value
    elif isinstance(value, list):
        yield from (((number,), name) for number, name in enumerate(value))
    elif isinstance(value, dict):
        yield from (((name,), name) for name in value)
