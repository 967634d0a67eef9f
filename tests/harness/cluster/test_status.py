"""How far a grid is: from values, claims, failures, progress, the queue and logs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cluster import scheduler
from harness.cluster import status as watch
from harness.cluster.launches import Launch
from harness.core.store import Store
from harness.run.plan import Plan
from harness.run.runner import run
from harness.run.states import find_states
from tests.harness.run.test_run import Silent
from tests.support import fakeslurm
from tests.support.fakeslurm import Slurm, launched
from tests.support.toys import toy_plan


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return fakeslurm.install(tmp_path / "lab", monkeypatch)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return toy_plan(tmp_path / "toy.yaml")


def job(plan: Plan, cell: int) -> tuple[str, ...]:
    """Keys of a cell's job: its model, then its two scores."""
    made, _ = plan.upstream(plan.cells[cell].model)
    return made, *plan.cells[cell].scores


def launch(plan: Plan, store: Store) -> Launch:
    """All four cells, a job each."""
    return launched(store.root, Path(plan.path), [job(plan, cell) for cell in range(4)])


def states(plan: Plan, store: Store, cell: int) -> list[str]:
    found = {stage.key: stage.state for stage in watch.look(plan, store).stages}
    return [found[key] for key in job(plan, cell)]


def fail(plan: Plan, store: Store, key: str, when: float) -> None:
    store.fail(key, {"code": plan.nodes[key].code, "when": when, "message": "planted"})


def test_what_was_never_launched_is_to_do_and_asks_no_queue(plan: Plan, store: Store) -> None:
    view = watch.look(plan, store)
    assert {stage.state for stage in view.stages} == {"to do"} and not view.trouble
    assert watch.count_states(view) == (["", "to do"], [["toy-made", "4"], ["toy-scored", "8"]])


def test_queued_running_done_and_lost(plan: Plan, store: Store, slurm: Slurm) -> None:
    made = launch(plan, store)
    slurm.queue(
        f"7|0|RUNNING|None|{made.name(0)}",
        f"7|1|PENDING|Resources|{made.name(0)}",
        nodes="node[1-2]",
    )
    log = made.folder / "logs" / "0" / "7_2_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: *** JOB 9 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***\n")
    model, score, _ = job(plan, 0)
    claim = store.claim(model)
    assert claim is not None
    with claim:
        when = time.time()
        facts = {"total": 100, "metrics": {"loss": 2.31}, "first": [20, when - 60.0]}
        store.take_over(claim).say_progress({"done": 50, **facts})
        view = watch.look(plan, store)
    found = {stage.key: stage for stage in view.stages}
    assert found[model].state == "running"
    # 30 steps in 60 s: 50 more take 100 s; a second may have gone by since.
    words = "step 50/100 loss 2.31, 1:{} left; its job on node[1-2] ends in 1:00:00"
    assert found[model].words in {words.format(s) for s in (38, 39, 40)}
    assert (found[score].state, found[score].words) == ("queued", "its job is running")
    assert {found[key].words for key in job(plan, 1)} == {"Resources"}
    lost = [found[key] for key in job(plan, 2)]
    limit = (
        "time limit of 1 h; launch goes on from its last checkpoint, or give toy-made more hours"
    )
    assert [(stage.state, stage.words) for stage in lost[:1]] == [("lost", limit)]
    assert [stage.state for stage in lost[1:]] == ["blocked", "blocked"]
    assert found[job(plan, 3)[0]].words == "cancelled before it started"
    assert len(slurm.said("asked")) == 1
    assert watch.count_states(view) == (
        ["wave", "", "running", "lost", "blocked", "queued"],
        [["1", "toy-made", "1", "2", "·", "1"], ["1", "toy-scored", "·", "·", "4", "4"]],
    )
    lines = watch.details(view, store)
    assert f"lost: toy-made B bits=2 seed=0: {limit}" in lines
    assert "queued: 3 stages: Resources" in lines
    assert "queued: 2 stages: its job is running" in lines


def test_finished_cells_are_done(plan: Plan, store: Store, slurm: Slurm, tmp_path: Path) -> None:
    launch(plan, store)
    run(plan, store, Silent())
    view = watch.look(plan, store)
    assert view.count("done") == len(view.stages) == 12
    assert watch.details(view, store) == []


def test_stale_stages_are_a_line_a_reason(plan: Plan, store: Store) -> None:
    run(plan, store, Silent())
    nodes = {key: replace(node, code="changed") for key, node in plan.nodes.items()}
    changed = replace(plan, nodes=nodes)
    view = watch.look(changed, store)
    assert view.count("stale") == 12
    lines = watch.details(view, store)
    assert len(lines) == 2
    assert lines[0].startswith("stale: toy-made: ") and lines[0].endswith(" (4 stages)")
    assert lines[1].startswith("stale: toy-scored: ") and lines[1].endswith(" (8 stages)")


def test_what_a_job_has_failed_it_will_not_run_again(
    plan: Plan, store: Store, slurm: Slurm
) -> None:
    made = launch(plan, store)
    slurm.queue(f"7|0|RUNNING|None|{made.name(0)}")
    fail(plan, store, job(plan, 0)[0], when=1001.0)  # after the launch
    assert states(plan, store, 0) == ["failed", "blocked", "blocked"]
    fail(plan, store, job(plan, 0)[0], when=999.0)  # before: the job is the retry
    assert states(plan, store, 0) == ["queued", "queued", "queued"]
    slurm.queue()
    assert states(plan, store, 0) == ["failed", "blocked", "blocked"]


def test_a_failed_rebuild_blocks_what_needs_it(plan: Plan, store: Store, slurm: Slurm) -> None:
    made = launch(plan, store)
    slurm.queue(f"7|0|RUNNING|None|{made.name(0)}")
    fail(plan, store, plan.cells[0].model, when=1001.0)  # it is rebuilt, never kept
    assert states(plan, store, 0) == ["queued", "blocked", "blocked"]
    fail(plan, store, plan.cells[0].model, when=999.0)
    assert states(plan, store, 0) == ["queued", "queued", "queued"]


def test_a_launch_that_was_cut_off(plan: Plan, store: Store, slurm: Slurm) -> None:
    made = launch(plan, store)
    (made.folder / "submitted.jsonl").unlink()
    words = {stage.words for stage in watch.look(plan, store).of("lost")}
    assert words == {"it was never submitted: the launch was cut off"}


def test_what_a_colleague_launched_from_another_file_is_seen(
    plan: Plan, store: Store, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launched(store.root, Path("/elsewhere/theirs.yaml"), [job(plan, 0)])
    slurm.queue(f"7|0|PENDING|JobHeldUser|{made.name(0)}")
    assert states(plan, store, 0) == ["queued"] * 3
    assert slurm.said("asked")[0].startswith(f"--name={made.name(0)} ")  # whoever's they are
    slurm.queue()
    assert states(plan, store, 0) == ["lost", "blocked", "blocked"]
    monkeypatch.setattr(Launch, "is_ours", False)
    assert states(plan, store, 0) == ["lost", "blocked", "blocked"]
    monkeypatch.setattr(scheduler, "hides_jobs", lambda: True)
    words = {stage.words for stage in watch.look(plan, store).of("queued")}
    assert words == {f"launched by {made.owner}, whose jobs SLURM does not show here"}


def test_without_a_queue_the_rest_is_shown(plan: Plan, store: Store, slurm: Slurm) -> None:
    launch(plan, store)
    slurm.down("slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    view = watch.look(plan, store)
    assert "Unable to contact slurm controller" in view.trouble[0]
    assert {stage.state for stage in view.stages} == {"queued"}  # not lost: nobody knows


def test_where_stages_were_lost_a_full_disk_is_told(
    plan: Plan, store: Store, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch(plan, store)
    view = watch.look(plan, store)
    assert view.count("lost") and not [x for x in watch.details(view, store) if x[:5] == "disk:"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3 * 2**20))
    (line,) = [line for line in watch.details(view, store) if line.startswith("disk:")]
    assert line.startswith(f"disk: {store.root} has 3 MiB left, so jobs may not have kept why")


def test_a_failure_is_told_with_its_hint(plan: Plan, store: Store) -> None:
    key = job(plan, 0)[0]
    record = {"code": plan.nodes[key].code, "message": "no memory", "hint": "halve it"}
    store.fail(key, record)
    assert watch.failures(plan, store) == ["failed: toy-made A bits=2 seed=0: no memory (halve it)"]
    store.fail(key, {**record, "code": "as it was before"})
    assert watch.failures(plan, store) == []
    assert find_states(plan, store)[key] == "queued"
