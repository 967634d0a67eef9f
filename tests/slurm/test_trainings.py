"""Trainings on a real SLURM: interrupted or on several GPUs, they are what one process makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import pytest
import torch
from safetensors.torch import load

from tests.support.slurm.lab import Lab
from tests.support.slurm.place import TRAINED, Place, slow, until

T = TypeVar("T")


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
