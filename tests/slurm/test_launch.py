"""Launched grids on a real SLURM: what a user is promised, also when something dies."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import torch
from safetensors.torch import load

from tests.support.slurm.lab import Lab
from tests.support.slurm.place import GRID, INSIDE, Place, until

T = TypeVar("T")
WITHOUT_CLIP = {**GRID["method"], "init": "none"}
TRAINED: dict[str, Any] = {
    "method": WITHOUT_CLIP,
    "defaults": {"train.steps": 40, "train.checkpoint_every": 5},
}


def slow(step_s: float = 0.0, late_s: float = 0.0) -> dict[str, Any]:
    """A profile whose jobs wait at each step, or see values late."""
    setup = f"export PYTHONPATH={INSIDE} TEST_STEP_S={step_s} TEST_LATE_S={late_s}"
    return {"setup": [setup]}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights of `TRAINED`, by key, as one process makes them."""
    place = Place(tmp_path_factory.mktemp("alone"), TRAINED)
    place.bitgrid("run", "grid.yaml", "--out", "out")
    return weights(place)


def weights(place: Place) -> dict[str, bytes]:
    found = {
        key: (place.store.path(key) / "model.safetensors").read_bytes()
        for key in place.keys("train")
    }
    assert found
    return found


def test_a_grid_gives_the_rows_of_a_run_here(lab: Lab, tmp_path: Path) -> None:
    grid = {
        "method": "bitdistiller",
        "vary": {"format.bits": [3, 2]},
        "compare": ["bf16", "rtn", "awq-clip"],
        "evaluate": [{"testbed-ppl": {"limit": 2}}, {"testbed_knowledge": {"limit": 4}}],
    }
    here, there = Place(tmp_path / "here", grid), Place(tmp_path / "there", grid)
    said = there.launch()
    here.bitgrid("run", "grid.yaml", "--out", "out")
    there.finish()
    assert "done already: 0" in said
    assert there.all_done_once(), there.logs()
    assert there.rows() == (here.folder / "out" / "rows.jsonl").read_text()
    assert "nothing to submit" in there.launch()


def test_a_training_that_meets_its_time_limit_goes_on(
    lab: Lab, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    # Two stages in one job of two minutes, of which training alone takes two.
    profile = {**slow(step_s=3.0), "hours": 2 / 60 / 2, "signal_delay_s": 10}
    place = Place(tmp_path, TRAINED, profile)
    place.launch()
    place.finish(600)
    (key,) = place.keys("train")
    assert place.store.manifest(key)["attempt"] >= 1, place.logs()
    assert weights(place) == uninterrupted
    assert place.all_done_once(), place.logs()


def test_a_training_that_is_requeued_goes_on(
    lab: Lab, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    place = Place(tmp_path, TRAINED, slow(step_s=0.5))
    place.launch()
    (key,) = place.keys("train")
    until(lambda: place.step(key) >= 12, 300, place.logs)
    running = [job for job in place.jobs().values() if job.running]
    lab.run("scontrol", "requeue", running[0].job)
    place.finish()
    assert place.store.manifest(key)["attempt"] == 1
    assert weights(place) == uninterrupted
    assert place.computed()[key[:8]] == 1 and place.begun()[key[:8]] == 2, place.logs()


@pytest.mark.parametrize("steps", [False, True], ids=["slurmd alone", "with its jobs"])
def test_a_node_dies(
    lab: Lab, tmp_path: Path, uninterrupted: dict[str, bytes], steps: bool
) -> None:
    place = Place(tmp_path, TRAINED, slow(step_s=1.0))
    place.launch()
    (key,) = place.keys("train")
    until(lambda: place.step(key) >= 7, 300, place.logs)
    name = lab.squeue("-t", "R", "-o", "%N").split()[0]
    lab.kill_node(name, steps=steps)
    until(lambda: "down" in lab.run("sinfo", "-h", "-n", name, "-o", "%t"), 120, place.status)
    place.finish()
    assert place.store.has(key), place.logs()
    assert weights(place) == uninterrupted
    assert place.all_done_once(), place.logs()


def test_cancelling_one_job_leaves_the_others(lab: Lab, tmp_path: Path) -> None:
    # Each clip search is shared by two methods, so it is a job of its own.
    grid = {"vary": {"format.group_size": [32, 64]}, "compare": ["awq-clip"]}
    place = Place(tmp_path, grid)
    nodes = ("scontrol", "update", "nodename=node[1-2]")
    lab.run(*nodes, "state=drain", "reason=jobs wait for the cancellation")
    place.launch()
    (launch,) = place.launches
    searches = set(place.keys("clip-search"))
    array = next(job.array for job in launch.jobs if searches & set(job.keys))
    lab.run("scancel", f"{launch.submitted[array]}")
    lab.run(*nodes, "state=resume")
    place.finish()
    said = place.status()
    assert "lost: clip-search" in said and "cancelled" in said
    assert "an input is missing: clip-search" in place.logs()
    assert sum(place.store.has(key) for key in searches) == 1, said
    assert sum(place.store.has(key) for key in place.keys("perplexity")) == 2, said
    before = place.computed()
    place.launch("--retry", "failed")
    place.finish()
    assert place.all_done_once(), place.logs()
    assert sum(before.values()) < sum(place.computed().values())


def test_a_failing_cell_leaves_the_others(lab: Lab, tmp_path: Path) -> None:
    wild = {"lr": 10, "weight_decay": 10, "steps": 30, "checkpoint_every": 0}  # diverges
    grid = {"vary": {"train": [{"lr": 1e-4}, wild]}, "compare": ["rtn"]}
    place = Place(tmp_path, grid | {"method": "bitdistiller"})
    place.launch()
    place.finish()
    said = place.status()
    assert "failed: train" in said and "diverged at step" in said, said
    assert sum(place.store.has(key) for key in place.keys("perplexity")) == 2
    again = place.launch()
    assert "2 stages failed before, or need one that did" in again and "nothing to submit" in again
    place.launch("--retry", "failed")
    place.finish()
    (failed,) = [key for key in place.keys("train") if not place.store.has(key)]
    assert place.begun()[failed[:8]] == 2  # run again, and it failed again
    assert max(place.computed().values()) == 1


def test_two_launches_at_once(lab: Lab, tmp_path: Path) -> None:
    grid = {"vary": {"seed": [0, 1]}, "compare": ["awq-clip"], "method": WITHOUT_CLIP}
    place = Place(tmp_path, grid)
    words = ("launch", "grid.yaml", "--cluster", "cluster.yaml")
    both = [place.start(*words) for _ in range(2)]
    said = [process.communicate(timeout=400)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    place.finish()
    assert place.all_done_once(), place.logs()
    assert sum("nothing to submit" in words for words in said) == 1, said


def test_the_launching_process_dies_after_submission(lab: Lab, tmp_path: Path) -> None:
    place = Place(tmp_path, {"compare": ["rtn", "awq-clip"]})
    process = place.start("launch", "grid.yaml", "--cluster", "cluster.yaml")
    until(lambda: any(launch.submitted for launch in place.launches), 300)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "clip-search" in place.status()
    place.finish()
    if not all(place.store.has(key) for key in place.keys("perplexity")):
        assert "never submitted" in place.status()
    place.launch("--retry", "failed")
    place.finish()
    assert place.all_done_once(), place.logs()
    assert place.rows().count('"testbed-ppl"') == 3


def test_values_that_are_seen_late(lab: Lab, tmp_path: Path) -> None:
    grid = {"compare": ["awq-clip"]}
    here = Place(tmp_path / "here", grid)
    there = Place(tmp_path / "there", grid, {**slow(late_s=4.0), "visible_s": 30})
    there.launch()
    here.bitgrid("run", "grid.yaml", "--out", "out")
    there.finish()
    assert there.all_done_once(), there.logs()
    assert there.rows() == (here.folder / "out" / "rows.jsonl").read_text()


def test_status_logs_and_cancel_while_it_runs(lab: Lab, tmp_path: Path) -> None:
    place = Place(tmp_path, TRAINED, slow(step_s=1.0))
    place.launch()
    (key,) = place.keys("train")
    until(lambda: place.step(key) >= 3, 300, place.logs)
    said = place.status()
    assert "running: train" in said and "/40 loss" in said and " left" in said, said
    assert "begin train" in place.bitgrid("logs", "grid.yaml", "bitdistiller")
    assert "cancelled 1 jobs" in place.bitgrid("cancel", "grid.yaml")
    place.finish(120)
    said = place.status()
    assert "lost: train" in said and "cancelled" in said, said


def test_one_of_two_nodes_loses_its_process(
    lab: Lab, tmp_path: Path, uninterrupted: dict[str, bytes]
) -> None:
    two = {"train.gpus": 2, "train.nodes": 2}
    grid = {**TRAINED, "defaults": TRAINED["defaults"] | two}
    place = Place(tmp_path, grid, {**slow(step_s=0.3), "gpu": "gpu", "memory_gib": 4})
    place.launch()
    (key,) = place.keys("train")
    until(lambda: place.step(key) >= 6, 300, place.logs)  # a checkpoint after the fourth
    (killed,) = (
        process
        for process in psutil.process_iter()
        if str(tmp_path) in " ".join(_ask(process.cmdline, []))
        and "harness.run.worker" in _ask(process.cmdline, [])
        and _ask(process.environ, {}).get("RANK") == "1"
    )
    killed.kill()
    place.finish()
    assert "process 1 was killed by signal 9" in place.status()
    place.launch("--retry", "failed")
    place.finish()
    assert place.all_done_once(), place.logs()
    _assert_alike(uninterrupted[key], weights(place)[key])


def _ask(question: Callable[[], T], otherwise: T) -> T:
    """What a process says of itself, if it is still there."""
    try:
        return question()
    except psutil.Error:
        return otherwise


@pytest.mark.parametrize("nodes", [1, 2])
def test_two_gpus_of_one_training(
    lab: Lab, tmp_path: Path, uninterrupted: dict[str, bytes], nodes: int
) -> None:
    two = {"train.gpus": 2, "train.nodes": nodes}
    grid = {**TRAINED, "defaults": TRAINED["defaults"] | two}
    place = Place(tmp_path, grid, {**slow(step_s=0.3), "gpu": "gpu", "memory_gib": 4})
    said = place.launch()
    size = "(2 GPU (gpu), 2 nodes, " if nodes == 2 else "(2 GPU (gpu), "
    assert size in said and "(1 GPU (gpu), " in said
    asked = f"{nodes} gres:gpu:{2 // nodes}"
    until(lambda: asked in lab.squeue("-t", "R", "-o", "%D %b"), 300, place.logs)
    place.finish()
    assert place.all_done_once(), place.logs()
    (key,) = uninterrupted  # the number of processes is no part of a key
    _assert_alike(uninterrupted[key], weights(place)[key])


def _assert_alike(alone: bytes, together: bytes) -> None:
    weights = load(together)
    for name, weight in load(alone).items():
        torch.testing.assert_close(weights[name], weight, rtol=0, atol=1e-4)
