"""Values that are computed again: what was made of them stands where they are what they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cli import running, verb
from harness.cli.main import main
from harness.core.errors import StoreError
from harness.core.files import digest_json
from harness.core.store import Store
from harness.run import export, remembering, renewal, states
from harness.run.plan import Plan
from harness.run.runner import Share, run
from tests.harness.run.test_healing import Silent
from tests.support import fakeslurm
from tests.support.toys import toy_grid, toy_plan


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(path))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plan(tmp_path: Path, store: Store, log: Path) -> Plan:
    """Of a finished grid: four models, each with two scores."""
    plan = remembering.remember(toy_plan(tmp_path / "toy.yaml"), store)
    run(plan, store, Silent())
    log.write_text("")
    return plan


@pytest.fixture
def bitgrid(monkeypatch: pytest.MonkeyPatch, plan: Plan, store: Store) -> Any:
    """A verb on the grid of toys, in this process."""
    monkeypatch.setattr(running, "load_grid", lambda path, *_, **__: toy_grid(path))
    monkeypatch.setattr(verb, "load_grid", lambda path, *_, **__: toy_grid(path))
    monkeypatch.setattr(running, "show_report", lambda folder: None)  # which takes its time
    monkeypatch.chdir(store.root.parent)
    return lambda word, *words: main([word, plan.path, "--store", str(store.root), *words])


def rewrite(store: Store, key: str, **facts: Any) -> None:
    """The manifest of a value as another version, or another machine, would have written it."""
    manifest = {**store.manifest(key), **facts}
    whole = {**manifest, "digest": digest_json(manifest)}
    (store.path(key) / "manifest.json").write_text(json.dumps(whole))


def find_model(plan: Plan, cell: int = 0) -> str:
    """The kept model behind a cell's scores."""
    return plan.upstream(plan.cells[cell].model)[0]


def read_scores(plan: Plan, store: Store) -> Mapping[str, bytes]:
    scores = [key for cell in plan.cells for key in cell.scores]
    return {key: (store.path(key) / "manifest.json").read_bytes() for key in scores}


def renew(plan: Plan, store: Store) -> renewal.Renewed:
    """What `run --retry stale` does."""
    renewal.begin(plan, store, list(plan.nodes))
    keys = states.needed(plan, store, renewal.list_open(plan, store))
    run(plan, store, Silent(), share=Share(tuple(keys)))
    return renewal.settle(plan, store)


def test_what_was_made_of_a_value_that_is_the_same_stands(
    plan: Plan, store: Store, log: Path, bitgrid: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    key, before = find_model(plan), read_scores(plan, store)
    rewrite(store, key, code="as it was before")
    assert bitgrid("run") == 0 and log.read_text() == ""  # not unless it is asked for
    assert bitgrid("run", "--retry", "stale") == 0
    assert "computed again, as before: 1 toy-made" in capsys.readouterr().err
    assert log.read_text() == "made A 2\n"
    assert read_scores(plan, store) == before
    assert states.list_stale(plan, store) == []
    assert list((store.root / "renewals").iterdir()) == []
    log.write_text("")
    assert bitgrid("run", "--retry", "stale") == 0 and log.read_text() == ""


def test_what_was_made_of_a_value_that_is_another_is_made_anew(
    plan: Plan, store: Store, log: Path, bitgrid: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    key, before = find_model(plan), read_scores(plan, store)
    rewrite(store, key, code="as it was before", value={"bits": 9})
    assert bitgrid("run", "--retry", "stale") == 0
    said = capsys.readouterr().err
    assert "computed again, other than before: 1 toy-made" in said
    assert "moved to the trash, to be computed again: 2 values made of those" in said
    lie = {path.name: path.parent.name for path in (store.root / "trash").glob("*/*/*")}
    assert lie == {key: "stale"} | dict.fromkeys(plan.cells[0].scores, "outdated")
    made = ["made A 2", "rounded", "scored one", "scored two"]
    assert sorted(log.read_text().splitlines()) == made
    after = read_scores(plan, store)
    assert {key for key in after if after[key] != before[key]} == set(plan.cells[0].scores)
    assert states.list_stale(plan, store) == [] and renewal.list_open(plan, store) == []


def test_of_the_cells_that_are_named_alone(
    plan: Plan, store: Store, log: Path, bitgrid: Any
) -> None:
    for cell in (0, 3):
        rewrite(store, find_model(plan, cell), code="as it was before")
    bitgrid("run", "--retry", "stale", "--only", plan.cells[3].id)
    assert log.read_text() == "made B 3\n"
    assert states.list_stale(plan, store) == ["toy-made: code changed"]


def test_what_is_stale_itself_is_computed_of_the_new_value_once(
    plan: Plan, store: Store, log: Path
) -> None:
    key, (one, two) = find_model(plan), plan.cells[0].scores
    rewrite(store, key, code="as it was before", value={"bits": 9})
    rewrite(store, one, code="as it was before")
    renewed = renew(plan, store)
    assert (renewed.same, renewed.other, renewed.taken_out) == ([one], [key], [two])
    assert log.read_text().splitlines().count("scored one") == 1


def test_another_grid_of_the_store_learns_of_it_too(plan: Plan, store: Store) -> None:
    rewrite(store, find_model(plan), code="as it was before", value={"bits": 9})
    nodes = {key: plan.nodes[key] for key in plan.upstream(plan.cells[0].model)}
    without_scores = replace(plan, nodes=nodes, cells=())
    assert set(renew(without_scores, store).taken_out) == set(plan.cells[0].scores)


def test_a_stop_at_any_moment_loses_no_comparison(plan: Plan, store: Store, log: Path) -> None:
    key = find_model(plan)
    rewrite(store, key, code="as it was before", value={"bits": 9})
    kept = store.root / "kept"
    shutil.copytree(store.path(key), kept)
    assert renewal.begin(plan, store, list(plan.nodes)) == [key]
    shutil.copytree(kept, store.path(key))  # stopped between the note and the move
    assert renew(plan, store).other == [key]
    run(plan, store, Silent())
    log.write_text("")

    rewrite(store, key, code="as it was before", value={"bits": 9})
    renewal.begin(plan, store, list(plan.nodes))  # and stopped
    assert renewal.list_open(plan, store) == [key]
    assert renewal.settle(plan, store) == renewal.Renewed()  # it is still to come
    assert renew(plan, store).other == [key]
    assert log.read_text() == "made A 2\n"


def test_rows_say_what_has_not_been_compared_yet(
    plan: Plan, store: Store, tmp_path: Path, bitgrid: Any
) -> None:
    key = find_model(plan)
    rewrite(store, key, code="as it was before", value={"bits": 9})
    renewal.begin(plan, store, list(plan.nodes))
    run(plan, store, Silent(), share=Share((key,)))  # as a job would, of a launch
    export.export(plan, store, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").open()]
    said = "toy-made: computed again, not compared yet: 'bitgrid run' does"
    assert [row["stale"] for row in rows] == [said] * 2 + [None] * 6
    assert bitgrid("run") == 0  # asked or not: a score must not stand beside another model
    assert renewal.list_open(plan, store) == []


def test_a_damaged_value_that_comes_back_otherwise_is_no_exception(
    plan: Plan, store: Store, log: Path, bitgrid: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    key = find_model(plan)
    rewrite(store, key, value={"bits": 9})  # by another processor
    (store.path(key) / "code.json").write_text("{}")
    assert main(["verify", "--discard", "--store", str(store.root)]) == 1
    bitgrid("run")
    assert "other than before: 1 toy-made" in capsys.readouterr().err
    assert sorted(log.read_text().splitlines())[:2] == ["made A 2", "rounded"]


@pytest.mark.parametrize("note", ["", "[]", '{"content": 3}', "{}"])
def test_a_note_that_says_nothing_counts_as_another_value(
    plan: Plan, store: Store, note: str
) -> None:
    key = find_model(plan)
    (store.root / "renewals").mkdir()
    (store.root / "renewals" / f"{key}.json").write_text(note)
    assert renewal.settle(plan, store).other == [key]


def test_a_note_that_cannot_be_written_leaves_the_value_where_it_is(
    plan: Plan, store: Store
) -> None:
    key = find_model(plan)
    (store.root / "renewals").write_text("no folder")
    with pytest.raises(StoreError, match="renewals"):
        renewal.take_out(store, key)
    assert store.has(key)


def test_a_launch_submits_what_is_stale_and_says_when_it_is_compared(
    plan: Plan,
    store: Store,
    tmp_path: Path,
    bitgrid: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    slurm = fakeslurm.install(tmp_path / "lab", monkeypatch)
    (tmp_path / "cluster.yaml").write_text("cpus: 1\nmemory_gib: 2\nhours: 0.1\ngpu: none\n")
    words = ("--cluster", "cluster.yaml", "--retry", "stale")
    key = find_model(plan)
    rewrite(store, key, code="as it was before", value={"bits": 9})
    assert bitgrid("launch", *words, "--dry") == 2 and store.has(key)
    assert "--dry changes nothing" in capsys.readouterr().err
    assert bitgrid("launch", *words) == 0
    assert "once these have ended: compares with before" in capsys.readouterr().out
    assert len(slurm.submitted) == 1 and not store.has(key)
    run(plan, store, Silent(), share=Share((key,)))  # as its job does
    assert bitgrid("launch", *words[:2]) == 0
    said = capsys.readouterr()
    assert "moved to the trash, to be computed again: 2 values made of those" in said.err
    assert len(slurm.submitted) == 2  # for the scores
