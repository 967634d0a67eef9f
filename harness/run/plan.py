"""A plan: the stages that a grid's cells need, each once, and how far they are.

A plan is plain JSON, kept in the store with a list of the files it was made from. While those are
unchanged, `status`, `report` and a finished `run` read it without importing torch or any method.
Not here: running stages (`run`), the grid's file (`grid`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.core import provenance
from harness.core.store import Store, write_json

if TYPE_CHECKING:
    from harness.grid.expand import Grid

SCHEMA = 5
STATES = ("done", "stale", "running", "failed", "blocked", "queued")


@dataclass(frozen=True)
class Node:
    """One stage of a plan, without its code."""

    kind: str
    title: str  # the first cell that needs it
    stored: bool
    inputs: tuple[str, ...]
    code: str  # digest of the code that would compute it now
    stage: dict[str, Any]  # class, version and fields, as in a manifest
    gpus: int  # what a job that runs it asks for: see `stage.Resources`
    memory_gib: float
    hours: float


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
    watch: tuple[tuple[str, int, int], ...]  # (file, size, mtime in ns)
    mirror: str | None = None  # the environment's, when the plan was made

    def stored(self) -> list[str]:
        """Keys of the stages that are kept, inputs first."""
        return [key for key, node in self.nodes.items() if node.stored]

    def upstream(self, key: str) -> list[str]:
        """Keys of all stages that `key` needs, itself last."""
        found: dict[str, None] = {}

        def visit(at: str) -> None:
            if at not in found:
                for above in self.nodes[at].inputs:
                    visit(above)
                found[at] = None

        visit(key)
        return list(found)


def build(grid: Grid) -> Plan:
    """The plan of a validated grid."""
    from harness.core.stage import closure, description, modules
    from harness.data.sources import TEXTS
    from harness.method import METHODS
    from harness.models.registry import MODELS

    nodes: dict[str, Node] = {}
    watched = {*(path.resolve() for path in grid.files), *provenance.sources()}
    watched |= METHODS.files() | MODELS.files() | TEXTS.files()
    for cell in grid.cells:
        for stage in closure([cell.model, *cell.roots]):
            if stage.key in nodes:
                continue
            nodes[stage.key] = Node(
                kind=type(stage).__name__,
                title=f"{getattr(stage, 'task', '')} {cell.id}".strip(),
                stored=stage.stored,
                inputs=tuple(above.key for above in stage.inputs),
                code=provenance.code_digest(frozenset(modules(stage))),
                stage=description(stage),
                **asdict(stage.resources),
            )
            watched |= {file for read in stage.reads() for file in read.files()}
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
    )


def remembered(path: Path, store: Store) -> Plan | None:
    """The kept plan of a grid file, or None where it, or code behind it, has changed since."""
    try:
        kept = json.loads(_place(path, store).read_text())
        if kept.pop("schema") != SCHEMA:
            return None
        plan = _read(kept)
        same = plan.mirror == os.environ.get("BITGRID_MIRROR")
        return plan if same and all(_mark(Path(mark[0])) == mark for mark in plan.watch) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(plan: Plan, store: Store) -> None:
    """Keep a plan, so that later verbs need not build it; they do where the store is only read."""
    place = _place(Path(plan.path), store)
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, {"schema": SCHEMA, **asdict(plan)})


def kept(store: Store) -> list[Plan]:
    """All kept plans whose grid file still exists."""
    found = []
    for place in sorted((store.root / "plans").glob("*.json")):
        raw = json.loads(place.read_text())
        if raw.pop("schema", None) == SCHEMA and Path(raw["path"]).exists():
            found.append(_read(raw))
    return found


def states(plan: Plan, store: Store) -> dict[str, str]:
    """The state of every kept stage, a word of `STATES`."""
    found: dict[str, str] = {}
    failed, owners = store.failed(), store.owners()
    for key, node in plan.nodes.items():
        above = [found[key] for key in node.inputs]
        if node.stored and store.has(key):
            found[key] = "stale" if store.manifest(key).get("code") != node.code else "done"
        elif key in failed and standing_failure(node, key, store):
            found[key] = "failed"
        elif any(state in ("failed", "blocked") for state in above):
            found[key] = "blocked"
        elif node.stored and key in owners:
            found[key] = "running"
        else:
            found[key] = "queued"
    return found


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
        key: Node(**{**node, "inputs": tuple(node["inputs"])}) for key, node in raw["nodes"].items()
    }
    raw["watch"] = tuple((str(m[0]), int(m[1]), int(m[2])) for m in raw["watch"])
    return Plan(**raw)


def _mark(path: Path) -> tuple[str, int, int]:
    facts = path.stat()
    return str(path), facts.st_size, facts.st_mtime_ns


def _place(path: Path, store: Store) -> Path:
    where = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    return store.root / "plans" / f"{path.stem}-{where}.json"
