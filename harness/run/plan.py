"""A plan: the stages that a grid's cells need, each once.

A plan is plain JSON, kept in the store with what it was made from. While that is the same, wherever
it lies, `status`, `report` and a finished `run` read it without importing torch or any method.
`Plan.stages` makes the stages again from what the plan says of them, so that a job or a process of
a training needs no grid.
Not here: what a plan was made from (`harness.run.basis`), where plans are kept
(`harness.run.remembering`), how far their stages are
(`harness.run.states`), running them (`harness.run.runner`), the grid's file (`harness.grid`).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.core import provenance
from harness.core.errors import BitgridError, StoreError
from harness.core.files import write_json
from harness.run.basis import Basis, Watched, describe_basis

if TYPE_CHECKING:
    from harness.core.definitions import Code
    from harness.core.reads import Read
    from harness.core.records import Drawn
    from harness.core.stage import Stage
    from harness.core.store import Store
    from harness.grid.expand import Cell, Grid

SCHEMA = 10


Mark: TypeAlias = tuple[str, int, int]  # file, size, time of change in ns


@dataclass(frozen=True)
class Node:
    """One stage of a plan, without its code."""

    kind: str
    title: str  # the first cell that needs it
    stored: bool
    inputs: tuple[str, ...]
    code: str  # digest of the code that would compute it now
    stage: dict[str, Any]  # kind, version and fields, as in a manifest
    gpus: int  # what a job that runs it asks for: see `stage.Resources`
    memory_gib: float
    hours: float
    disk_gib: float = 0.0  # of the store, for its value, where that is large
    nodes: int = 1
    files: tuple[Mark, ...] = ()  # what the key was made from, beside the fields
    why: str | None = None  # why it is new, where a plan of this grid had another one in its place


@dataclass(frozen=True)
class CellInfo:
    """One cell, its stages by key."""

    id: str
    method: str
    label: str
    axes: dict[str, Any]
    seed: int
    source: str
    model: str
    scores: tuple[str, ...]
    diagnostics: tuple[str, ...] = ()
    published_bits: float | None = None  # a weight, of the reference, where files tell
    tuning: dict[str, Any] | None = None  # how its settings were chosen: see `records.Tuning`
    is_trial: bool = False  # it is there to choose by, and is no row
    awaits: str = ""  # why its settings are not chosen yet; its scores are those of its trials
    match: dict[str, Any] | None = None  # its training budget: see `records.Match`

    @property
    def roots(self) -> tuple[str, ...]:
        """What is asked of the cell: everything else is on the way there."""
        return self.scores + self.diagnostics


@dataclass(frozen=True)
class Plan:
    name: str
    path: str
    question: str
    model: str
    report: dict[str, Any]
    published: dict[str, Any] | None
    cells: tuple[CellInfo, ...]
    nodes: dict[str, Node]  # inputs before users
    basis: Basis = Basis()  # what it was made from
    code: dict[str, dict[str, str]] = field(default_factory=dict)  # digest -> definitions, digests
    awaiting: tuple[CellInfo, ...] = ()  # cells whose settings are not chosen yet
    varies: Drawn | None = None  # what differs between seeds; None of one
    kinds: tuple[str, ...] = ()  # all kinds of stages that there were
    runs_code: bool = False  # of models, which the grid's file itself does not allow
    advice: tuple[str, ...] = ()  # by what it would cost less, or say more
    style: str | None = None  # of its figures: settings of matplotlib

    @property
    def rows(self) -> tuple[CellInfo, ...]:
        """The cells that are rows of its table, not trials."""
        return tuple(cell for cell in self.cells if not cell.is_trial)

    def stored(self) -> list[str]:
        """Keys of the stages that are kept, inputs first."""
        return [key for key, node in self.nodes.items() if node.stored]

    def upstream(self, key: str, known: Container[str] = ()) -> list[str]:
        """Keys of all stages that `key` needs, itself last, without those of `known` and what
        these need."""
        keys: dict[str, None] = {}

        def visit(at: str) -> None:
            if at not in keys and at not in known:
                for above in self.nodes[at].inputs:
                    visit(above)
                keys[at] = None

        visit(key)
        return list(keys)

    def stages(self, keys: Iterable[str] | None = None) -> dict[str, Stage[Any]]:
        """The stages of `keys` (all) and what they need, made from their descriptions.

        Raises BitgridError where the code has changed so that one would have another key, or where
        a file has changed that a key was made from.
        """
        wanted = self.nodes if keys is None else {up for key in keys for up in self.upstream(key)}
        for key in wanted:
            for mark in self.nodes[key].files:
                if not is_unchanged(mark):
                    raise BitgridError(
                        f"{mark[0]} has changed since the plan was made; start again"
                    )
        return rebuild_stages({key: self.nodes[key].stage for key in self.nodes if key in wanted})


def rebuild_stages(descriptions: Mapping[str, Mapping[str, Any]]) -> dict[str, Stage[Any]]:
    """Stages by key from their descriptions, inputs before users. Raises BitgridError."""
    from harness.core.stage import Stage
    from harness.evaluation.diagnostics import DIAGNOSTICS
    from harness.evaluation.evaluations import EVALUATIONS
    from harness.method import METHODS

    for registry in (METHODS, EVALUATIONS, DIAGNOSTICS):
        registry.load()  # their kinds of stages are known now
    stages: dict[str, Stage[Any]] = {}
    for key, description in descriptions.items():
        stage = Stage.from_description(description, stages)
        if stage.key != key:
            raise BitgridError(f"{stage.kind} {key} is another stage with this code; start again")
        stages[key] = stage
    return stages


def build(grid: Grid) -> Plan:
    """The plan of a validated grid."""
    from harness.core.definitions import reach
    from harness.core.stage import closure, find_code, kinds
    from harness.run.in_domain import describe_in_domain
    from harness.run.rereading import describe_rereads

    nodes: dict[str, Node] = {}
    stages: list[Stage[Any]] = []
    codes: dict[int, Code] = {}
    marks: dict[tuple[Read, ...], tuple[Mark, ...]] = {}
    watched = _list_code()
    for cell in grid.cells:
        for stage in closure([cell.model, *cell.roots]):
            if stage.key in nodes:
                continue
            stages.append(stage)
            if (reads := stage.reads()) not in marks:
                files = {file for read in reads for file in read.files()}
                watched |= files
                marks[reads] = tuple(mark_file(path) for path in sorted(files))
            behind = reach(find_code(stage))
            codes[id(behind)] = behind
            nodes[stage.key] = Node(
                kind=stage.kind,
                title=f"{getattr(stage, 'task', '')} {cell.id}".strip(),
                stored=stage.stored,
                inputs=tuple(above.key for above in stage.inputs),
                code=behind.digest,
                stage=stage.description(),
                **vars(stage.resources),
                files=marks[reads],
            )
    watched = watched.union(*(each.files for each in codes.values()))
    in_domain = describe_in_domain(
        [(cell.label, cell.model.key) for cell in grid.cells],
        dict.fromkeys(each.key for cell in grid.cells if not cell.is_trial for each in cell.scores),
        {key: node.stage for key, node in nodes.items()},
    )
    return Plan(
        name=grid.name,
        path=str(grid.path.resolve()),
        question=grid.question,
        model=grid.file.model,
        report=asdict(grid.file.report),
        style=grid.style,
        published=grid.file.published.model_dump() if grid.file.published else None,
        cells=tuple(map(_describe, grid.cells)),
        nodes=nodes,
        basis=describe_basis(grid.files, grid.file.model_dump(), watched),
        code={each.digest: dict(each.definitions) for each in codes.values()},
        awaiting=tuple(
            replace(_describe(cell), model="", diagnostics=()) for cell in grid.awaiting
        ),
        varies=grid.varies,
        kinds=tuple(sorted(kinds())),
        runs_code=grid.runs_code,
        advice=(*describe_rereads(stages), *in_domain),
    )


def _list_code() -> set[Path]:
    """The project's files, and those in which something is registered."""
    from harness.data.sources import TEXTS
    from harness.evaluation.diagnostics import DIAGNOSTICS
    from harness.evaluation.evaluations import EVALUATIONS
    from harness.method import METHODS
    from harness.models.registry import MODELS

    registries = (METHODS, MODELS, TEXTS, EVALUATIONS, DIAGNOSTICS)
    return {*provenance.list_sources()}.union(*(each.files() for each in registries))


def _describe(cell: Cell) -> CellInfo:
    """A cell without its stages."""
    return CellInfo(
        id=cell.id,
        method=cell.method,
        label=cell.label,
        axes=cell.axes,
        seed=cell.seed,
        source=cell.source,
        model=cell.model.key,
        scores=tuple(stage.key for stage in cell.scores),
        diagnostics=tuple(stage.key for stage in cell.diagnostics),
        published_bits=cell.published_bits,
        tuning=None if cell.tuning is None else asdict(cell.tuning),
        is_trial=cell.is_trial,
        awaits=cell.awaits,
        match=None if cell.match is None else asdict(cell.match),
    )


def write(plan: Plan, path: Path) -> None:
    """Keep a plan in a file, for `read`. Raises StoreError."""
    try:
        nodes = {key: vars(node) for key, node in plan.nodes.items()}
        cells = {name: list(map(vars, getattr(plan, name))) for name in ("cells", "awaiting")}
        head = {"schema": SCHEMA, "text": plan.basis.text}  # first: see `begin`
        whole = {**head, **vars(plan), "nodes": nodes, **cells, "basis": vars(plan.basis)}
        write_json(path, whole, indent=None)  # as it is: `asdict` would copy all of it
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from None


def begin(text: str) -> bytes:
    """How the files of all plans begin that were made of a grid with this text, by its digest."""
    return json.dumps({"schema": SCHEMA, "text": text}).encode()[:-1]


def read(path: Path) -> Plan:
    """The plan in a file. Raises BitgridError where it is of another version or unreadable."""
    try:
        raw = json.loads(path.read_text())
        if raw.pop("schema") == SCHEMA:
            return _read(raw)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BitgridError(f"{path} cannot be read: {error}") from None
    raise BitgridError(f"{path} is of another version of bitgrid")


def read_known(store: Store) -> Iterator[Plan]:
    """The plans that a store keeps, of this version and as far as they can be read."""
    for path in sorted((store.root / "plans").glob("*.json")):
        with contextlib.suppress(BitgridError):
            yield read(path)


def _read(raw: dict[str, Any]) -> Plan:
    del raw["text"]
    lists = ("scores", "diagnostics")
    for cells in ("cells", "awaiting"):
        raw[cells] = tuple(
            CellInfo(**{**c, **{name: tuple(c[name]) for name in lists}}) for c in raw[cells]
        )
    raw["nodes"] = {
        key: Node(**{**node, "inputs": tuple(node["inputs"]), "files": _marks(node["files"])})
        for key, node in raw["nodes"].items()
    }
    files = tuple(Watched(*each) for each in raw["basis"]["files"])
    raw["basis"] = Basis(**{**raw["basis"], "files": files})
    raw["kinds"], raw["advice"] = tuple(raw["kinds"]), tuple(raw.get("advice", ()))
    return Plan(**raw)


def _marks(raw: Iterable[Any]) -> tuple[Mark, ...]:
    return tuple((str(path), int(size), int(changed)) for path, size, changed in raw)


def mark_file(path: Path) -> Mark:
    """What tells that a file has changed. Raises OSError."""
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def is_unchanged(mark: Mark) -> bool:
    """Whether a file is as it was when it was marked."""
    try:
        return mark_file(Path(mark[0])) == mark
    except OSError:
        return False
