"""A job's share of a plan: its own stages alone, inputs waited for, the scheduler's ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.cluster import job, launches
from harness.cluster.launches import Launch
from harness.core.errors import BitgridError
from harness.core.store import Store
from harness.grid.expand import Grid
from harness.run import plan as plans
from harness.run import runner as running
from harness.run.plan import Plan, build
from harness.run.runner import Outcome, Share, run
from tests.harness.run.test_run import Silent
from tests.support.fakeslurm import launched
from tests.support.forked import ForkedPopen
from tests.support.toys import Made, toy_grid


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Grid, Plan]:
    monkeypatch.setattr(running, "POLL_S", 0.05)
    grid = toy_grid(tmp_path / "toy.yaml")
    return grid, build(grid)


def share(
    made: tuple[Grid, Plan], store: Store, keys: tuple[str, ...], since: float = 0.0, **more: Any
) -> tuple[Outcome, Silent]:
    watcher = Silent()
    return run(made[1], store, watcher, since, Share(keys, **more)), watcher


def cell(made: tuple[Grid, Plan]) -> tuple[Made, str, tuple[str, ...]]:
    """Of the first cell: its kept model, the key of what is rebuilt from it, its scores."""
    first = made[0].cells[0]
    return first.model.model, first.model.key, made[1].cells[0].scores  # type: ignore[attr-defined]


def record(made: tuple[Grid, Plan], key: str, when: float = 0.0) -> dict[str, Any]:
    return {"code": made[1].nodes[key].code, "when": when, "message": "planted before"}


# Shares


def test_only_a_job_s_own_stages_are_computed(made: tuple[Grid, Plan], store: Store) -> None:
    model, _, scores = cell(made)
    assert share(made, store, (model.key,))[0].computed == [model.key]
    assert share(made, store, scores[:1])[0].computed == [scores[0]]
    assert store.keys() == sorted([model.key, scores[0]])
    assert share(made, store, (model.key, scores[0]))[0] == Outcome()


def test_an_input_that_nobody_makes_is_reported(made: tuple[Grid, Plan], store: Store) -> None:
    model, _, scores = cell(made)
    began = time.monotonic()
    outcome, watcher = share(made, store, scores, patience_s=0.3)
    assert 0.3 <= time.monotonic() - began < 20
    assert outcome == Outcome(blocked=list(scores))
    words = f"blocked an input is missing: toy-made {model.key[:8]}, and nobody is computing it"
    assert words in watcher.heard
    assert store.keys() == [] and store.failure(scores[0]) is None


def test_an_input_is_waited_for_while_somebody_makes_it(
    made: tuple[Grid, Plan], store: Store
) -> None:
    model, _, scores = cell(made)
    with _Elsewhere(store, model, lambda: store.commit(model, {"bits": 2}, {})):
        outcome, watcher = share(made, store, scores, patience_s=0.1)
    assert sorted(outcome.computed) == sorted(scores) and "waiting" in watcher.heard


def test_an_input_that_fails_Elsewhere_blocks(made: tuple[Grid, Plan], store: Store) -> None:
    model, _, scores = cell(made)
    with _Elsewhere(store, model, lambda: store.fail(model.key, record(made, model.key))):
        outcome, watcher = share(made, store, scores, patience_s=30.0)
    assert outcome == Outcome(blocked=list(scores))
    assert "blocked an input failed: toy-made: planted before" in watcher.heard


def test_what_failed_before_the_launch_is_run_again_by_its_own_job_alone(
    made: tuple[Grid, Plan], store: Store
) -> None:
    model, rebuilt, scores = cell(made)
    store.fail(model.key, record(made, model.key, when=10.0))
    assert share(made, store, scores, since=20.0)[0] == Outcome(blocked=list(scores))
    assert share(made, store, (model.key,), since=5.0)[0] == Outcome(failed=[model.key])
    assert share(made, store, (model.key,), since=20.0)[0] == Outcome(computed=[model.key])
    assert store.failure(model.key) is None
    # What is not kept is each job's own to rebuild.
    store.fail(rebuilt, record(made, rebuilt, when=10.0))
    assert sorted(share(made, store, scores, since=5.0)[0].computed) == sorted(scores)


def test_a_stage_is_made_leaner_as_often_as_asked(
    made: tuple[Grid, Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _, _ = cell(made)
    halved: list[str] = []
    monkeypatch.setattr(Made, "leaner", lambda self: halved.append(self.key) or self)
    share(made, store, (model.key,), halvings={model.key: 2})
    assert halved == [model.key] * 2


# Whole jobs


@pytest.fixture
def launch(made: tuple[Grid, Plan], store: Store) -> Iterator[Launch]:
    """A job for each of the first two cells, of the toys' grid."""
    before = signal.getsignal(signal.SIGTERM)
    yield _launch(made, store)
    signal.signal(signal.SIGTERM, before)


def _launch(made: tuple[Grid, Plan], store: Store) -> Launch:
    keys = [
        (c.model.model.key, *(s.key for s in c.scores))  # type: ignore[attr-defined]
        for c in made[0].cells[:2]
    ]
    launch = launched(store.root, made[0].path, keys)
    plans.write(made[1], launch.folder / launches.PLAN)
    return replace(launch, visible_s=0.1)


def test_a_job_computes_its_stages_and_says_so(
    launch: Launch, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    assert job.work(launch.folder, 1) == {"computed": 3}
    assert store.keys() == sorted(launch.jobs[1].keys)
    lines = [line.split(" ", 1)[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == f"job 1 of {launch.id}, attempt 0: 3 stages"
    key = launch.jobs[1].keys[0]
    assert lines[1] == f"begin toy-made A bits=3 seed=0 ({key[:8]})"
    assert lines[2].startswith(f"done toy-made A bits=3 seed=0 ({key[:8]}) 0.")
    assert job.work(launch.folder, 1) == {"computed": 0}  # a requeued job finds it done


def test_a_job_with_a_failure_says_so_to_the_scheduler(
    launch: Launch, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_FAIL", "A")
    with pytest.raises(BitgridError, match="1 stages failed, 2 lack an input"):
        job.work(launch.folder, 0)
    assert (store.failure(launch.jobs[0].keys[0]) or {})["message"] == "ValueError: planted"


def test_a_stage_that_is_another_one_with_the_code_of_today_is_refused(
    launch: Launch, store: Store
) -> None:
    path = launch.folder / launches.PLAN
    path.write_text(path.read_text().replace('"bits": 2', '"bits": 4'))
    with pytest.raises(BitgridError, match=r"toy-made \w+ is another stage with this code"):
        job.work(launch.folder, 0)
    assert store.keys() == []


def test_a_file_that_changed_since_the_launch_is_refused(
    launch: Launch, made: tuple[Grid, Plan], store: Store, tmp_path: Path
) -> None:
    """Else another model's numbers would lie under this one's key."""
    key, weights = launch.jobs[0].keys[0], tmp_path / "weights"
    weights.write_text("0")
    node = replace(made[1].nodes[key], files=(plans.mark_file(weights),))
    plan = replace(made[1], nodes={**made[1].nodes, key: node})
    plans.write(plan, launch.folder / launches.PLAN)
    weights.write_text("01")
    with pytest.raises(BitgridError, match=f"{weights} has changed since the plan was made"):
        job.work(launch.folder, 0)
    assert store.keys() == []


def test_a_job_that_kept_nothing_until_its_limit_is_stuck(
    launch: Launch, made: tuple[Grid, Plan], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what lies there, not by clocks of hosts; and it is lost, for there is no record of it."""
    key = launch.jobs[0].keys[0]
    owned = store.root / "work" / key / "owner"
    owned.mkdir(parents=True)
    (owned / "checkpoint").write_text("1")
    attempt = job.Attempt(made[1], store, launch.jobs[0], job._list_kept(store, (key,)))
    attempt.running = key
    monkeypatch.setattr(job, "_attempt", attempt)
    assert not job.is_stuck()  # it is not late
    attempt.began -= 3600 * launch.jobs[0].hours
    assert job.is_stuck()
    (owned / "progress.json").write_text("{}")
    owned.rename(owned.with_name("another"))  # as a new owner does
    assert job.is_stuck() and store.failure(key) is None
    (owned.with_name("another") / "checkpoint").write_text("12")
    assert not job.is_stuck()


@pytest.mark.parametrize("ended", [True, False])
def test_what_breaks_while_the_scheduler_ends_a_job_is_no_failure(
    made: tuple[Grid, Plan], store: Store, tmp_path: Path, ended: bool
) -> None:
    launch = _launch(made, store)
    launch.write()
    code = f"""
import time
from pathlib import Path
from harness.cluster import job
from tests.support import toys
def breaks(self, work):
    Path({str(tmp_path / "begun")!r}).touch()
    while not Path({str(tmp_path / "break")!r}).exists():
        time.sleep(0.02)
    raise RuntimeError("a process was killed")
toys.Made.run = breaks
job.work(Path({str(launch.folder)!r}), 0)
"""
    child = ForkedPopen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert child.stdout
    try:
        _until((tmp_path / "begun").exists)
        if ended:
            child.send_signal(signal.SIGTERM)
        (tmp_path / "break").touch()
        for line in child.stdout:
            if "failed toy-made" in line:
                break
        key = launch.jobs[0].keys[0]
        if ended:
            _until(lambda: store.failure(key) is None)
            assert child.poll() is None  # the scheduler's to end
        else:
            assert child.wait(60) != 0
            assert store.failure(key) is not None
    finally:
        child.kill()
        child.wait()


class _Elsewhere:
    """Another process that claims a stage and half a second later has done `then`."""

    def __init__(self, store: Store, stage: Made, then: Callable[[], None]) -> None:
        self.claimed = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(store, stage, then))

    def _work(self, store: Store, stage: Made, then: Callable[[], None]) -> None:
        claim = store.claim(stage.key)
        assert claim is not None
        with claim:
            self.claimed.set()
            time.sleep(0.5)
            then()

    def __enter__(self) -> None:
        self.thread.start()
        assert self.claimed.wait(10)

    def __exit__(self, *_: object) -> None:
        self.thread.join()


def _until(true: Callable[[], bool], limit: float = 60.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
