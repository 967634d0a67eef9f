"""What is exported: the items behind rows, and what of a protocol the engine knows."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

import pytest

from harness.core.records import ITEM_KEY
from harness.core.report_options import Finding, ReportOptions
from harness.core.store import Store
from harness.grid.expand import load
from harness.grid.schema import GridFile
from harness.run import export as rows
from harness.run import plan as plans
from harness.run import remembering
from harness.run.plan import Plan
from harness.run.runner import run
from reports.reading.export import Export
from tests.harness.run.test_run import Silent
from tests.support.toys import toy_grid, toy_plan


def test_items_are_exported_with_the_key_of_their_row(tmp_path: Path) -> None:
    plan = toy_plan(tmp_path / "toy.yaml")
    store = Store(tmp_path / "store")
    run(plan, store, Silent())
    rows.export(plan, store, tmp_path / "out")
    data = (tmp_path / "out/items.jsonl.gz").read_bytes()
    lines = [json.loads(line) for line in gzip.decompress(data).splitlines()]
    exported = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").open()]
    assert {tuple(line[name] for name in ITEM_KEY) for line in lines} == {
        tuple(row[name] for name in ITEM_KEY) for row in exported
    }
    rows.export(plan, store, tmp_path / "out")
    assert (tmp_path / "out/items.jsonl.gz").read_bytes() == data  # the same bytes each time


def test_each_value_is_looked_at_and_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = toy_plan(tmp_path / "toy.yaml")
    store = Store(tmp_path / "store")
    run(plan, store, Silent())
    for key in plan.stored():
        assert store.has(key)  # from here on its index knows them
    looked, read, steps = Counter[str](), Counter[str](), Counter[str]()
    for name, counts in (("look", looked), ("manifest", read)):
        plain = getattr(Store, name)

        def count(self: Store, key: str, plain: Any = plain, counts: Any = counts) -> Any:
            counts[key] += 1
            return plain(self, key)

        monkeypatch.setattr(Store, name, count)
    upstream = Plan.upstream

    def walk(self: Plan, key: str, known: Container[str] = ()) -> list[str]:
        keys = upstream(self, key, known)
        steps.update(keys)
        return keys

    monkeypatch.setattr(Plan, "upstream", walk)
    rows.export(plan, store, tmp_path / "out")
    curves = {key for key in plan.stored() if (store.path(key) / rows.CURVE).exists()}
    assert read == Counter([*plan.stored(), *curves])
    assert looked == dict.fromkeys(plan.stored(), 1)
    assert max(steps.values()) == 1  # what stands behind several models is gone through once


def test_note_and_finding_of_a_grid_are_exported(tmp_path: Path) -> None:
    grid = toy_grid(tmp_path / "toy.yaml")
    report = {"note": "Toys.", "finding": {"text": "A wins.", "rows": "0123"}}
    file = GridFile.model_validate({**grid.file.model_dump(), "report": report})
    plan = plans.build(dataclasses.replace(grid, file=file))
    store = Store(tmp_path / "store")
    rows.export(plan, store, tmp_path / "out")
    options = Export(tmp_path / "out").grid.report
    assert options == ReportOptions(note="Toys.", finding=Finding(text="A wins.", rows="0123"))
    remembering.remember(plan, store)
    assert remembering.remembered(tmp_path / "toy.yaml", store) == plan


def test_rows_say_window_tokenizer_and_chat_template(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        f"# Which protocol?\nmodel: {tiny_folder}\nmethod: bf16\n"
        "evaluate: [{testbed-ppl: {limit: 1, window: 64}}, {testbed_story: {limit: 2}}]\n"
    )
    grid, store = load(path), Store(tmp_path / "store")
    plan = plans.build(grid)
    assert not run(plan, store, Silent()).failed
    rows.export(plan, store, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    ppl, story = (
        next(r for r in lines if r["task"] == t) for t in ("testbed-ppl", "testbed_story")
    )
    assert (ppl["window"], ppl["chat_template"]) == (64, None)
    assert re.fullmatch(r"300 tokens, [0-9a-f]{8}", ppl["tokenizer"])
    assert (story["window"], story["tokenizer"], story["chat_template"]) == (None, None, False)
    assert remembering.remembered(path, store) is None
    remembering.remember(plan, store)
    assert remembering.remembered(path, store) == plan


def test_records_do_not_say_where_data_sets_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, store = toy_plan(tmp_path / "toy.yaml"), Store(tmp_path / "store")
    run(plan, store, Silent())
    find = rows._Values.find

    def find_mirrored(values: rows._Values, key: str) -> dict[str, Any]:
        found = find(values, key)
        return {**found, "stage": {**found["stage"], "mirror": str(tmp_path)}}

    monkeypatch.setattr(rows._Values, "find", find_mirrored)
    rows.export(plan, store, tmp_path / "out")
    lines = (tmp_path / "out" / "provenance.jsonl").read_text().splitlines()
    assert len(lines) >= len(plan.stored()) > 0
    assert not any("mirror" in json.loads(line)["stage"] for line in lines)
