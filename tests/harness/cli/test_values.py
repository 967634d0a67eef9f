"""verify and keep, on a finished store of toys: what is damaged is named with its cells."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from harness.cli import running, verb
from harness.cli.main import main
from harness.core.store import Store
from harness.run import remembering
from harness.run.plan import Plan
from harness.run.runner import run
from tests.harness.run.test_healing import Silent
from tests.support.toys import toy_grid, toy_plan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plan(tmp_path: Path, store: Store) -> Plan:
    plan = remembering.remember(toy_plan(tmp_path / "toy.yaml"), store)
    run(plan, store, Silent())
    return plan


def test_a_sound_store_is_said_to_be_one(
    store: Store, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", "--store", str(store.root)]) == 0
    assert capsys.readouterr().out == "12 values: 12 as they were written, 0 damaged\n"
    assert main(["verify", plan.path, "--store", str(store.root)]) == 0


def test_what_is_damaged_is_named_with_its_cells_and_discarded_on_demand(
    store: Store, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    made = next(key for key, node in plan.nodes.items() if node.kind == "toy-made")
    path = store.path(made) / "code.json"
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    (store.path(plan.cells[1].scores[0]) / "manifest.json").unlink()
    for words in ([], [plan.path]):
        assert main(["verify", *words, "--store", str(store.root)]) == 1
        out = capsys.readouterr().out
        assert f"damaged: {path} is not what was written: its sha256 differs; it touches " in out
        assert f"toy: {plan.cells[0].id}" in out
        assert "12 values: 10 as they were written, 2 damaged" in out
        assert f"nothing is stored under {plan.cells[1].scores[0]}; it touches " in out
    assert main(["verify", "--discard", "--store", str(store.root)]) == 1
    assert "2 moved to the trash, to be computed again" in capsys.readouterr().out
    outcome = run(plan, Store(store.root), Silent())
    assert outcome.computed == [
        plan.cells[1].scores[0]
    ]  # for scores that are there no model is made
    assert main(["verify", "--store", str(store.root)]) == 0


@pytest.mark.parametrize("whole", [True, False])
def test_keep_touches_what_a_purge_would_take_and_no_claim(
    store: Store, plan: Plan, whole: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    old = time.time() - 30 * 24 * 3600
    claim = store.root / "claims" / "another.0"
    claim.write_text("{}")
    for path in store.root.rglob("*"):
        os.utime(path, (old, old))
    words = [] if whole else [plan.path]
    assert main(["keep", *words, "--store", str(store.root)]) == 0
    assert "the oldest was 30.0 days old" in capsys.readouterr().out
    kept = [*(store.root / "values").rglob("*"), *(store.root / "plans").rglob("*")]
    assert len(kept) > 24
    assert all(path.stat().st_mtime > old + 1000 for path in kept if path.parent.name != "values")
    assert claim.stat().st_mtime < old + 1000


@pytest.mark.parametrize("verb", ["verify", "keep"])
def test_of_a_store_that_is_not_there_nothing_is_said(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, "--store", str(tmp_path / "typo")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and f"there is no store at {tmp_path / 'typo'}" in told.err


def test_a_finished_store_whose_plans_cannot_be_read_is_read(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The plan is made in memory; only what is to be computed needs one that is kept."""
    grid, where = Path(plan.path), ["--store", str(store.root)]
    monkeypatch.chdir(grid.parent)
    for module in (running, verb):
        monkeypatch.setattr(module, "load_grid", lambda *_, **__: toy_grid(grid))
    monkeypatch.setattr(running, "show_report", lambda folder: None)  # which takes its time
    shutil.rmtree(store.root / "plans")
    (store.root / "plans").write_text("no folder")
    for name in ("status", "run", "verify"):
        assert main([name, str(grid), *where]) == 0, capsys.readouterr().err
    assert main(["gc", *where]) == 2
    assert "plans cannot be read (Not a directory), so what it needs" in capsys.readouterr().err
    shutil.rmtree(store.path(plan.cells[0].scores[0]))
    assert main(["run", str(grid), *where]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bitgrid: the store {store.root} cannot be written: ")


def test_one_broken_plan_costs_verify_nothing_and_gc_one_line(
    store: Store, plan: Plan, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = store.root / "plans" / "another-12345678.json"
    broken.write_text('{"schema": 6, "cells": 3')
    assert main(["verify", "--store", str(store.root)]) == 0
    capsys.readouterr()
    assert main(["gc", "--store", str(store.root)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"bitgrid: {broken} cannot be read (")


@pytest.mark.parametrize("name", ["status", "run", "report", "verify", "gc"])
def test_a_store_whose_values_cannot_be_read_is_one_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store, grid = tmp_path / "store", tmp_path / "toy.yaml"
    grid.write_text("# Do toys work?\n")
    store.mkdir()
    (store / "values").write_text("no folder")
    assert main([name, *([] if name == "gc" else [str(grid)]), "--store", str(store)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"bitgrid: the store {store / 'values'} cannot be read: Not a directory"
