"""Rows out of the store: what `reports` reads, and of a published grid lies under results/.

    grid.json         the grid: question, model, report settings, cells without a full set of scores
    rows.jsonl        one line a cell, task and metric
    items.jsonl.gz    the scores of every item behind a row, for paired statistics
    curves.jsonl      one line a training step of each trained model
    diagnostics.jsonl what `diagnose:` asked for, one line a cell, diagnostic and step of its method;
                      absent where nothing was asked
    provenance.jsonl  one line a stage behind the rows: its fields and inputs (so that a number can be
                      followed to the model's revision) and, of those that are kept, code, commit,
                      versions, device, time, memory

Nothing here but reading manifests: no torch, no time stamps in rows, the same bytes for the same
values. Not here: tables and plots (`reports`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness.core.errors import ReportError
from harness.core.provenance import ROOT
from harness.core.store import Store
from harness.grid import published
from harness.run.plan import CellInfo, Plan, standing_failure, states

SCHEMA = 1


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
    state = states(plan, store)
    about = {
        "schema": SCHEMA,
        "name": plan.name,
        "file": _file(plan),
        "question": plan.question,
        "model": plan.model,
        "testbed": plan.testbed,
        "report": plan.report,
        "published": _published(plan),
        "published_model": plan.published and plan.published["model"],
        "published_tasks": plan.published and plan.published["tasks"],
        "tolerance": plan.published and plan.published["tolerance"],
        "cells": len(plan.cells),
        "holes": list(_holes(plan, store, state)),
    }
    (folder / "grid.json").write_text(json.dumps(about, indent=1) + "\n")
    _lines(folder / "rows.jsonl", _rows(plan, store, state))
    items = "".join(json.dumps(line) + "\n" for line in _items(plan, store))
    (folder / "items.jsonl.gz").write_bytes(gzip.compress(items.encode(), mtime=0))
    _lines(folder / "curves.jsonl", _curves(plan, store))
    if any(cell.diagnostics for cell in plan.cells):
        _lines(folder / "diagnostics.jsonl", _diagnostics(plan, store))
    else:
        (folder / "diagnostics.jsonl").unlink(missing_ok=True)
    _lines(folder / "provenance.jsonl", _provenance(plan, store))


def _rows(plan: Plan, store: Store, state: dict[str, str]) -> Iterator[dict[str, Any]]:
    for cell in plan.cells:
        for key in cell.scores:
            if not store.has(key):
                continue
            kept = store.manifest(key)["value"]
            old = [k for k in plan.upstream(key) if state[k] == "stale"]
            why = (
                f"code changed since: {', '.join(plan.nodes[k].kind for k in old)}" if old else None
            )
            for row in kept["rows"]:
                yield {
                    "schema": SCHEMA,
                    "grid": plan.name,
                    "cell": cell.id,
                    "method": cell.method,
                    "label": cell.label,
                    "axes": cell.axes,
                    "seed": cell.seed,
                    "model": cell.source,
                    **kept["model"],
                    **_protocol(plan, cell, key, row),
                    **row,
                    "key": key,
                    "model_key": cell.model,
                    "stale": why,
                }


def _protocol(plan: Plan, cell: CellInfo, key: str, row: dict[str, Any]) -> dict[str, Any]:
    """What a row's protocol is beside what its stage wrote into it."""
    if row["metric"] == "ppl":
        told = plan.nodes[key].stage.get("protocol")
        window = told.get("window") if isinstance(told, dict) else None
        return {"window": window, "tokenizer": cell.tokenizer, "chat_template": None}
    # Tasks are scored by lm-eval without a chat template, whatever the model.
    asked = None if row["lm_eval"] is None else False
    return {"window": None, "tokenizer": None, "chat_template": asked}


def _items(plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    """One line a row whose value its items give: their numbers (None: 0, 1, 2 …) and scores.

    A perplexity's scores are the windows' mean NLLs. A group of tasks has none of its own.
    """
    for key in dict.fromkeys(key for cell in plan.cells for key in cell.scores):
        kept = store.path(key) / "items.jsonl.gz"
        if not store.has(key) or not kept.exists():
            continue
        items = [json.loads(line) for line in gzip.decompress(kept.read_bytes()).splitlines()]
        for row in store.manifest(key)["value"]["rows"]:
            found = _behind(row, items)
            if found:
                numbered = list(found) == list(range(len(found)))
                yield {
                    "schema": SCHEMA,
                    "key": key,
                    "task": row["task"],
                    "metric": row["metric"],
                    "items": None if numbered else list(found),
                    "scores": [int(s) if s.is_integer() else s for s in found.values()],
                }


def _behind(row: dict[str, Any], items: list[dict[str, Any]]) -> dict[int, float] | None:
    """Item -> score of the items whose mean is the row's value.

    A task with several ways to read an answer has its items once for each, in turn.
    """
    perplexity = row["metric"] == "ppl"
    name = "nll" if perplexity else row["metric"].partition(",")[0]
    readings: list[dict[int, float]] = []
    for item in items:
        if item.get("task", row["task"]) == row["task"] and name in item:
            at = next((reading for reading in readings if item["item"] not in reading), None)
            if at is None:
                readings.append(at := {})
            at[item["item"]] = float(item[name])
    for reading in readings:
        mean = math.fsum(reading.values()) / len(reading)
        given = math.exp(min(mean, 700.0)) if perplexity else mean
        if math.isclose(given, row["value"], rel_tol=1e-6, abs_tol=1e-9):
            return reading
    return None


def _published(plan: Plan) -> list[dict[str, str]]:
    if plan.published is None:
        return []
    name, model = plan.published["name"], plan.published["model"]
    return published.figures(published.find(name, model), model)


def _holes(plan: Plan, store: Store, state: dict[str, str]) -> Iterator[dict[str, Any]]:
    for cell in plan.cells:
        missing = [key for key in cell.scores if not store.has(key)]
        if missing:
            reason = _reason(plan, store, state, missing[0])
            yield {
                "cell": cell.id,
                "label": cell.label,
                "axes": cell.axes,
                "seed": cell.seed,
                "reason": reason,
            }


def _reason(plan: Plan, store: Store, state: dict[str, str], key: str) -> str:
    for above in plan.upstream(key):
        if state[above] == "failed":
            record = standing_failure(plan.nodes[above], above, store) or {}
            hint = f" ({record['hint']})" if record.get("hint") else ""
            return f"failed: {plan.nodes[above].kind}: {record.get('message', 'unknown')}{hint}"
    return "not run yet"


def _curves(plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    shown: set[str] = set()
    for cell in plan.cells:
        who = _who(plan, store, cell)
        for key in plan.upstream(cell.model) if who else ():
            metrics = store.path(key) / "metrics.jsonl"
            if key in shown or not metrics.exists():
                continue
            shown.add(key)
            for line in metrics.read_text().splitlines():
                yield {"schema": SCHEMA, **who, **json.loads(line)}


def _diagnostics(plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    for cell in plan.cells:
        who = _who(plan, store, cell)
        for key in cell.diagnostics if who else ():
            if store.has(key):
                yield {"schema": SCHEMA, **who, "key": key, **store.manifest(key)["value"]}


def _who(plan: Plan, store: Store, cell: CellInfo) -> dict[str, Any]:
    """The cell as its lines name it; empty before the first score, which tells the bits."""
    scored = next((key for key in cell.scores if store.has(key)), None)
    if scored is None:
        return {}
    return {
        "cell": cell.id,
        "label": cell.label,
        "axes": cell.axes,
        "seed": cell.seed,
        "bits": store.manifest(scored)["value"]["model"].get("bits"),
    }


def _provenance(plan: Plan, store: Store) -> Iterator[dict[str, Any]]:
    done = {key for key in plan.stored() if store.has(key)}
    behind = {above for key in done for above in plan.upstream(key)}
    for key, node in plan.nodes.items():
        if key in done:
            manifest = store.manifest(key)
            yield {name: fact for name, fact in manifest.items() if name != "value"}
        elif key in behind and not node.stored:
            yield {"schema": SCHEMA, "key": key, "stage": node.stage}


def _file(plan: Plan) -> str:
    """The grid's file as a command names it from the checkout or the current folder."""
    path = Path(plan.path)
    for folder in (ROOT, Path.cwd()):
        if path.is_relative_to(folder):
            return path.relative_to(folder).as_posix()
    return path.name


def _lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
