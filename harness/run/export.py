"""Rows out of the store: what `reports` reads, and of a published grid lies under results/.

The files and what their lines hold are described in `harness.core.records`. diagnostics.jsonl is
absent where `diagnose:` asked for nothing. The trials of a grid that tunes have a folder of their
own among them. provenance.jsonl has the stages that are not kept too,
so that a number can be followed to the model's revision.

Nothing here but reading manifests: no torch, no time stamps in rows, the same bytes for the same
values. Not here: tables and plots (`reports`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.core.definitions import ROOT
from harness.core.errors import ReportError, StoreError
from harness.core.lineage import Lineage
from harness.core.record_lines import to_json
from harness.core.records import (
    NOT_RUN,
    SCHEMA,
    TRIALS,
    Cell,
    CurvePoint,
    GridHead,
    Hole,
    Match,
    Row,
    RowItems,
    Tuning,
)
from harness.core.report_options import ReportOptions
from harness.core.store import Store
from harness.grid import published
from harness.run import renewal
from harness.run.plan import CellInfo, Plan
from harness.run.states import check_scores, explain_staleness, find_states, standing_failure

CURVE = "metrics.jsonl"
_LARGE = 2**20  # bytes of items
_CURVE_FIELDS = {each.name for each in fields(CurvePoint)}


def export(plan: Plan, store: Store, folder: Path) -> None:
    """Write the rows of everything that is done so far into `folder`. Raises ReportError."""
    with _writing(folder):
        _export(plan, store, folder)
        if trials := _find_trials(plan):
            (folder / TRIALS).mkdir(exist_ok=True)
            _export(trials, store, folder / TRIALS)


def _find_trials(plan: Plan) -> Plan | None:
    """The trials of a plan, as a grid of their own; None where it has none."""
    cells = tuple(replace(cell, is_trial=False) for cell in plan.cells if cell.is_trial)
    if not cells:
        return None
    return replace(
        plan,
        name=f"{plan.name}-{TRIALS}",
        question=f"Trials by which settings of {plan.name} are chosen",
        report=asdict(ReportOptions()),
        published=None,
        cells=cells,
        awaiting=(),
    )


def check(folder: Path) -> None:
    """Raise ReportError where nothing can be written into `folder`: before rows are computed."""
    with _writing(folder), tempfile.TemporaryFile(dir=folder):
        pass


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise ReportError(f"{folder} cannot be written: {error.strerror}") from error


@dataclass(frozen=True)
class _Values:
    """What of a plan is there, and how far the rest is: looked at once."""

    plan: Plan
    store: Store
    state: Mapping[str, str]  # of each stage, by key
    roots: Mapping[str, Mapping[str, Any]]  # manifests of scores and diagnostics, by key

    @classmethod
    def read(cls, plan: Plan, store: Store) -> _Values:
        manifests = check_scores(plan, store)
        return cls(plan, store, find_states(plan, store), manifests)

    def has(self, key: str) -> bool:
        return self.state[key] in ("done", "stale")

    def find(self, key: str) -> Mapping[str, Any]:
        """The facts of a value that is there. Raises StoreError."""
        return self.roots[key] if key in self.roots else self.store.manifest(key)

    @cached_property
    def reasons(self) -> dict[str, str | None]:
        """Of each score, which stages behind it are stale, and why; None where none is. Of a value
        that is gone nothing says by which code it was computed."""
        stale, touched = dict[str, str](), set[str]()
        uncompared = set(renewal.list_open(self.plan, self.store))
        for key, node in self.plan.nodes.items():  # inputs before users
            if self.state[key] == "stale":
                stale[key] = f"{node.kind}: {explain_staleness(self.plan, key, self.store)}"
            elif key in uncompared and self.has(key):
                stale[key] = f"{node.kind}: computed again, not compared yet: 'bitgrid run' does"
            elif node.stored and not self.has(key):
                stale[key] = f"{node.kind}: gone, so that the code behind it is not known"
            if key in stale or not touched.isdisjoint(node.inputs):
                touched.add(key)
        keys = {key for cell in self.plan.rows for key in cell.scores}
        return {
            key: "; ".join(
                dict.fromkeys(stale[above] for above in self.plan.upstream(key) if above in stale)
            )
            if key in touched
            else None
            for key in keys
        }

    @cached_property
    def lineage(self) -> Lineage:
        """Which texts are behind each stage."""
        return Lineage({key: node.stage for key, node in self.plan.nodes.items()})


def _export(plan: Plan, store: Store, folder: Path) -> None:
    values = _Values.read(plan, store)
    published = plan.published or {}
    head = GridHead(
        name=plan.name,
        file=_file(plan),
        question=plan.question,
        model=plan.model,
        report=ReportOptions(**plan.report),
        style=plan.style,
        published=_published(plan),
        published_model=published.get("model"),
        published_tasks=published.get("tasks"),
        tolerance=published.get("tolerance"),
        cells=len(plan.rows) + len(plan.awaiting),
        holes=list(_holes(values)),
        varies=plan.varies,
    )
    (folder / "grid.json").write_text(json.dumps(to_json(head), indent=1) + "\n")
    _write_lines(folder / "rows.jsonl", map(to_json, _rows(values)))
    items = "".join(json.dumps(to_json(line)) + "\n" for line in _items(values)).encode()
    level = 9 if len(items) < _LARGE else 6  # a tenth of the time for a tenth more bytes
    (folder / "items.jsonl.gz").write_bytes(gzip.compress(items, level, mtime=0))
    _write_lines(folder / "curves.jsonl", map(to_json, _curves(values)))
    if any(cell.diagnostics for cell in plan.rows):
        _write_lines(folder / "diagnostics.jsonl", _diagnostics(values))
    else:
        (folder / "diagnostics.jsonl").unlink(missing_ok=True)
    _write_lines(folder / "provenance.jsonl", _provenance(values))


def _rows(values: _Values) -> Iterator[Row]:
    plan = values.plan
    for cell in plan.rows:
        facts = vars(_facts(cell))
        tuning = None if cell.tuning is None else _count_cost(Tuning(**cell.tuning), values)
        for key in filter(values.has, cell.scores):
            scores = values.find(key)["value"]
            for score in scores["rows"]:
                precision = dict(scores["model"])
                if cell.published_bits is not None:  # a wider type adds none
                    if precision["bits_per_weight"] != cell.published_bits:
                        precision["size_bytes"] = None  # of the wider type
                    precision["bits_per_weight"] = cell.published_bits
                yield Row(
                    **facts,
                    **precision,
                    **score,
                    grid=plan.name,
                    method=cell.method,
                    model=cell.source,
                    key=key,
                    model_key=cell.model,
                    stale=values.reasons[key],
                    text=values.lineage.find_text(key),
                    trained_on=values.lineage.list_trained(cell.model),
                    calibrated_on=values.lineage.list_calibrated(cell.model),
                    tuning=tuning,
                    match=None if cell.match is None else Match(**cell.match),
                )


def _items(values: _Values) -> Iterator[RowItems]:
    """The items of each row; a group of tasks has none of its own."""
    for key in dict.fromkeys(key for cell in values.plan.rows for key in cell.scores):
        path = values.store.file(key, "items.jsonl.gz")
        if values.has(key):
            try:
                with open(path, "rb") as file:
                    data = gzip.decompress(file.read())
                lines = [json.loads(line) for line in data.split(b"\n") if line]
            except FileNotFoundError:
                continue
            except (OSError, EOFError, ValueError, zlib.error) as error:
                # Only where it has no digest: it was written before there were any.
                raise ReportError(
                    f"{path} cannot be read: {error}; remove {values.store.path(key)}"
                ) from None
            yield from (RowItems(key=key, **line) for line in lines)


def _published(plan: Plan) -> list[dict[str, str]]:
    if plan.published is None:
        return []
    name, model = plan.published["name"], plan.published["model"]
    return published.figures(published.find(name, model), model)


def _count_cost(tuning: Tuning, values: _Values) -> Tuning:
    """With what the trials cost: the hours of making each model, and the tokens of its training.

    What trials share, as a clip search, counts once. Unknown where a trial has not ended.
    """
    plan, store = values.plan, values.store
    behind = dict.fromkeys(key for model in tuning.models for key in plan.upstream(model))
    made = [key for key in behind if plan.nodes[key].stored]
    if not tuning.models or not all(map(values.has, made)):
        return tuning
    seconds, tokens = 0.0, list[float | None]()
    for key in made:
        took = float(store.manifest(key).get("wall_s", 0.0))
        if os.path.exists(store.file(key, CURVE)) and (curve := _read_curve(store, key)):
            tokens.append(curve[-1].get("tokens"))
            took = max(took, curve[-1].get("seconds") or 0.0)  # goes on where it was resumed
        seconds += took * max(1, plan.nodes[key].gpus)
    known = [each for each in tokens if each is not None]
    return replace(
        tuning,
        tokens=sum(known) if len(known) == len(tokens) else None,
        device_hours=seconds / 3600,
    )


def _holes(values: _Values) -> Iterator[Hole]:
    for cell in values.plan.awaiting:
        yield Hole(**vars(_facts(cell)), reason=cell.awaits)
    for cell in values.plan.rows:
        missing = [key for key in cell.scores if not values.has(key)]
        if missing:
            yield Hole(**vars(_facts(cell)), reason=_reason(values, missing[0]))


def _reason(values: _Values, key: str) -> str:
    if (fault := values.store.find_fault(key)) is not None:
        return f"damaged: {fault}; run the grid again"
    for above in values.plan.upstream(key):
        if values.state[above] == "failed":
            node = values.plan.nodes[above]
            record = standing_failure(node, above, values.store) or {}
            hint = f" ({record['hint']})" if record.get("hint") else ""
            return f"failed: {node.kind}: {record.get('message', 'unknown')}{hint}"
    return NOT_RUN


def _curves(values: _Values) -> Iterator[CurvePoint]:
    seen: set[str] = set()
    for cell in values.plan.rows:
        bits = _bits(cell, values)
        if bits is None:
            continue
        for key in values.plan.upstream(cell.model, seen):
            seen.add(key)
            if not os.path.exists(values.store.file(key, CURVE)):
                continue
            try:
                steps = _read_curve(values.store, key)
            except StoreError as error:
                warnings.warn(f"no curve of {cell.id}: {error}", stacklevel=1)
                continue
            for step in steps:
                known = {name: fact for name, fact in step.items() if name in _CURVE_FIELDS}
                yield CurvePoint(**vars(_facts(cell)), bits=bits, **known)


def _read_curve(store: Store, key: str) -> list[dict[str, Any]]:
    """The log of a training, a line a step. Raises StoreError where it is not what was written."""
    path = store.path(key) / CURVE
    store.check_files(key, only=CURVE)
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None


def _diagnostics(values: _Values) -> Iterator[dict[str, Any]]:
    for cell in values.plan.rows:
        bits = _bits(cell, values)
        for key in cell.diagnostics:
            if bits is not None and values.has(key):
                # The label is the plan's: two stages that differ in it alone are one.
                step = {"step": values.plan.nodes[key].stage.get("step")}
                facts = {**to_json(_facts(cell)), "bits": bits, "key": key}
                yield {**facts, **step, **values.find(key)["value"]}


def _facts(cell: CellInfo) -> Cell:
    return Cell(cell=cell.id, label=cell.label, settings=cell.axes, seed=cell.seed)


def _bits(cell: CellInfo, values: _Values) -> float | None:
    """Of the cell's model; None before its first score, which tells them."""
    for key in filter(values.has, cell.scores):
        bits: float = values.find(key)["value"]["model"]["bits"]
        return bits
    return None


def _provenance(values: _Values) -> Iterator[dict[str, Any]]:
    plan = values.plan
    done = {key for key in plan.stored() if values.has(key)}
    behind = set(done)
    for key in reversed(plan.nodes):  # users before inputs
        if key in behind:
            behind.update(plan.nodes[key].inputs)
    for key, node in plan.nodes.items():
        if key in done:
            facts = {n: fact for n, fact in values.find(key).items() if n != "value"}
            yield {**facts, "stage": _without_places(facts["stage"]), "schema": SCHEMA}
        elif key in behind and not node.stored:
            yield {"schema": SCHEMA, "key": key, "stage": _without_places(node.stage)}


def _without_places(stage: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's fields but where data sets lie on this machine: records are published, and the
    digest beside it says what was read."""
    return {name: field for name, field in stage.items() if name != "mirror"}


def _file(plan: Plan) -> str:
    """The grid's file as a command names it from the checkout or the current folder."""
    path = Path(plan.path)
    for folder in (ROOT, Path.cwd()):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
