"""What is exported: the items behind rows, and what of a protocol the engine knows."""

from __future__ import annotations

import gzip
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from harness.core.store import Store
from harness.grid.expand import load
from harness.run import export as rows
from harness.run import plan as plans
from harness.run.runner import run
from tests.harness.run.test_run import Silent
from tests.support.toys import toy_plan

Export = tuple[list[dict[str, Any]], bytes]


@pytest.fixture
def exported(tmp_path: Path):  # type: ignore[no-untyped-def]
    """A function: the exported items of one evaluation that keeps these items and these rows."""
    grid, plan = toy_plan(tmp_path / "toy.yaml")
    store = Store(tmp_path / "store")
    run(grid, plan, store, Silent())
    key = plan.cells[0].scores[0]

    def export(items: list[dict[str, Any]], *given: dict[str, Any]) -> Export:
        manifest = store.manifest(key)
        manifest["value"]["rows"] = [{**manifest["value"]["rows"][0], **row} for row in given]
        (store.path(key) / "manifest.json").write_text(json.dumps(manifest))
        text = "".join(json.dumps(item) + "\n" for item in items)
        (store.path(key) / "items.jsonl.gz").write_bytes(gzip.compress(text.encode()))
        rows.export(plan, store, tmp_path / "out")
        data = (tmp_path / "out/items.jsonl.gz").read_bytes()
        lines = [json.loads(line) for line in gzip.decompress(data).splitlines()]
        return [line for line in lines if line["key"] == key], data

    return export


def test_each_metric_has_its_items(exported) -> None:  # type: ignore[no-untyped-def]
    items = [
        {"task": "one", "item": i, "acc": float(i == 0), "acc_norm": i in (1, 2)} for i in range(4)
    ]
    given = [{"metric": "acc", "value": 0.25}, {"metric": "acc_norm", "value": 0.5}]
    lines, data = exported(items, *given)
    assert [line["scores"] for line in lines] == [[1, 0, 0, 0], [0, 1, 1, 0]]
    assert [line["metric"] for line in lines] == ["acc", "acc_norm"]
    assert {line["items"] for line in lines} == {None}
    assert exported(items, *given)[1] == data  # the same bytes each time


def test_readings_of_an_answer_are_told_apart_by_the_rows_value(exported) -> None:  # type: ignore[no-untyped-def]
    right = {"strict": [0, 0, 1], "flexible": [1, 0, 1]}
    items = [
        {"task": "one", "item": 7 + i, "exact_match": score}
        for scores in right.values()
        for i, score in enumerate(scores)
    ]
    lines, _ = exported(
        items,
        {"metric": "exact_match,flexible-extract", "value": 2 / 3},
        {"metric": "exact_match,strict-match", "value": 1 / 3},
    )
    assert [line["scores"] for line in lines] == [right["flexible"], right["strict"]]
    assert [line["items"] for line in lines] == [[7, 8, 9]] * 2


def test_windows_of_a_perplexity(exported) -> None:  # type: ignore[no-untyped-def]
    items = [{"item": 0, "nll": 1.25}, {"item": 1, "nll": 2.0}]
    (line,), _ = exported(items, {"metric": "ppl", "value": math.exp(1.625)})
    assert (line["task"], line["scores"]) == ("one", [1.25, 2])


def test_items_that_do_not_give_the_value_are_left_out(exported) -> None:  # type: ignore[no-untyped-def]
    items = [{"task": "one", "item": 0, "acc": 1.0}]
    for value in (0.5, math.nan):
        assert exported(items, {"metric": "acc", "value": value})[0] == []
    assert exported(items, {"metric": "f1", "value": 1.0})[0] == []


def test_rows_say_window_tokenizer_and_chat_template(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(
        f"# Which protocol?\nmodel: {tiny_folder}\nmethod: bf16\n"
        "evaluate: [{testbed-ppl: {limit: 1, window: 64}}, {testbed_story: {limit: 2}}]\n"
    )
    grid, store = load(path), Store(tmp_path / "store")
    plan = plans.build(grid)
    assert not run(grid, plan, store, Silent()).failed
    rows.export(plan, store, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").read_text().splitlines()]
    ppl, story = (
        next(r for r in lines if r["task"] == t) for t in ("testbed-ppl", "testbed_story")
    )
    assert (ppl["window"], ppl["chat_template"]) == (64, None)
    assert re.fullmatch(r"300 tokens, [0-9a-f]{8}", ppl["tokenizer"])
    assert (story["window"], story["tokenizer"], story["chat_template"]) == (None, None, False)
    assert plans.remembered(path, store) is None
    plans.remember(plan, store)
    assert plans.remembered(path, store) == plan
