"""A plan: the stages that a grid's cells need, each once, and how far they are.

A plan is plain JSON, kept in the store with a list of the files it was made from. While those are
unchanged, `status`, `report` and a finished `run` read it without importing torch or any method.
`Plan.stages` makes the stages again from what the plan says of them, so that a job or a process of
a training needs no grid.
Not here: running stages (`harness.run.runner`), the grid's file (`harness.grid`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from harness.core import provenance
from harness.core.errors import BitgridError
from harness.core.store import Store, write_json

if TYPE_CHECKING:
    from harness.core.stage import Stage
    from harness.grid.expand import Grid

SCHEMA = 6
STATES = ("done", "stale", "running", "failed", "blocked", "queued")


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
    watch: tuple[Mark, ...]
    mirror: str | None = None  # the environment's, when the plan was made
    code: dict[str, dict[str, str]] = field(default_factory=dict)  # digest -> definitions, digests

    def stored(self) -> list[str]:
        """Keys of the stages that are kept, inputs first."""
        return [key for key, node in self.nodes.items() if node.stored]

    def upstream(self, key: str) -> list[str]:
        """Keys of all stages that `key` needs, itself last."""
        keys: dict[str, None] = {}

        def visit(at: str) -> None:
            if at not in keys:
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
                if not _is_unchanged(mark):
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
    from harness.core.stage import closure, find_code
    from harness.data.sources import TEXTS
    from harness.evaluation.diagnostics import DIAGNOSTICS
    from harness.evaluation.evaluations import EVALUATIONS
    from harness.method import METHODS
    from harness.models.registry import MODELS

    nodes: dict[str, Node] = {}
    code: dict[str, dict[str, str]] = {}
    watched = {*(path.resolve() for path in grid.files), *provenance.list_sources()}
    for registry in (METHODS, MODELS, TEXTS, EVALUATIONS, DIAGNOSTICS):
        watched |= registry.files()
    for cell in grid.cells:
        for stage in closure([cell.model, *cell.roots]):
            if stage.key in nodes:
                continue
            files = {file for read in stage.reads() for file in read.files()}
            behind = reach(find_code(stage))
            code[behind.digest] = dict(behind.definitions)
            watched |= {*files, *behind.files}
            nodes[stage.key] = Node(
                kind=stage.kind,
                title=f"{getattr(stage, 'task', '')} {cell.id}".strip(),
                stored=stage.stored,
                inputs=tuple(above.key for above in stage.inputs),
                code=behind.digest,
                stage=stage.description(),
                **asdict(stage.resources),
                files=tuple(_mark(path) for path in sorted(files)),
            )
    cells = [
        CellInfo(
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
        )
        for cell in grid.cells
    ]
    return Plan(
        name=grid.name,
        path=str(grid.path.resolve()),
        question=grid.question,
        model=grid.file.model,
        report=asdict(grid.file.report),
        published=grid.file.published.model_dump() if grid.file.published else None,
        cells=tuple(cells),
        nodes=nodes,
        watch=tuple(_mark(path) for path in sorted(watched)),
        mirror=os.environ.get("BITGRID_MIRROR"),
        code=code,
    )


def remembered(path: Path, store: Store) -> Plan | None:
    """The kept plan of a grid file, or None where it, or code behind it, has changed since."""
    try:
        raw = json.loads(_place(path, store).read_text())
        if raw.pop("schema") != SCHEMA:
            return None
        plan = _read(raw)
        same = plan.mirror == os.environ.get("BITGRID_MIRROR")
        return plan if same and all(map(_is_unchanged, plan.watch)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(plan: Plan, store: Store) -> Plan:
    """Keep a plan, so that later verbs need not build it; they do where the store is only read.

    The plan that comes back says of new stages why they are new, by the plan that was kept before.
    """
    place = _place(Path(plan.path), store)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        plan = _with_reasons(plan, json.loads(place.read_text())["nodes"])
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write(plan, place)
    return plan


def write(plan: Plan, path: Path) -> None:
    """Keep a plan in a file, for `read`."""
    write_json(path, {"schema": SCHEMA, **asdict(plan)})


def read(path: Path) -> Plan:
    """The plan in a file. Raises BitgridError where it is of another version or unreadable."""
    try:
        raw = json.loads(path.read_text())
        if raw.pop("schema") == SCHEMA:
            return _read(raw)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BitgridError(f"{path} cannot be read: {error}") from None
    raise BitgridError(f"{path} is of another version of bitgrid")


def _with_reasons(plan: Plan, before: Mapping[str, Any]) -> Plan:
    """The plan, with the reason of each stage that `before`, nodes by key, had otherwise or not."""
    places = {(node["kind"], node["title"]): node for node in before.values()}
    nodes = dict(plan.nodes)
    for key, node in plan.nodes.items():
        old = before.get(key)
        if old is not None:
            nodes[key] = replace(node, why=old.get("why"))
        elif (node.kind, node.title) in places:
            why = _difference(places[node.kind, node.title]["stage"], node.stage)
            nodes[key] = replace(node, why=why)
    return replace(plan, nodes=nodes)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two descriptions of a stage, in words."""
    one, other = dict(_flat(old)), dict(_flat(new))
    names = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    own = [name for name in names if not name.endswith("stage")]
    if not own:
        return "an input changed"
    shown = [f"{name}: {one.get(name)} -> {other.get(name)}" for name in own[:3]]
    more = f" and {len(own) - 3} more" if len(own) > 3 else ""
    return f"parameters changed: {', '.join(shown)}{more}"


def _flat(part: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """A description's values by dotted path."""
    if isinstance(part, Mapping):
        for name, inside in part.items():
            yield from _flat(inside, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(part, list | tuple):
        for number, inside in enumerate(part):
            yield from _flat(inside, f"{prefix}.{number}")
    else:
        yield prefix, part


def kept(store: Store) -> list[Plan]:
    """All kept plans whose grid file still exists."""
    plans = []
    for place in sorted((store.root / "plans").glob("*.json")):
        raw = json.loads(place.read_text())
        if raw.pop("schema", None) == SCHEMA and Path(raw["path"]).exists():
            plans.append(_read(raw))
    return plans


def states(plan: Plan, store: Store) -> dict[str, str]:
    """The state of every kept stage, a word of `STATES`."""
    state_of: dict[str, str] = {}
    failed, owners = store.failed(), store.owners()
    for key, node in plan.nodes.items():
        above = [state_of[key] for key in node.inputs]
        if node.stored and store.has(key):
            state_of[key] = "stale" if explain_staleness(plan, key, store) else "done"
        elif key in failed and standing_failure(node, key, store):
            state_of[key] = "failed"
        elif any(state in ("failed", "blocked") for state in above):
            state_of[key] = "blocked"
        elif node.stored and key in owners:
            state_of[key] = "running"
        else:
            state_of[key] = "queued"
    return state_of


def explain_staleness(plan: Plan, key: str, store: Store) -> str | None:
    """Why a kept value is stale: which code or package changed since. None where it is not."""
    digest = plan.nodes[key].code
    manifest = store.manifest(key)
    old = store.definitions(key) if manifest.get("code") != digest else None
    return provenance.explain_staleness(manifest, digest, old, plan.code.get(digest))


def list_stale(plan: Plan, store: Store) -> list[str]:
    """Why kept values of a plan are stale, a line a reason, with how many stages have it."""
    state = states(plan, store)
    reasons = [
        f"{plan.nodes[key].kind}: {explain_staleness(plan, key, store)}"
        for key in plan.nodes
        if state[key] == "stale"
    ]
    return _counted(reasons)


def list_new(plan: Plan, store: Store) -> list[str]:
    """Why stages that are to be computed are new, a line a reason, with how many have it."""
    missing = [plan.nodes[key] for key in needed(plan, store)]
    return _counted([f"{node.kind}: {node.why}" for node in missing if node.stored and node.why])


def _counted(lines: list[str]) -> list[str]:
    return [
        line if number == 1 else f"{line} ({number} stages)"
        for line, number in Counter(lines).items()
    ]


def standing_failure(node: Node, key: str, store: Store) -> dict[str, Any] | None:
    """A stage's failure record, while the code that failed is still the code."""
    record = store.failure(key)
    return record if record and record.get("code") == node.code else None


def needed(plan: Plan, store: Store, roots: Iterable[str] | None = None) -> list[str]:
    """Keys of the stages to compute or rebuild for `roots` (all), inputs first."""
    wanted: set[str] = set()

    def visit(key: str) -> None:
        node = plan.nodes[key]
        if key in wanted or (node.stored and store.has(key)):
            return
        wanted.add(key)
        for above in node.inputs:
            visit(above)

    for key in (k for cell in plan.cells for k in cell.roots) if roots is None else roots:
        visit(key)
    return [key for key in plan.nodes if key in wanted]


def _read(raw: dict[str, Any]) -> Plan:
    lists = ("scores", "diagnostics")
    raw["cells"] = tuple(
        CellInfo(**{**c, **{name: tuple(c[name]) for name in lists}}) for c in raw["cells"]
    )
    raw["nodes"] = {
        key: Node(**{**node, "inputs": tuple(node["inputs"]), "files": _marks(node["files"])})
        for key, node in raw["nodes"].items()
    }
    raw["watch"] = _marks(raw["watch"])
    return Plan(**raw)


def _marks(raw: Iterable[Any]) -> tuple[Mark, ...]:
    return tuple((str(path), int(size), int(changed)) for path, size, changed in raw)


def _mark(path: Path) -> Mark:
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def _is_unchanged(mark: Mark) -> bool:
    try:
        return _mark(Path(mark[0])) == mark
    except OSError:
        return False


def _place(path: Path, store: Store) -> Path:
    where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return store.root / "plans" / f"{path.stem}-{where}.json"
