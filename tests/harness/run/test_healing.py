"""Runs on a store that something happened to: damage is computed again, outbid owners leave."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from harness.core.claims import Claim, Claims
from harness.core.errors import Damaged, StoreError
from harness.core.scratch import Scratch
from harness.core.store import Store
from harness.run import export, states
from harness.run.plan import Plan
from harness.run.runner import run
from tests.support.toys import toy_plan


class Silent:
    """A watcher that remembers what it is told in words."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: list[str] = []

    def begin(self, key: str) -> None: ...

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None: ...

    def end(self, key: str, state: str, words: str) -> None:
        self.ended.append(f"{state} {words}".strip())

    def note(self, words: str) -> None:
        self.notes.append(words)

    def waiting(self, owners: list[str]) -> None: ...


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return toy_plan(tmp_path / "toy.yaml")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _find_made(plan: Plan) -> str:
    """The model behind the first cell's scores."""
    return next(key for key, node in plan.nodes.items() if node.kind == "toy-made")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a bit of a file": lambda folder: _flip(folder / "code.json"),
    "a file gone": lambda folder: (folder / "code.json").unlink(),
    "a file cut": lambda folder: (folder / "code.json").write_text("{"),
    "a bit of the facts": lambda folder: _flip(folder / "manifest.json"),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "an empty manifest": lambda folder: (folder / "manifest.json").write_bytes(b""),
    "a folder for a file": lambda folder: (
        (folder / "code.json").unlink(),
        (folder / "code.json").mkdir(),
    ),  # type: ignore[dict-item]
    "nothing left": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_input_is_computed_again_before_it_is_used(
    store: Store, plan: Plan, damage: str
) -> None:
    assert not run(plan, store, Silent()).failed
    made, score = _find_made(plan), plan.cells[0].scores[0]
    before = {key: store.manifest(key)["value"] for key in (made, score)}
    DAMAGES[damage](store.path(made))
    shutil.rmtree(store.path(score))
    watcher = Silent()
    outcome = run(plan, Store(store.root), watcher)
    assert (set(outcome.computed), outcome.failed) == ({made, score}, [])
    for key, value in before.items():
        store.check_files(key)
        assert store.manifest(key)["value"] == value
    assert not list((store.root / "work").glob("*"))


def test_what_is_damaged_is_said_and_what_is_read_is_checked(store: Store, plan: Plan) -> None:
    run(plan, store, Silent())
    score = plan.cells[0].scores[0]
    _flip(store.path(score) / "items.jsonl.gz")
    fresh = Store(store.root)
    assert states.list_damaged(plan, fresh) == []  # its sizes are right
    states.check_scores(plan, fresh)
    (line,) = states.list_damaged(plan, fresh)
    assert line.startswith("toy-scored: ") and line.endswith("its sha256 differs")
    assert states.needed(plan, fresh)[-1] == score


def test_an_owner_that_is_outbid_leaves_quietly(store: Store, plan: Plan) -> None:
    """Its folder is another's at the first report; then that one dies, and it begins anew."""

    class Outbidding(Silent):
        def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
            if not self.notes and not self.moved:
                (folder,) = (store.root / "work").glob("*/*")
                folder.rename(folder.with_name("another"))
                self.moved = True

        moved = False

    watcher = Outbidding()
    outcome = run(plan, store, watcher)
    assert watcher.moved
    assert (outcome.failed, outcome.blocked, store.failed()) == ([], [], set())
    assert sorted(outcome.computed) == sorted(plan.stored())
    (note,) = watcher.notes
    assert note.startswith("toy-scored ") and note.endswith("process, and is left to it")


def test_an_owner_that_is_outbid_before_it_has_a_folder_records_no_failure(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is paused there until another has kept the value, and finds the stage's folder gone."""
    other, made = Store(store.root.with_name("other")), _find_made(plan)
    run(plan, other, Silent())
    take_over = Store.take_over

    def take_over_late(self: Store, claim: Claim) -> Scratch:
        if claim.key == made:
            shutil.copytree(other.path(made), self.path(made))
            raise StoreError("work: No such file or directory")
        return take_over(self, claim)

    monkeypatch.setattr(Store, "take_over", take_over_late)
    outcome = run(plan, store, Silent())
    assert (outcome.failed, outcome.blocked, store.failed()) == ([], [], set())
    assert set(outcome.computed) == set(plan.stored()) - {made}


def test_a_failure_that_cannot_be_recorded_is_said_once_and_stops_no_other_cell(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setenv("TOY_FAIL", "A")
    monkeypatch.setattr(Store, "fail", refuse)
    watcher = Silent()
    outcome = run(plan, store, watcher)
    assert watcher.notes == ["failures cannot be recorded: the disk is full"]
    assert (len(outcome.failed), len(outcome.blocked)) == (2, 4)
    assert len(outcome.computed) == 6


def test_a_stage_that_cannot_be_claimed_fails_alone(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, take = _find_made(plan), Claims.take

    def refuse(self: Claims, key: str, is_done: Callable[[], bool]) -> Any:
        if key == made:
            raise StoreError("claims: No space left on device")
        return take(self, key, is_done)

    monkeypatch.setattr(Claims, "take", refuse)
    watcher = Silent()
    outcome = run(plan, store, watcher)
    assert outcome.failed == [made]
    assert len(outcome.computed) == len(plan.stored()) - 3
    assert "failed claims: No space left on device" in watcher.ended


def test_what_another_runner_has_healed_is_not_thrown_away(
    store: Store, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the damage; the other has put a new value there before this one acts."""
    run(plan, store, Silent())
    made, score, load, seen = _find_made(plan), plan.cells[0].scores[0], Store.load, []

    def load_late(self: Store, stage: Any, **options: Any) -> Any:
        if stage.key == made and not seen:
            seen.append(made)
            raise Damaged("as it was a moment ago", made)
        return load(self, stage, **options)

    shutil.rmtree(store.path(score))
    monkeypatch.setattr(Store, "load", load_late)
    outcome = run(plan, Store(store.root), Silent())
    assert seen == [made]
    assert (outcome.computed, outcome.failed) == ([score], [])
    assert not (store.root / "trash").exists()


def test_a_damaged_log_costs_its_curve_and_no_row(
    store: Store, plan: Plan, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    run(plan, store, Silent())
    log = store.path(_find_made(plan)) / "metrics.jsonl"
    times, content = log.stat(), log.read_bytes()
    log.write_bytes(content.replace(b"2.5", b"7.5"))  # JSON all the same
    os.utime(log, ns=(times.st_atime_ns, times.st_mtime_ns))
    export.export(plan, Store(store.root), tmp_path / "out")
    curves = (tmp_path / "out" / "curves.jsonl").read_text()
    assert (curves.count('"loss": 2.5'), curves.count("7.5")) == (3, 0)
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 8
    (warning,) = recwarn
    assert f"no curve of {plan.cells[0].id}: {log} is not what was written" in str(warning.message)
