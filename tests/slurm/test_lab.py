"""The lab is a SLURM as clusters have it: jobs, arrays, GPUs, dead nodes and requeues."""

from __future__ import annotations

import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import submitit

from tests.support.slurm.lab import Lab, LabError, missing


def _until(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def _submit(lab: Lab, script: str, *options: str) -> str:
    return lab.run("sbatch", "--parsable", *options, f"--wrap={script}")


def _names_under(folder: Path) -> set[str]:
    """The programs of all processes in whose environment the folder occurs."""
    found = set()
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if f"{folder}/".encode() in Path(f"/proc/{process.pid}/environ").read_bytes():
                found.add(process.name())
    return found


def test_a_job_runs_and_is_accounted_for(lab: Lab, tmp_path: Path) -> None:
    job = _submit(lab, "echo on $SLURMD_NODENAME; exit 3", f"--output={tmp_path}/out")
    lab.wait_idle()
    assert (tmp_path / "out").read_text() == "on node1\n"
    said = ["sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode"]
    _until(lambda: lab.run(*said) == "FAILED|3:0")


def test_an_array_through_submitit(lab: Lab, tmp_path: Path) -> None:
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm")
    executor.update_parameters(timeout_min=5, slurm_array_parallelism=2)
    jobs = executor.map_array(operator.mul, [2, 3, 5], [7, 11, 13])
    assert [job.result() for job in jobs] == [14, 33, 65]
    assert [job.job_id.split("_")[1] for job in jobs] == ["0", "1", "2"]


def test_jobs_on_a_node_are_granted_different_gpus(lab: Lab, tmp_path: Path) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES $SLURM_JOB_GPUS; sleep 2"
    for name in "ab":
        _submit(lab, script, "--gres=gpu:1", "--nodelist=node2", f"--output={tmp_path}/{name}")
    lab.wait_idle()
    assert {(tmp_path / name).read_text() for name in "ab"} == {"0 0\n", "1 1\n"}
    with pytest.raises(LabError, match="node configuration is not available"):
        _submit(lab, "true", "--gres=gpu:3")


def test_a_requeued_job_starts_again(lab: Lab, tmp_path: Path) -> None:
    script = 'echo "run ${SLURM_RESTART_COUNT:-0}"; [ "$SLURM_RESTART_COUNT" ] || sleep 1000'
    job = _submit(lab, script, f"--output={tmp_path}/out", "--open-mode=append")
    _until(lambda: (tmp_path / "out").exists() and "run 0" in (tmp_path / "out").read_text())
    lab.run("scontrol", "requeue", job)
    lab.wait_idle()
    runs = [line for line in (tmp_path / "out").read_text().splitlines() if line[:3] == "run"]
    assert runs == ["run 0", "run 1"]


def test_a_dead_nodes_job_moves_and_the_node_comes_back(lab: Lab, tmp_path: Path) -> None:
    script = 'echo "$$ on $SLURMD_NODENAME"; [ "$SLURM_RESTART_COUNT" ] || sleep 1000'
    _submit(lab, script, f"--output={tmp_path}/out", "--open-mode=append")
    _until(lambda: (tmp_path / "out").exists() and "on" in (tmp_path / "out").read_text())
    pid, node = (tmp_path / "out").read_text().split(" on ")
    assert node == "node1\n"
    lab.kill_node("node1", steps=True)
    assert not psutil.pid_exists(int(pid)) or psutil.Process(int(pid)).status() == "zombie"
    _until(lambda: "down" in lab.run("sinfo", "-h", "-n", "node1", "-p", "main", "-o", "%t"))
    _until(lambda: not lab.squeue())
    assert (tmp_path / "out").read_text().endswith(" on node2\n")
    assert not lab.idle()
    lab.restart_node("node1")
    lab.wait_idle()


def test_repair_brings_back_what_a_test_killed(lab: Lab) -> None:
    _submit(lab, "sleep 1000", "--nodelist=node2", "--output=/dev/null")
    _until(lambda: lab.squeue("--format=%T") == "RUNNING")
    lab.kill_node("node2")
    lab.stop_controller()
    assert not lab.idle()
    lab.repair()
    assert lab.idle()


def test_nothing_is_left_when_its_process_is_killed(lab: Lab, tmp_path: Path) -> None:
    """Beside the session's lab, so with ports of its own."""
    folder = Path(f"{lab.folder}-2")
    code = (
        "import sys, time; from pathlib import Path; from tests.support.slurm.lab import Lab\n"
        "with Lab(Path(sys.argv[1])) as lab:\n"
        "    lab.run('sbatch', '--wrap=srun sleep 1000', '--output=/dev/null')\n"
        "    while '1.0' not in lab.squeue('--steps'): time.sleep(0.1)\n"
        "    print('running', flush=True); time.sleep(1000)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, cwd=Path.cwd()
    )
    try:
        assert owner.stdout and owner.stdout.readline() == b"running\n"
        whole = {"munged", "mariadbd", "slurmstepd", "srun", "sleep"}
        _until(lambda: whole <= _names_under(folder))
    finally:
        owner.kill()
        owner.communicate()
    _until(lambda: not folder.exists())
    assert _names_under(folder) == set()
    assert lab.idle()


def test_a_folder_of_something_else_is_left_alone() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        (Path(short) / "mine").touch()
        with pytest.raises(LabError, match="not empty"):
            Lab(Path(os.path.relpath(short))).start()
        Lab(Path(short)).stop()
        assert (Path(short) / "mine").exists()


def test_where_slurm_cannot_run_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing() is None
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert missing() == "no SLURM: its daemons need root"
