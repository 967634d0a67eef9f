"""Plans: kept as JSON, read back while nothing behind them changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.core.stage import closure
from harness.core.store import Store
from harness.run import plan as plans
from harness.run import remembering
from harness.run.plan import build
from harness.run.remembering import remember, remembered
from harness.run.states import needed
from tests.support.toys import toy_grid


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_plan_comes_back_equal(tmp_path: Path, store: Store) -> None:
    plan = build(toy_grid(tmp_path / "toy.yaml"))
    assert remembered(tmp_path / "toy.yaml", store) is None
    remember(plan, store)
    assert remembered(tmp_path / "toy.yaml", store) == plan
    assert [known.name for known in remembering.list_known(store)] == ["toy"]


def test_a_changed_grid_or_source_is_planned_anew(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(plans.provenance, "list_sources", lambda: [source])
    path = tmp_path / "toy.yaml"
    remember(build(toy_grid(path)), store)
    assert remembered(path, store) is not None
    source.write_text("x = 22\n")
    assert remembered(path, store) is None
    remember(build(toy_grid(path)), store)
    path.write_text("# Another question?\n")
    assert remembered(path, store) is None
    path.unlink()
    assert [known.standing for known in remembering.list_known(store)] == ["lost"]


def test_a_broken_memory_is_no_memory(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "toy.yaml"
    remember(build(toy_grid(path)), store)
    (kept,) = (store.root / "plans").iterdir()
    for text in ("{", '{"schema": 99}', '{"schema": 1}'):
        kept.write_text(text)
        assert remembered(path, store) is None


def test_inputs_come_before_users_and_unstored_stages_are_needed_too(
    tmp_path: Path, store: Store
) -> None:
    plan = build(toy_grid(tmp_path / "toy.yaml"))
    order = needed(plan, store)
    assert len(order) == 4 * (1 + 1 + 2)
    for key in order:
        assert all(order.index(above) < order.index(key) for above in plan.nodes[key].inputs)
    assert len(plan.stored()) == 4 * (1 + 2)
    cell = plan.cells[0]
    assert plan.upstream(cell.scores[0])[-2:] == [cell.model, cell.scores[0]]


def test_a_new_stage_says_which_parameter_changed(tmp_path: Path) -> None:
    store, path = Store(tmp_path / "store"), tmp_path / "toy.yaml"
    grid = toy_grid(path, bits=(2,))
    remember(plans.build(grid), store)
    cells = tuple(
        replace(cell, scores=tuple(replace(s, task=s.task, limit=3) for s in cell.scores))  # type: ignore[call-arg]
        for cell in grid.cells
    )
    plan = remember(plans.build(replace(grid, cells=cells)), store)
    reasons = {node.kind: node.why for node in plan.nodes.values()}
    assert reasons == {
        "toy-made": None,
        "toy-rounded": None,
        "toy-scored": "parameters changed: limit: None -> 3",
    }
    assert remember(plan, store) == plan  # and goes on to say so


def test_stages_come_back_from_a_kept_plan(tmp_path: Path) -> None:
    grid = toy_grid(tmp_path / "toy.yaml")
    plan = plans.build(grid)
    plans.write(plan, tmp_path / "plan.json")
    stages = plans.read(tmp_path / "plan.json").stages()
    roots = [root for cell in grid.cells for root in cell.roots]
    assert stages == {stage.key: stage for stage in closure(roots)}
    some = plan.stages([roots[0].key])
    assert set(some) == set(plan.upstream(roots[0].key))
