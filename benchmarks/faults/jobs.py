"""Faults of jobs on a real SLURM, the lab of the tests: ends, sites, launches in odd places.

Each case is a grid of its own; `status` says what became of it, then what it advises is done. As
long as a case asks for something else, nothing of it is mended by hand.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.faults.trial import Ground, Result, Skipped
from tests.support.slurm.lab import Lab, missing
from tests.support.slurm.place import INSIDE, Place, until

LAUNCH = ("launch", "grid.yaml", "--cluster", "cluster.yaml")
NOISE = "CLUSTER: lab\\n** job 7 of the maintenance | on 3 nodes | a|b|c|d|e|f **\\n"
NODES = ("scontrol", "update", "nodename=node[1-2]")
Case = Callable[[Lab, Path], tuple[Place, str]]


def try_jobs(ground: Ground) -> Iterator[Result]:
    return try_cases(CASES)


def try_memory(ground: Ground) -> Iterator[Result]:
    return try_cases(MEMORY)


def try_full_disk(ground: Ground) -> Iterator[Result]:
    return try_cases(DISK)


def try_cases(cases: Mapping[str, Case]) -> Iterator[Result]:
    if reason := missing():
        raise Skipped(reason)
    with tempfile.TemporaryDirectory(prefix="jobs-") as short, Lab(Path(short) / "lab") as lab:
        os.environ.update(lab.environment)
        Path(short).chmod(0o755)  # some users are not root
        for number, (fault, case) in enumerate(cases.items()):
            lab.repair()
            place, said = case(lab, Path(short) / f"{number}")
            place.finish()
            for _ in range(4):
                if "nothing to submit" in (words := place.launch()):
                    break
                place.finish()
            stages = [key for kind in KINDS for key in place.keys(kind)]
            lost = sum(not place.store.has(key) for key in stages)
            again = sum(place.computed().values()) - len(stages) + lost
            said = re.sub(
                r"\b[0-9a-f]{16}-[0-9a-f]{8}\b", "…", said.replace(str(place.store.root), "STORE")
            )
            yield Result(
                fault, 1, "stuck" if lost else "healed", 0, lost, max(0, again), said or words
            )


RTN = {"method": "rtn", "defaults": {}}
KINDS = ("clip-search", "generate", "confidence", "train", "perplexity")


def _grid(steps: int = 4, every: int = 4) -> dict[str, object]:
    return {"defaults": {"train.steps": steps, "train.checkpoint_every": every}}


def _slow(step_s: float) -> dict[str, object]:
    return {"setup": [f"export PYTHONPATH={INSIDE} TEST_STEP_S={step_s}"]}


def _tell(place: Place) -> str:
    """What status says of stages that wait, were lost or failed."""
    told = ("queued:", "lost:", "failed:", "disk:")
    return " / ".join(line for line in place.status().splitlines() if line.startswith(told))


def _purge(part: str) -> Case:
    def case(lab: Lab, folder: Path) -> tuple[Place, str]:
        place = Place(folder, _grid())
        lab.run(*NODES, "state=drain", "reason=the snapshot is purged first")
        place.launch()
        (code,) = (place.store.root / "code").iterdir()
        gone = code / part
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        lab.run(*NODES, "state=resume")
        place.finish()
        return place, _tell(place)

    return case


def _fail_setup(lab: Lab, folder: Path) -> tuple[Place, str]:
    place = Place(folder, _grid(), {"setup": ["module load nosuch"]})
    place.launch()
    place.finish()
    said = _tell(place)
    profile = folder / "cluster.yaml"
    profile.write_text(profile.read_text().replace("module load nosuch", "echo loaded"))
    return place, said


def _meet_limit(lab: Lab, folder: Path) -> tuple[Place, str]:
    limit = {"hours": 0.1 / 60 / 5, "signal_delay_s": 10, "requeues": 0}
    place = Place(folder, _grid(12, 2), {**_slow(1.0), **limit})
    place.launch()
    (key,) = place.keys("train")
    until(lambda: place.step(key) >= 4, 400, place.logs)
    lab.run("scancel", "--signal=USR2", place.launches[0].submitted[0])
    place.finish()
    said = _tell(place)
    profile = folder / "cluster.yaml"
    profile.write_text(profile.read_text().replace("hours:", "hours: 0.2 #"))
    return place, said


def _run_until(step: int, strike: Callable[[Lab, Place], object], **profile: object) -> Case:
    """A training is struck at a step; then its job is waited for."""

    def case(lab: Lab, folder: Path) -> tuple[Place, str]:
        place = Place(folder, _grid(12, 2), {**_slow(1.0), **profile})
        place.launch()
        (key,) = place.keys("train")
        until(lambda: place.step(key) >= step, 400, place.logs)
        strike(lab, place)
        place.finish()
        return place, _tell(place)

    return case


def _kill(lab: Lab, place: Place) -> None:
    """SIGKILL to the job's process, as the kernel sends it where memory runs out."""
    folder = str(place.launches[0].folder)
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        ours = "submitit.core._submit" in words and any(folder in word for word in words)
        if ours and not words[0].endswith("srun"):
            process.send_signal(signal.SIGKILL)


def _kill_in_words(lab: Lab, place: Place) -> None:
    """The same, with what slurmstepd writes of a cgroup, which needs one that is SLURM's own."""
    (log,) = place.store.root.glob("launches/*/logs/*/*_log.out")
    with log.open("a") as file:
        file.write(
            "slurmstepd: error: Detected 1 oom_kill event in StepId=1.0. Some of the step tasks "
            "have been OOM Killed.\n"
        )
    _kill(lab, place)


def _ask_for_more(by: str, gib: float, *setup: str, **profile: object) -> Case:
    """A training that, at its fourth step, asks for more memory than there is; retried."""

    def case(lab: Lab, folder: Path) -> tuple[Place, str]:
        hog = f"export TEST_HOG_BY={by} TEST_HOG_GIB={gib} TEST_HOG_STEP=4"
        lines = [f"export PYTHONPATH={INSIDE}", hog, *setup]
        place = Place(folder, _grid(12, 2), {"setup": lines, **profile})
        place.launch()
        place.finish()
        said = _tell(place)
        place.launch("--retry", "failed")
        place.finish()
        return place, said

    return case


def _cancel(lab: Lab, place: Place) -> None:
    lab.run("scancel", place.launches[0].submitted[0])


def _preempt(lab: Lab, place: Place) -> None:
    """By CANCEL, with the partition's 20 s of grace."""
    lab.run("scontrol", "update", "partitionname=low", "preemptmode=cancel")
    whole = (
        "--wrap=sleep 1",
        "-p",
        "main",
        "-N",
        "2",
        "--exclusive",
        "--output=/dev/null",
        "-J",
        "x:x:x",
    )
    lab.run("sbatch", *whole)


def _fill_disk(lab: Lab, folder: Path) -> tuple[Place, str]:
    """The store is a disk of its own, which something else fills under a training."""
    root, kept = folder / "store", folder / "kept"
    root.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256m", "none", str(root)], check=True)
    try:
        place = Place(folder, _grid(12, 2), _slow(1.0))
        place.launch()
        (key,) = place.keys("train")
        until(lambda: place.step(key) >= 4, 400, place.logs)
        with suppress(OSError), (root / "filler").open("wb", buffering=0) as filler:
            while filler.write(bytes(2**20)):
                pass
        place.finish()
        said = _tell(place)
        (root / "filler").unlink()
        place.launch("--retry", "failed")
        place.finish()
        shutil.copytree(root, kept)
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
    root.rmdir()
    kept.rename(root)
    return place, said


def _hold(lab: Lab, folder: Path) -> tuple[Place, str]:
    place = Place(folder, RTN)
    lab.run(*NODES, "state=drain", "reason=work on the cooling")
    place.launch()
    drained = _tell(place)
    id = place.launches[0].submitted[0]
    lab.run("scontrol", "hold", id)
    held = _tell(place)
    lab.run("scontrol", "release", id)
    lab.run(*NODES, "state=resume")
    return place, f"{drained} / {held}"


def _launch_inside(*words: str) -> Case:
    def case(lab: Lab, folder: Path) -> tuple[Place, str]:
        place = Place(folder, RTN, {"memory_gib": 1})
        process = place.start(*LAUNCH, inside=words)
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 0, said
        until(lambda: place.launches, 100, place.logs)
        place.finish()
        return place, _tell(place)

    return case


def _make_noise(lab: Lab, folder: Path) -> tuple[Place, str]:
    """sbatch, squeue and sacct print notices before what they are asked for."""
    place, paths = Place(folder, RTN), os.environ["PATH"]
    (folder / "bin").mkdir()
    for name in ("sbatch", "squeue", "sacct"):
        script = folder / "bin" / name
        script.write_text(f"#!/bin/sh\nprintf '{NOISE}'\nexec {shutil.which(name)} \"$@\"\n")
        script.chmod(0o755)
    os.environ["PATH"] = f"{folder / 'bin'}{os.pathsep}{paths}"
    try:
        place.launch()
        place.finish()
        return place, _tell(place)
    finally:
        os.environ["PATH"] = paths


def _limit_submissions(lab: Lab, folder: Path) -> tuple[Place, str]:
    """A QOS of two jobs a user, and a grid of three kinds of jobs."""
    lab.run("sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=2")
    try:
        grid = {**_grid(), "vary": {"seed": [0, 1]}}
        unlike = {kind: {"sbatch": {"comment": kind}} for kind in KINDS}
        place = Place(folder, grid, {"stages": unlike})
        said = place.launch()
        place.finish()
        return place, " / ".join(line.strip() for line in said.splitlines() if "later" in line)
    finally:
        lab.run("sacctmgr", "-i", "modify", "qos", "normal", "set", "MaxSubmitJobsPerUser=-1")


CASES: dict[str, Case] = {
    "a snapshot without `methods/`": _purge("methods"),
    "a snapshot without one module": _purge("harness/cluster/submit.py"),
    "a line of `setup` fails": _fail_setup,
    "a time limit, requeues exhausted": _meet_limit,
    "`scancel`": _run_until(4, _cancel),
    "preempted by CANCEL, with 20 s of grace": _run_until(4, _preempt, partition="low"),
    "nodes are drained, then the job is held": _hold,
    "launched in `salloc -n 2 -c 2`": _launch_inside("salloc", "-Q", "-n2", "-c2", "--mem=200"),
    "launched in `srun -n 1 -c 2`": _launch_inside("srun", "-Q", "-n1", "-c2", "--mem=2000"),
    "launched in a job of sbatch": _launch_inside(
        "sh", "-c", 'sbatch -Q --wait -n1 -c2 --mem=2000 -o /dev/null --wrap "$*"', "launch"
    ),
    "notices on sbatch, squeue and sacct": _make_noise,
    "two jobs a user, by QOS": _limit_submissions,
}

MEMORY: dict[str, Case] = {
    "a step takes 3 GiB of 2, and SLURM's OverMemoryKill ends it": _ask_for_more(
        "python", 3, large={"memory_gib": 6}, sbatch={"acctg-freq": "task=1"}
    ),
    "torch is refused memory (`ulimit -v`)": _ask_for_more(
        "torch", 4, "ulimit -v $((SLURM_MEM_PER_NODE * 2048))", large={"memory_gib": 7}
    ),
    "SIGKILL, as where the host's memory runs out": _run_until(4, _kill, large={"memory_gib": 3}),
    "SIGKILL, and a cgroup's oom_kill in the log, written by hand": _run_until(
        4, _kill_in_words, large={"memory_gib": 3}
    ),
}

DISK: dict[str, Case] = {"the store's disk is filled under a training": _fill_disk}
