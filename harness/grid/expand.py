"""A grid: one YAML file, validated, expanded into cells that are graphs of stages.

    model: testbed
    method: bitdistiller                 # or {name: bitdistiller, format: nf, train.lr: 1e-4}
    vary: {format.bits: [2, 3], seed: [0, 1, 2]}
    compare: [bf16, rtn, awq-clip]       # axes that they lack collapse
    evaluate: [testbed-ppl, {testbed_code: {limit: 50}}]
    diagnose: [weights]                  # what figures show of a model's inside, first seed
    mirror: ../mirror                    # data sets from a folder, without a network

`base: other.yaml` takes over what another grid says; `defaults` and `report` are merged.

In this file: the cells and their stages. Not here: the file's keys (`schema`), its reading and its
errors (`reading`), the methods and their settings (`points`), what is computed and in which order
(`harness.run`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

from harness.config.document import Document
from harness.core.errors import BitgridError, GridError, TextError, nearest
from harness.core.misfit import Where
from harness.core.paths import check_file_name, read_path
from harness.core.records import Drawn, Match, Tuning
from harness.core.seeds import draw
from harness.core.stage import Stage, closure
from harness.data import hub
from harness.evaluation.diagnostics import DIAGNOSTICS, Facts, build_diagnostics, find_options
from harness.evaluation.evaluations import find_evaluation
from harness.evaluation.scores import Scores
from harness.grid.matching import match_budgets
from harness.grid.names import check_distinct, check_names, check_report, check_tasks
from harness.grid.points import Point, list_points
from harness.grid.reading import read_grid, read_named
from harness.grid.schema import GridFile
from harness.grid.seeds import read_seeds
from harness.grid.style import read_style
from harness.grid.tuning import Look, check_apart, choose, list_groups
from harness.method import Method
from harness.models import Model, Pretrained, pretrained, read_layer_shapes
from harness.models.rehearsal import rehearse_all


@dataclass(frozen=True)
class Cell:
    """One point of a grid: a model to make, and its scores."""

    id: str
    method: str
    label: str
    axes: dict[str, Any]
    seed: int
    source: str
    model: Stage[Model]
    scores: tuple[Stage[Scores], ...]
    diagnostics: tuple[Stage[Facts], ...] = ()
    published_bits: float | None = None  # a weight, of a reference: see `Pretrained.weights`
    tuning: Tuning | None = None  # how its settings were chosen, where the grid says `tune`
    is_trial: bool = False  # it is there to choose by, and is no row
    awaits: str = ""  # why its settings are not chosen yet; its scores are those of its trials
    match: Match | None = None  # its training budget, where the grid says `match`

    @property
    def roots(self) -> tuple[Stage[Any], ...]:
        """What is asked of the cell: everything else is on the way there."""
        return (*self.scores, *self.diagnostics)


@dataclass(frozen=True)
class Grid:
    """A validated grid. Its cells differ in method, axes or seed; equal work is one stage."""

    name: str
    path: Path
    files: tuple[Path, ...]  # the grid file, and those that it builds on
    question: str
    file: GridFile
    cells: tuple[Cell, ...]
    access: hub.Access = hub.Access()  # how its data sets are read
    awaiting: tuple[Cell, ...] = ()  # whose settings are not chosen yet
    varies: Drawn | None = None  # what differs between its seeds; None of one
    runs_code: bool = False  # that models write, which its file does not allow
    style: str | None = None  # of its figures: the text of the file that it names


def load(
    path: Path,
    allow_code_execution: bool = False,
    fill: Path | None = None,
    look: Look = lambda score: None,
) -> Grid:
    """Read, validate and expand a grid file.

    `fill`: data sets that the mirror lacks are asked of the hub, to be put there; into this folder
    where no mirror is named. `look`: the scores of trials, where the grid says `tune`.

    Raises GridError in one line: file, line, what was given, the nearest valid name.
    """
    try:
        name = check_file_name(path.stem, GridError)
    except GridError as error:
        raise GridError(f"{path}: {error}; rename the file") from None
    document, file = read_grid(path)
    if file.trust_remote_code:  # said before a model's configuration runs it
        print(f"{path}: trust_remote_code: code that comes with models is run", file=sys.stderr)
    access = _find_access(document, file, fill)
    # First: a misspelt axis explains what would follow, and lm-eval's index of tasks takes seconds.
    points = list_points(document, file)
    tasks = read_named(document, "evaluate", file.evaluate, lambda n: find_evaluation(n).options)
    diagnosed = read_named(document, "diagnose", file.diagnose, find_options)
    if not tasks:
        raise document.error(("evaluate",), "evaluate names no task")
    check_tasks(document, list(tasks))
    runs_code = not file.allow_code_execution and _find_code(list(tasks)) is not None
    if runs_code and not allow_code_execution:
        _refuse_code(document, list(tasks))
    with hub.reading(access):
        points = match_budgets(document, file, points, partial(_make_only, document, file))
        trials, picks = _choose_settings(document, file, points, look)
        cells = tuple(_list_cells(document, file, picks, tasks, diagnosed))
    axes = [*(cell.axes for cell in cells), *(point.tried for point in points)]
    check_names(document, file, axes, tasks)
    check_report(document, file, tasks)
    style = read_style(document, file)
    files = tuple(document.files)
    ready = tuple(cell for cell in cells if not cell.awaits)
    waiting = tuple(cell for cell in cells if cell.awaits)
    return Grid(
        name,
        path,
        files,
        document.comment,
        file,
        (*trials, *ready),
        access,
        waiting,
        read_seeds(document, file).of,
        runs_code,
        style,
    )


def _find_access(document: Document, file: GridFile, fill: Path | None) -> hub.Access:
    folder = None
    naming_file, _ = document.find(("mirror",))
    try:
        if file.mirror is not None:
            folder = read_path(file.mirror, TextError, naming_file.parent).resolve()
        return hub.find_access(folder, fill)
    except TextError as error:
        raise document.error(("mirror",), str(error)) from None


def _find_code(tasks: Sequence[str]) -> int | None:
    """The first task that runs code that a model wrote."""
    runs = (number for number, name in enumerate(tasks) if find_evaluation(name).runs_code)
    return next(runs, None)


def _refuse_code(document: Document, tasks: Sequence[str]) -> None:
    number = _find_code(tasks)
    assert number is not None
    raise document.error(
        ("evaluate", number),
        f"task {tasks[number]!r} runs code that a model wrote: say 'allow_code_execution: true' "
        "in the grid, or --allow-code-execution",
    )


class _Pick(NamedTuple):
    """A point that is a cell, and how its settings were chosen, or why they are not yet."""

    point: Point
    tuning: Tuning | None = None
    awaits: str = ""
    trials: tuple[Stage[Scores], ...] = ()


def _choose_settings(
    document: Document, file: GridFile, points: Sequence[Point], look: Look
) -> tuple[list[Cell], list[_Pick]]:
    """The trials of a grid, and its points with the settings that were chosen by them."""
    if file.tune is None:
        return [], list(map(_Pick, points))
    trials: list[Cell] = []
    picks: list[_Pick] = []
    build = partial(_make_only, document, file)

    for group in list_groups(points):
        first = [point for point in group if point.seed == points[0].seed]
        base, _ = _make_model(document, file, first[0])
        found = choose(document, file.tune, first, base, build, look)
        for trial in found.trials:
            cell = _describe_cell(file, trial.point, base, trial.model, (trial.score,))
            part = {} if trial.share == 1 else {"trained": str(trial.share)}
            name = f"{cell.id} (trial{', ' if part else ''}{''.join(part.values())})"
            trials.append(replace(cell, id=name, axes=cell.axes | part, is_trial=True))
        shown = first[0].tried if found.chosen is None else found.chosen
        chosen = [replace(each, tried={}) for each in group if each.tried == shown]
        scores = tuple(trial.score for trial in found.open)
        picks += [_Pick(point, found.tuning, found.awaits, scores) for point in chosen]
    return trials, picks


def _list_cells(
    document: Document,
    file: GridFile,
    picks: Sequence[_Pick],
    tasks: Mapping[str, Any],
    diagnosed: Mapping[str, Any],
) -> Iterator[Cell]:
    """A cell a point; of points that are equal, axes that collapse, the first."""
    seen: set[tuple[Any, ...]] = set()
    named: dict[str, Point] = {}
    checked: set[tuple[str, str]] = set()
    offered = set(DIAGNOSTICS.load())
    for point, tuning, awaits, trials in picks:
        cell = replace(_make_cell(document, file, point, tasks, checked), tuning=tuning)
        if awaits:
            cell = replace(cell, awaits=awaits, scores=trials)
        if (
            diagnosed and cell.seed == picks[0].point.seed
        ):  # a figure of a model's inside shows one seed
            stages = _diagnose(document, file, point, diagnosed)
            offered |= set(stages)
            inside = tuple(stage for name in diagnosed for stage in stages.get(name, ()))
            cell = replace(cell, diagnostics=inside)
        identity = (cell.label, cell.source, cell.seed, cell.model.key)
        if identity not in seen:
            seen.add(identity)
            for name in (cell.label, cell.id):
                is_label = name == cell.label
                check_distinct(document, name, is_label, point, named.setdefault(name, point))
            yield cell
    for number, name in enumerate(diagnosed):
        if name not in offered:
            message = f"no method here has the diagnostic {name!r}; {nearest(name, offered)}"
            raise document.error(("diagnose", number), message)


def _make_model(
    document: Document, file: GridFile, point: Point
) -> tuple[Pretrained, Stage[Model]]:
    """The full-precision model of a point, and the one that its method makes."""
    contender, source = point.contender, point.source
    try:
        base = pretrained(source, file.dtype, file.trust_remote_code, file.attention)
        read_layer_shapes(source, file.trust_remote_code)  # first: it is the model's fault
        rehearse_all([base])
    except BitgridError as error:
        place: Where = ("vary", "model") if "model" in file.vary else ("model",)
        raise document.error(place, str(error)) from None
    try:
        _check_method(point.method, source, file.trust_remote_code)
        model = draw(point.method.build(base, point.seeds.order), point.seeds)
        rehearse_all(closure([model]))
    except BitgridError as error:
        raise document.error(contender.where, f"{contender.label}: {error}") from None
    return base, model


@cache
def _check_method(method: Method, source: str, trust_remote_code: bool) -> None:
    """Raise BitgridError where a method cannot act on a model: once for all seeds."""
    method.check(read_layer_shapes(source, trust_remote_code))


def _make_only(document: Document, file: GridFile, point: Point) -> Stage[Model]:
    return _make_model(document, file, point)[1]


def _make_cell(
    document: Document,
    file: GridFile,
    point: Point,
    tasks: Mapping[str, Any],
    checked: set[tuple[str, str]],
) -> Cell:
    """`checked`: tasks, with the keys of the models on which they were, which a cell adds to."""
    base, model = _make_model(document, file, point)
    scores: list[Stage[Scores]] = []
    for number, (task, options) in enumerate(tasks.items()):
        try:
            evaluation = find_evaluation(task)
            if (task, base.key) not in checked:
                evaluation.check(options, base)
                checked.add((task, base.key))
            scores.append(evaluation.stage(model, options, base))
        except BitgridError as error:
            raise document.error(("evaluate", number, task), str(error)) from None
    if file.tune is not None:
        check_apart(document, file.tune, scores)
    return _describe_cell(file, point, base, model, tuple(scores))


def _describe_cell(
    file: GridFile,
    point: Point,
    base: Pretrained,
    model: Stage[Model],
    scores: tuple[Stage[Scores], ...],
) -> Cell:
    contender, seed, source = point.contender, point.seed, point.source
    axes = {**point.axes, **point.tried}
    axes = {"model": source, **axes} if "model" in file.vary else axes
    label, weights = contender.label, None
    if point.method.is_reference and contender.entry.method.is_reference:
        label = label if contender.is_labelled else base.title
        weights = base.weights
    parts = [label, *(f"{path}={value}" for path, value in axes.items()), f"seed={seed}"]
    return Cell(
        " ".join(parts),
        contender.entry.name,
        label,
        axes,
        seed,
        source,
        model,
        scores,
        published_bits=None if weights is None else weights.bits_per_weight,
        match=point.match,
    )


def _diagnose(
    document: Document, file: GridFile, point: Point, diagnosed: Mapping[str, Any]
) -> dict[str, tuple[Stage[Facts], ...]]:
    base = pretrained(point.source, file.dtype, file.trust_remote_code, file.attention)
    layers = read_layer_shapes(point.source, file.trust_remote_code)
    try:
        built = build_diagnostics(diagnosed, point.method, base, layers, point.seeds.order)
    except BitgridError as error:
        raise document.error(("diagnose",), str(error)) from None
    return {n: tuple(draw(each, point.seeds) for each in stages) for n, stages in built.items()}
