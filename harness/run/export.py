"""Rows out of the store: what `reports` reads, and of a published grid lies under results/.

The files and what their lines hold are described in `harness.core.records`. diagnostics.jsonl is
absent where `diagnose:` asked for nothing. provenance.jsonl has the stages that are not kept too,
so that a number can be followed to the model's revision.

Nothing here but reading manifests: no torch, no time stamps in rows, the same bytes for the same
values. Not here: tables and plots (`reports`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from harness.core.definitions import ROOT
from harness.core.errors import ReportError, StoreError
from harness.core.records import (
    NOT_RUN,
    SCHEMA,
    Cell,
    CurvePoint,
    GridHead,
    Hole,
    Row,
    RowItems,
    to_json,
)
from harness.core.report_options import ReportOptions
from harness.core.store import Store
from harness.grid import published
from harness.run.plan import CellInfo, Plan
from harness.run.states import check_scores, explain_staleness, find_states, standing_failure

CURVE = "metrics.jsonl"
_CURVE_FIELDS = {each.name for each in fields(CurvePoint)}


def export(plan: Plan, store: Store, folder: Path) -> None:
    """Write the rows of everything that is done so far into `folder`. Raises ReportError."""
    with _writing(folder):
        _export(plan, store, folder)


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


def _export(plan: Plan, store: Store, folder: Path) -> None:
    check_scores(plan, store)
    state = find_states(plan, store)
    published = plan.published or {}
    head = GridHead(
        name=plan.name,
        file=_file(plan),
        question=plan.question,
        model=plan.model,
        report=ReportOptions(**plan.report),
        published=_published(plan),
        published_model=published.get("model"),
        published_tasks=published.get("tasks"),
        tolerance=published.get("tolerance"),
        cells=len(plan.cells),
        holes=list(_holes(plan, store, state)),
    )
    (folder / "grid.json").write_text(json.dumps(to_json(head), indent=1) + "\n")
    _write_lines(folder / "rows.jsonl", map(to_json, _rows(plan, store, state)))
    items = "".join(json.dumps(to_json(line)) + "\n" for line in _items(plan, store))
    (folder / "items.jsonl.gz").write_bytes(gzip.compress(items.encode(), mtime=0))
    _write_lines(folder / "curves.jsonl", map(to_json, _curves(plan, store)))
    if any(cell.diagnostics for cell in plan.cells):
        _write_lines(folder / "diagnostics.jsonl", _diagnostics(plan, store))
    else:
        (folder / "diagnostics.jsonl").unlink(missing_ok=True)
    _write_lines(folder / "provenance.jsonl", _provenance(plan, store))


def _rows(plan: Plan, store: Store, state: dict[str, str]) -> Iterator[Row]:
    for cell in plan.cells:
        for key in cell.scores:
            if not store.has(key):
                continue
            scores = store.manifest(key)["value"]
            stale = _say_why_stale(plan, store, state, key)
            for score in scores["rows"]:
                precision = dict(scores["model"])
                if cell.published_bits is not None:  # a wider type adds none
                    precision["bits_per_weight"] = cell.published_bits
                yield Row(
                    **asdict(_facts(cell)),
                    **precision,
                    **score,
                    grid=plan.name,
                    method=cell.method,
                    model=cell.source,
                    key=key,
                    model_key=cell.model,
                    stale=stale,
                )


def _say_why_stale(plan: Plan, store: Store, state: dict[str, str], key: str) -> str | None:
    """Which stages behind a row are stale, and why; None where none is."""
    stale = [above for above in plan.upstream(key) if state[above] == "stale"]
    reasons = (
        f"{plan.nodes[above].kind}: {explain_staleness(plan, above, store)}" for above in stale
    )
    return "; ".join(dict.fromkeys(reasons)) or None


def _items(plan: Plan, store: Store) -> Iterator[RowItems]:
    """The items of each row; a group of tasks has none of its own."""
    for key in dict.fromkeys(key for cell in plan.cells for key in cell.scores):
        path = store.path(key) / "items.jsonl.gz"
        if store.has(key) and path.exists():
            try:
                lines = [
                    json.loads(line)
                    for line in gzip.decompress(path.read_bytes()).split(b"\n")
                    if line
                ]
            except (OSError, EOFError, ValueError, zlib.error) as error:
                # Only where it has no digest: it was written before there were any.
                raise ReportError(f"{path} cannot be read: {error}; remove {path.parent}") from None
            yield from (RowItems(key=key, **line) for line in lines)


def _published(plan: Plan) -> list[dict[str, str]]:
    if plan.published is None:
        return []
    name, model = plan.published["name"], plan.published["model"]
    return published.figures(published.find(name, model), model)


def _holes(plan: Plan, store: Store, state: dict[str, str]) -> Iterator[Hole]:
    for cell in plan.cells:
        missing = [key for key in cell.scores if not store.has(key)]
        if missing:
            yield Hole(**asdict(_facts(cell)), reason=_reason(plan, store, state, missing[0]))


def _reason(plan: Plan, store: Store, state: dict[str, str], key: str) -> str:
    if (fault := store.find_fault(key)) is not None:
        return f"damaged: {fault}; run the grid again"
    for above in plan.upstream(key):
        if state[above] == "failed":
            record = standing_failure(plan.nodes[above], above, store) or {}
            hint = f" ({record['hint']})" if record.get("hint") else ""
            return f"failed: {plan.nodes[above].kind}: {record.get('message', 'unknown')}{hint}"
    return NOT_RUN


def _curves(plan: Plan, store: Store) -> Iterator[CurvePoint]:
    exported_keys: set[str] = set()
    for cell in plan.cells:
        bits = _bits(cell, store)
        if bits is None:
            continue
        for key in plan.upstream(cell.model):
            if key in exported_keys or not (store.path(key) / CURVE).exists():
                continue
            exported_keys.add(key)
            try:
                steps = _read_curve(store, key)
            except StoreError as error:
                warnings.warn(f"no curve of {cell.id}: {error}", stacklevel=1)
                continue
            for step in steps:
                known = {name: fact for name, fact in step.items() if name in _CURVE_FIELDS}
                yield CurvePoint(**asdict(_facts(cell)), bits=bits, **known)


def _read_curve(store: Store, key: str) -> list[dict[str, Any]]:
    """The log of a training, a line a step. Raises StoreError where it is not what was written."""
    path = store.path(key) / CURVE
    store.check_files(key, only=CURVE)
    try:
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from None


def _diagnostics(plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    for cell in plan.cells:
        bits = _bits(cell, store)
        for key in cell.diagnostics:
            if bits is not None and store.has(key):
                # The label is the plan's: two stages that differ in it alone are one.
                step = {"step": plan.nodes[key].stage.get("step")}
                facts = {**to_json(_facts(cell)), "bits": bits, "key": key}
                yield {**facts, **step, **store.manifest(key)["value"]}


def _facts(cell: CellInfo) -> Cell:
    return Cell(cell=cell.id, label=cell.label, settings=cell.axes, seed=cell.seed)


def _bits(cell: CellInfo, store: Store) -> float | None:
    """Of the cell's model; None before its first score, which tells them."""
    for key in cell.scores:
        if store.has(key):
            bits: float = store.manifest(key)["value"]["model"]["bits"]
            return bits
    return None


def _provenance(plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    done = {key for key in plan.stored() if store.has(key)}
    behind = {above for key in done for above in plan.upstream(key)}
    for key, node in plan.nodes.items():
        if key in done:
            facts = {n: fact for n, fact in store.manifest(key).items() if n != "value"}
            yield {**facts, "schema": SCHEMA}
        elif key in behind and not node.stored:
            yield {"schema": SCHEMA, "key": key, "stage": node.stage}


def _file(plan: Plan) -> str:
    """The grid's file as a command names it from the checkout or the current folder."""
    path = Path(plan.path)
    for folder in (ROOT, Path.cwd()):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
