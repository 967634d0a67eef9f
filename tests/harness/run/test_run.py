"""Runs: each stage once, failures contained, kills survived, processes that share a store."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

import harness.run.runner
from harness.core.stage import closure
from harness.core.store import Store
from harness.grid.expand import load
from harness.run import export as rows
from harness.run import plan as plans
from harness.run import states
from harness.run.compute import Values, compute, fail
from harness.run.runner import Outcome, run
from tests.support.forked import ForkedPopen
from tests.support.toys import toy_grid, toy_plan


class Silent:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def begin(self, key: str) -> None:
        self.heard.append(f"begin {key}")

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.heard.append(f"{done}/{total} {dict(metrics)}")

    def end(self, key: str, state: str, words: str) -> None:
        self.heard.append(f"{state} {words}")

    def note(self, words: str) -> None:
        self.heard.append(words)

    def waiting(self, owners: list[str]) -> None:
        self.heard.append("waiting")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    path.write_text("")
    monkeypatch.setenv("TOY_LOG", str(path))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def _run(tmp_path: Path, store: Store, retry: bool = False) -> tuple[plans.Plan, Outcome, Silent]:
    plan = toy_plan(tmp_path / "toy.yaml")
    watcher = Silent()
    return plan, run(plan, store, watcher, retry_before=math.inf if retry else 0.0), watcher


def test_everything_once_then_nothing(tmp_path: Path, store: Store, log: Path) -> None:
    plan, outcome, watcher = _run(tmp_path, store)
    assert len(outcome.computed) == 4 + 8
    assert sorted(log.read_text().splitlines()) == sorted(
        [f"made {label} {bits}" for label in "AB" for bits in (2, 3)]
        + ["rounded"] * 4  # once a cell, though two tasks use it
        + ["scored one", "scored two"] * 4
    )
    assert "1/2 {'loss': 0.5}" in watcher.heard
    assert set(states.find_states(plan, store).values()) == {
        "done",
        "queued",
    }  # unstored: never kept
    assert all(states.find_states(plan, store)[key] == "done" for key in plan.stored())
    before = log.read_text()
    _, outcome, _ = _run(tmp_path, store)
    assert outcome == Outcome()
    assert log.read_text() == before


def test_what_a_value_was_made_from_is_let_go(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a rounded model is scored, the model that it was rounded from is not held."""
    made: list[Values] = []
    monkeypatch.setattr(
        harness.run.runner, "Values", lambda store: made.append(Values(store)) or made[-1]
    )
    held: list[set[str]] = []

    class Looking(Silent):
        def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
            held.append({plan.nodes[key].kind for key in made[0].held})

    plan = toy_plan(tmp_path / "toy.yaml")
    run(plan, store, Looking())
    assert held == [{"toy-rounded"}] * 8
    assert made[0].held == {}


def test_a_lost_score_alone_is_computed_again(tmp_path: Path, store: Store, log: Path) -> None:
    plan, _, _ = _run(tmp_path, store)
    lost = plan.cells[0].scores[1]
    (store.path(lost) / "manifest.json").unlink()
    shutil.rmtree(store.path(lost))
    log.write_text("")
    _, outcome, _ = _run(tmp_path, store)
    assert outcome.computed == [lost]
    assert log.read_text().splitlines() == ["rounded", "scored two"]


def test_manifests_say_what_stood_behind(tmp_path: Path, store: Store) -> None:
    plan, _, _ = _run(tmp_path, store)
    key = plan.cells[0].scores[0]
    manifest = store.manifest(key)
    assert manifest["stage"] == {
        "kind": "toy-scored",
        "version": 1,
        "model": {"stage": plan.cells[0].model},
        "task": "one",
        "limit": None,
    }
    assert manifest["code"] == plan.nodes[key].code
    assert {"commit", "packages", "device", "wall_s", "peak_rss_gib", "threads"} <= set(manifest)
    assert manifest["packages"]["torch"].startswith("2.")


def test_a_failure_stops_its_cells_only_and_is_retried_on_demand(
    tmp_path: Path, store: Store, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", "A")
    plan, outcome, watcher = _run(tmp_path, store)
    assert (len(outcome.computed), len(outcome.failed), len(outcome.blocked)) == (6, 2, 4)
    record = store.failure(outcome.failed[0])
    assert record is not None
    assert record["message"] == "ValueError: planted"
    assert "toys.py" in record["traceback"]
    assert {"device", "commit", "hint"} <= set(record)
    assert states.find_states(plan, store)[outcome.failed[0]] == "failed"
    holes = _exported(plan, store, tmp_path)["holes"]
    assert {hole["reason"] for hole in holes} == {"failed: toy-made: ValueError: planted"}
    assert len(holes) == 2

    monkeypatch.delenv("TOY_FAIL")
    log.write_text("")
    _, outcome, watcher = _run(tmp_path, store)
    assert (outcome.computed, len(outcome.failed), len(outcome.blocked)) == ([], 2, 4)
    assert log.read_text() == ""
    given_up = [words for words in watcher.heard if words.startswith(("failed", "blocked"))]
    assert len(given_up) == 6 and all("--retry failed" in words for words in given_up)

    plan, outcome, _ = _run(tmp_path, store, retry=True)
    assert len(outcome.computed) == 6
    assert outcome.failed == outcome.blocked == []
    assert _exported(plan, store, tmp_path)["holes"] == []


def test_a_failing_rebuild_blocks_what_needs_it(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", "rounding")
    plan, outcome, _ = _run(tmp_path, store)
    assert (len(outcome.computed), len(outcome.blocked)) == (4, 8)
    reasons = {hole["reason"] for hole in _exported(plan, store, tmp_path)["holes"]}
    assert reasons == {"failed: toy-rounded: ValueError: planted"}
    # It is not kept and cost nothing, so it is tried again: what failed may not be in its key.
    monkeypatch.delenv("TOY_FAIL")
    assert len(_run(tmp_path, store)[1].computed) == 8


def test_a_failure_of_other_code_is_tried_again(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", "A")
    _, outcome, _ = _run(tmp_path, store)
    for key in outcome.failed:
        store.fail(key, {**(store.failure(key) or {}), "code": "as it was before"})
    monkeypatch.delenv("TOY_FAIL")
    assert len(_run(tmp_path, store)[1].computed) == 6


def test_stale_is_shown_and_nothing_is_run_again(tmp_path: Path, store: Store, log: Path) -> None:
    plan, _, _ = _run(tmp_path, store)
    key = plan.upstream(plan.cells[0].model)[0]
    _rewrite(store, key, {"code": "as it was before"})
    assert states.find_states(plan, store)[key] == "stale"
    behind = store.path(key) / "code.json"
    now = json.loads(behind.read_text())
    behind.write_text(json.dumps({**now, "tests.support.toys.log": "as it was before"}))
    _rewrite(store, key, {})
    assert states.explain_staleness(plan, key, store) == "code changed: tests.support.toys.log"
    behind.unlink()
    _rewrite(store, key, {})
    log.write_text("")
    assert _run(tmp_path, store)[1] == Outcome()
    assert log.read_text() == ""
    _exported(plan, store, tmp_path)
    stale = [json.loads(line)["stale"] for line in (tmp_path / "out/rows.jsonl").open()]
    assert stale[:2] == ["toy-made: code changed"] * 2
    assert stale[2:] == [None] * 6
    shutil.rmtree(store.path(key))  # the scores are there: nothing is run again, nor known
    assert _run(tmp_path, store)[1] == Outcome()
    _exported(plan, store, tmp_path)
    stale = [json.loads(line)["stale"] for line in (tmp_path / "out/rows.jsonl").open()]
    assert stale[:2] == ["toy-made: gone, so that the code behind it is not known"] * 2
    assert stale[2:] == [None] * 6


def _rewrite(store: Store, key: str, facts: Mapping[str, object]) -> None:
    """The manifest of a value as another version would have written it, for the files as they
    are."""
    folder = store.path(key)
    files = {path.name: path.stat().st_size for path in folder.iterdir()}
    del files["manifest.json"]
    manifest = {**store.manifest(key), "sha256": {}, "files": files, **facts}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_exported_rows_are_the_same_bytes_each_time(tmp_path: Path, store: Store) -> None:
    plan, _, _ = _run(tmp_path, store)
    _exported(plan, store, tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    _exported(plan, store, tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == first
    curve = json.loads(first["curves.jsonl"].splitlines()[0])
    assert (curve["label"], curve["bits"], curve["loss"]) == ("A", 2, 2.5)
    assert len(first["curves.jsonl"].splitlines()) == 4
    assert len(first["provenance.jsonl"].splitlines()) == 12 + 4  # with what is rebuilt


def test_exported_stages_lead_from_a_score_to_its_origin(tmp_path: Path, store: Store) -> None:
    plan, _, _ = _run(tmp_path, store)
    assert _exported(plan, store, tmp_path)["file"] == "toy.yaml"
    lines = (tmp_path / "out/provenance.jsonl").read_text().splitlines()
    kept = {line["key"]: line for line in map(json.loads, lines)}
    score = kept[plan.cells[0].scores[0]]
    rounded = kept[score["stage"]["model"]["stage"]]
    assert rounded["stage"]["kind"] == "toy-rounded"
    assert "wall_s" in score and "wall_s" not in rounded  # rebuilt in memory, nothing recorded
    made = kept[rounded["stage"]["model"]["stage"]]
    assert (made["stage"]["label"], made["stage"]["bits"]) == ("A", 2)


def test_a_failure_is_exported_with_its_hint(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", "A")
    plan, outcome, _ = _run(tmp_path, store)
    for key in outcome.failed:
        store.fail(key, {**(store.failure(key) or {}), "hint": "less of it"})
    holes = _exported(plan, store, tmp_path)["holes"]
    assert {hole["reason"] for hole in holes} == {
        "failed: toy-made: ValueError: planted (less of it)"
    }
    lines = (tmp_path / "out/provenance.jsonl").read_text().splitlines()
    assert not {json.loads(line)["key"] for line in lines} & set(outcome.failed)


def test_memory_of_the_host_that_torch_is_refused_has_a_hint(tmp_path: Path, store: Store) -> None:
    plan = toy_plan(tmp_path / "toy.yaml")
    stage = plan.stages()[plan.stored()[0]]
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator") as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert fail(stage, refused.value, store) is None
    assert "ask for more" in (store.failure(stage.key) or {})["hint"]
    assert fail(stage, RuntimeError("shapes differ"), store) is None
    assert (store.failure(stage.key) or {})["hint"] is None


def test_killed_at_any_moment_the_next_run_goes_on(tmp_path: Path, store: Store, log: Path) -> None:
    """kill -9 in the middle, then again: finished stages ran once, the interrupted one twice."""
    plan = toy_plan(tmp_path / "toy.yaml")
    for seen in (3, 7):
        child = _process(tmp_path, store, sleep=0.3)
        _until(lambda seen=seen: len(log.read_text().splitlines()) >= seen)
        child.kill()
        child.wait()
    done = {key for key in plan.stored() if store.has(key)}
    assert 0 < len(done) < 12
    finished = {key: store.manifest(key)["started"] for key in done}
    assert len(_run(tmp_path, store)[1].computed) == 12 - len(done)
    assert {key: store.manifest(key)["started"] for key in done} == finished


def test_ctrl_c_keeps_what_is_finished_and_frees_the_claim(
    tmp_path: Path, store: Store, log: Path
) -> None:
    child = _process(tmp_path, store, sleep=0.3)
    _until(lambda: "scored" in log.read_text())
    child.send_signal(signal.SIGINT)
    assert child.wait(20) != 0
    assert list((store.root / "claims").iterdir()) == []
    assert len(_run(tmp_path, store)[1].computed) < 12


def test_two_runs_at_once_compute_each_stage_once(tmp_path: Path, store: Store, log: Path) -> None:
    children = [_process(tmp_path, store, sleep=0.05) for _ in range(2)]
    assert [child.wait(120) for child in children] == [0, 0]
    lines = log.read_text().splitlines()
    assert sorted(line for line in lines if line != "rounded") == sorted(
        [f"made {label} {bits}" for label in "AB" for bits in (2, 3)]
        + ["scored one", "scored two"] * 4
    )


def _exported(plan: plans.Plan, store: Store, tmp_path: Path) -> dict:
    rows.export(plan, store, tmp_path / "out")
    return json.loads((tmp_path / "out" / "grid.json").read_text())


def _process(tmp_path: Path, store: Store, sleep: float) -> subprocess.Popen[bytes]:
    code = f"""
import os
os.environ["TOY_SLEEP"] = "{sleep}"
from pathlib import Path
from harness.run.runner import run
from harness.core.stage import closure
from harness.core.store import Store
from tests.harness.run.test_run import Silent
from tests.support.toys import toy_plan
plan = toy_plan(Path({str(tmp_path / "toy.yaml")!r}))
run(plan, Store(Path({str(store.root)!r})), Silent())
"""
    return ForkedPopen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def _until(true, limit: float = 60.0) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_a_curve_waits_for_the_first_score_which_tells_the_bits(
    tmp_path: Path, store: Store, log: Path
) -> None:
    """Killed between training and scores, a grid still has a report."""
    grid = toy_grid(tmp_path / "toy.yaml")
    plan, values = plans.build(grid), Values(store)
    made = [stage for cell in grid.cells for stage in closure([cell.model]) if stage.stored]
    for stage in made:
        compute(stage, values)
    rows.export(plan, store, tmp_path / "out")
    assert (tmp_path / "out/curves.jsonl").read_text() == ""
    compute(grid.cells[0].scores[0], values)
    rows.export(plan, store, tmp_path / "out")
    (line,) = (tmp_path / "out/curves.jsonl").read_text().splitlines()
    assert json.loads(line)["bits"] == 2


def test_a_text_that_is_shorter_than_asked_is_said_once(
    tmp_path: Path, tiny_folder: Path, store: Store
) -> None:
    (tmp_path / "short.txt").write_text("a few words " * 200)
    path = tmp_path / "short.yaml"
    path.write_text(
        f"model: {tiny_folder}\nmethod: awq-clip\nvary: {{format.bits: [3, 2]}}\n"
        f"defaults: {{format.group_size: 32, init.text: 'file:{tmp_path}/short.txt',"
        " init.length: 64, init.sequences: 100}\n"
        "evaluate: [{testbed-ppl: {limit: 1, window: 64}}]\n"
    )
    grid = load(path)
    watcher = Silent()
    outcome = run(plans.build(grid), store, watcher)
    assert not outcome.failed
    said = [words for words in watcher.heard if "asked for" in words]
    assert len(said) == 1
    assert re.search(
        r"short.txt, calibration: \d\d? sequences of 64 tokens where 100 were", said[0]
    )
