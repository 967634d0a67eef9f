"""A grid: one YAML file, validated, expanded into cells that are graphs of stages.

    model: testbed
    method: bitdistiller                 # or {name: bitdistiller, format: nf, train.lr: 1e-4}
    vary: {format.bits: [2, 3], seed: [0, 1, 2]}
    compare: [bf16, rtn, awq-clip]       # axes that they lack collapse
    evaluate: [testbed-ppl, {testbed_code: {limit: 50}}]
    diagnose: [weights]                  # what figures show of a model's inside, first seed
    mirror: ../mirror                    # data sets from a folder, without a network

`base: other.yaml` takes over what another grid says, or several; `defaults` and `report` are merged.

In this file: the expansion, the errors with file and line. Not here: the file's keys (`gridfile`), what
a method's fields mean (`settings`), what is computed and in which order (`plan`, `run`).
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from harness.config.document import Document
from harness.config.settings import configure, list_possible, list_settings
from harness.core.errors import BitgridError, GridError, SettingError, TextError, nearest
from harness.core.misfit import Where, explain, show
from harness.core.records import Finding, ReportOptions
from harness.core.stage import Stage
from harness.data import hub
from harness.evaluation.diagnostics import Facts, Options, diagnostics
from harness.evaluation.evaluate import PERPLEXITY, Scores, TaskOptions, evaluation, runs_code
from harness.grid import published
from harness.grid.schema import SEEDS, GridFile, Published, misnamed
from harness.method import METHODS, Entry, Method
from harness.models import Model, layer_shapes, pretrained

Given = TypeVar("Given")


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

    @property
    def roots(self) -> tuple[Stage[Any], ...]:
        """What is asked of the cell: everything else is on the way there."""
        return (*self.scores, *self.diagnostics)


@dataclass(frozen=True)
class Grid:
    """A validated grid. `cells` differ in method, axes or seed; equal work is one stage all the same."""

    name: str
    path: Path
    files: tuple[Path, ...]  # the grid file, and those that it builds on
    question: str
    file: GridFile
    cells: tuple[Cell, ...]
    access: hub.Access = hub.Access()  # how its data sets are read


def load(path: Path, allow_code_execution: bool = False, fill: Path | None = None) -> Grid:
    """Read, validate and expand a grid file.

    `fill`: data sets that the mirror lacks are asked of the hub, to be put there; into this folder
    where no mirror is named.

    Raises GridError in one line: file, line, what was given, the nearest valid name.
    """
    document = Document(path, merged=("defaults", "report"))
    file = _validate(document)
    if file.trust_remote_code:  # said before a model's configuration runs it
        print(f"{path}: trust_remote_code: code that comes with models is run", file=sys.stderr)
    access = _find_access(document, file, fill)
    tasks = _tasks(document, file)
    if not (allow_code_execution or file.allow_code_execution):
        for number, name in enumerate(tasks):
            if runs_code(name):
                raise document.error(
                    ("evaluate", number),
                    f"task {name!r} runs code that a model wrote: say 'allow_code_execution: true' "
                    "in the grid, or --allow-code-execution",
                )
    asked = _listed(document, "diagnose", "diagnostic", file.diagnose, Options)
    with hub.reading(access):
        cells = tuple(_cells(document, file, tasks, asked))
    _check_report(document, file, cells, tasks)
    files = tuple(document.files)
    return Grid(path.stem, path, files, document.comment, file, cells, access)


def _validate(document: Document) -> GridFile:
    if not isinstance(document.data, dict):
        raise document.error((), "a grid is a mapping with at least model, method and evaluate")
    try:
        return GridFile.model_validate(document.data)
    except pydantic.ValidationError as error:
        known: Mapping[str, type] = {
            "": GridFile,
            "report": ReportOptions,
            "report.finding": Finding,
            "published": Published,
        }
        raise document.error(*explain(error, document.data, known)) from None


def _check_report(document: Document, file: GridFile, cells: Iterable[Cell], tasks: Any) -> None:
    """Raises GridError where report or tolerance name what the grid has not."""
    axes = dict.fromkeys(axis for cell in cells for axis in cell.axes)
    figures: list[dict[str, str]] = []
    if file.published is not None:
        try:
            path = published.find(file.published.name, file.published.model)
            figures = published.figures(path, file.published.model)
        except GridError as error:
            raise document.error(("published",), str(error)) from None
    printed, metrics = ({figure[name] for figure in figures} for name in ("task", "metric"))
    for wrong in misnamed(file, axes, tasks, printed, metrics):
        raise document.error(*wrong)
    for number, task in enumerate(file.report.average or ()):
        if task in PERPLEXITY:
            message = f"report.average: {task!r} is a perplexity, and lower is better there"
            raise document.error(("report", "average", number), message)


def _find_access(document: Document, file: GridFile, fill: Path | None) -> hub.Access:
    folder = None
    if file.mirror is not None:
        said, _ = document.places[("mirror",)]
        folder = (said.parent / Path(file.mirror).expanduser()).resolve()
    try:
        return hub.find_access(folder, fill)
    except TextError as error:
        raise document.error(("mirror",), str(error)) from None


def _tasks(document: Document, file: GridFile) -> dict[str, TaskOptions]:
    """`evaluate:` as options by task name."""
    found = _listed(document, "evaluate", "task", file.evaluate, TaskOptions)
    if not found:
        raise document.error(("evaluate",), "evaluate names no task")
    return found


def _listed(
    document: Document,
    key: str,
    kind: str,
    items: Sequence[str | Mapping[str, Any]],
    options: type[Given],
) -> dict[str, Given]:
    """A list of names, each alone or with options, as options by name."""
    found: dict[str, Given] = {}
    for number, item in enumerate(items):
        given: Mapping[str, Any] = {item: {}} if isinstance(item, str) else item
        for name, asked in given.items():
            where: Where = (key, number, name)
            names = list(inspect.signature(options).parameters)
            for option in asked:
                if option not in names:
                    message = f"{kind} option {option!r} is unknown; {nearest(option, names)}"
                    raise document.error((*where, option), message)
            if name in found:
                raise document.error(where, f"{kind} {name!r} is given twice")
            try:
                found[name] = pydantic.TypeAdapter(options).validate_python(asked)
            except pydantic.ValidationError as error:
                wrong = explain(error, asked, prefix=name)
                raise document.error((*where, *wrong.where), wrong.message) from None
    return found


@dataclass
class _Entry:
    """A method as one grid names it: the main one, or one compared against."""

    where: Where
    registered: Entry
    label: str
    own: dict[str, Any]
    main: bool


def _entries(document: Document, file: GridFile) -> list[_Entry]:
    found = []
    places: list[tuple[Where, str | dict[str, Any]]] = [(("method",), file.method)]
    places += [(("compare", number), item) for number, item in enumerate(file.compare)]
    for where, given in places:
        own = {"name": given} if isinstance(given, str) else dict(given)
        name = own.pop("name", None)
        if name is None:
            raise document.error(where, "a method needs a 'name'")
        try:
            registered = METHODS.find(str(name))
        except GridError as error:
            raise document.error((*where, "name"), str(error)) from None
        label = str(own.pop("label", registered.title))
        found.append(_Entry(where, registered, label, own, main=where == ("method",)))
    return found


def _cells(
    document: Document,
    file: GridFile,
    tasks: dict[str, TaskOptions],
    asked: dict[str, Options],
) -> Iterator[Cell]:
    axes = dict(file.vary)
    if "seed" not in axes:
        axes["seed"] = file.seed if isinstance(file.seed, list) else [file.seed]
    axes.setdefault("model", [file.model])
    for path, values in axes.items():
        if not values:
            raise document.error(("vary", path), f"axis {path!r} has no values")
    for number, seed in enumerate(axes["seed"]):
        if not isinstance(seed, int) or isinstance(seed, bool) or seed not in SEEDS:
            message = f"seed {show(seed)} is no whole number of 64 bits"
            raise document.error(("vary", "seed", number), message)
    for number, source in enumerate(axes["model"]):
        if not isinstance(source, str):
            raise document.error(("vary", "model", number), f"model {show(source)} is no name")
    entries = _entries(document, file)
    used: set[str] = {"seed", "model"}
    points = []
    for entry in entries:
        for point in itertools.product(*axes.values()):
            chosen = dict(zip(axes, point, strict=True))
            points.append((entry, chosen, *_configured(document, file, entry, chosen, used)))
    # Before anything is built: a misspelt axis explains the errors that would follow from it. A
    # default may be for a component that this grid does not choose, since bases share defaults.
    known = {path for entry in entries for path in list_possible(entry.registered.method)}
    for section, paths, valid in (("vary", file.vary, used), ("defaults", file.defaults, known)):
        for path in paths:
            if path not in valid:
                message = f"{path!r} is no setting of any method here; {nearest(path, known)}"
                raise document.error((section, path), message)
    seen: set[tuple[Any, ...]] = set()
    offered: set[str] = set()
    for entry, chosen, method, shown in points:
        cell = _cell(document, file, tasks, entry, chosen, method, shown)
        if asked and cell.seed == axes["seed"][0]:  # a figure of a model's inside shows one seed
            found = _inside(document, file, asked, method, cell)
            offered |= set(found)
            inside = tuple(stage for name in asked for stage in found.get(name, ()))
            cell = replace(cell, diagnostics=inside)
        identity = (entry.label, cell.source, cell.seed, cell.model.key)
        if identity not in seen:
            seen.add(identity)
            yield cell
    for number, name in enumerate(asked):
        if name not in offered:
            message = f"no method here has the diagnostic {name!r}; {nearest(name, offered)}"
            raise document.error(("diagnose", number), message)


def _cell(
    document: Document,
    file: GridFile,
    tasks: dict[str, TaskOptions],
    entry: _Entry,
    chosen: dict[str, Any],
    method: Method,
    axes: dict[str, Any],
) -> Cell:
    seed, source = chosen["seed"], chosen["model"]
    try:
        base = pretrained(source, file.dtype, file.trust_remote_code, file.attention)
        shapes = layer_shapes(source, file.trust_remote_code)
    except BitgridError as error:
        place: Where = ("vary", "model") if "model" in file.vary else ("model",)
        raise document.error(place, str(error)) from None
    try:
        method.check(shapes)
        model = method.build(base, seed)
    except BitgridError as error:
        raise document.error(entry.where, f"{entry.label}: {error}") from None
    scores = []
    for number, (task, options) in enumerate(tasks.items()):
        try:
            scores.append(evaluation(model, task, options, base))
        except BitgridError as error:
            raise document.error(("evaluate", number, task), str(error)) from None
    if "model" in file.vary:
        axes = {"model": source, **axes}
    parts = [entry.label, *(f"{path}={shown}" for path, shown in axes.items()), f"seed={seed}"]
    name = " ".join(parts)
    return Cell(name, entry.registered.name, entry.label, axes, seed, source, model, tuple(scores))


def _inside(
    document: Document,
    file: GridFile,
    asked: dict[str, Options],
    method: Method,
    cell: Cell,
) -> dict[str, tuple[Stage[Facts], ...]]:
    base = pretrained(cell.source, file.dtype, file.trust_remote_code, file.attention)
    layers = layer_shapes(cell.source, file.trust_remote_code)
    try:
        return diagnostics(asked, method, base, layers, cell.seed)
    except BitgridError as error:
        raise document.error(("diagnose",), str(error)) from None


def _configured(
    document: Document, file: GridFile, entry: _Entry, chosen: dict[str, Any], used: set[str]
) -> tuple[Method, dict[str, Any]]:
    """The entry's method at one point of the axes, and the axes that it has.

    An axis wins over the entry's own settings for the main method; a compared method keeps what it
    sets itself and what makes it what it is (`fixed`), so that there the axis collapses.
    """
    fixed = set() if entry.main else {*entry.registered.fixed, *entry.own}
    varied: dict[str, Any] = {}
    axis_of: dict[str, str] = {}
    for axis, given in chosen.items():
        if axis not in ("seed", "model"):
            kept = {axis: given} if axis not in fixed else _parts(axis, given)
            kept = {path: part for path, part in kept.items() if path not in fixed}
            varied |= kept
            axis_of |= dict.fromkeys(kept, axis)
    defaults = {p: v for p, v in file.defaults.items() if p not in fixed}
    settings = {**defaults, **entry.own, **varied}
    configured, axes = entry.registered.method, {}
    # A component before its parts: `format: nf`, then `format.bits: 3`.
    for path in sorted(settings, key=lambda path: path.count(".")):
        where: Where = (*entry.where, path) if path in entry.own else ("defaults", path)
        if path in varied:
            axis = axis_of[path]
            where = ("vary", axis, file.vary[axis].index(chosen[axis]))
        lacking = path not in dict(list_settings(configured))
        if lacking and (path in varied or path not in entry.own):
            continue
        try:
            configured = configure(configured, {path: settings[path]})
        except SettingError as error:
            raise document.error(where, str(error)) from None
        if path in varied:
            used.add(axis_of[path])
            axes[path] = _shown(settings[path])
    return configured, {path: axes[path] for path in varied if path in axes}


def _parts(axis: str, given: Any) -> dict[str, Any]:
    """What an axis value says beside the component's name, for a method that keeps its own.

    `format: {name: nf, bits: 3}` still says `format.bits: 3` where the format is kept.
    """
    if not isinstance(given, Mapping):
        return {}
    return {f"{axis}.{part}": value for part, value in given.items() if part != "name"}


def _shown(given: Any) -> Any:
    """An axis value as tables show it: `{name: nf, bits: 3}` -> `nf bits=3`."""
    if isinstance(given, Mapping):
        parts = [str(given["name"])] if "name" in given else []
        return " ".join(parts + [f"{k}={v}" for k, v in given.items() if k != "name"])
    return given
