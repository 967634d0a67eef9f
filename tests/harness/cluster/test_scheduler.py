"""What SLURM's commands say, with noise around it, and from inside an allocation."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cluster import scheduler
from harness.cluster.scheduler import Account, Queued
from tests.support import fakeslurm
from tests.support.fakeslurm import Slurm

NOISE = "CLUSTER: lab\n*** job 7 of the maintenance | read /etc/motd | a|b|c|d|e|f ***\n\n"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return fakeslurm.install(tmp_path / "lab", monkeypatch)


def test_noise_changes_nothing_of_the_queue(slurm: Slurm) -> None:
    slurm.queue("7|2|RUNNING|None|a:b|c:0", noise=NOISE, nodes="node[1-2]", left="1-02:00:00")
    there = Queued("7", 2, "RUNNING", "None", nodes="node[1-2]", left="1-02:00:00")
    assert scheduler.queue() == {("a:b|c:0", 2): there}


def test_the_queue_is_asked_by_name(slurm: Slurm) -> None:
    assert scheduler.queue(names=[]) == {} and slurm.said("asked") == []
    scheduler.queue(names=["b:1:0", "a:1:0"])
    scheduler.queue(names=["a,b:1:0"])  # a list would split it
    scheduler.queue(names=["a" * 200_000])  # longer than a word of a command may be
    asked = slurm.said("asked")
    assert asked[0].startswith("--name=a:1:0,b:1:0 -h -r")
    assert [line.startswith("-h -r") for line in asked[1:]] == [True, True]


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("PENDING", "Priority", "Priority"),
        ("PENDING", "JobHeldUser", "held: `scontrol release` it (JobHeldUser)"),
        ("PENDING", "JobHeldAdmin", "held by an administrator (JobHeldAdmin)"),
        ("REQUEUE_HOLD", "job requeued in held state", "held: `scontrol release` it (job"),
        ("PENDING", "launch failed requeued held", "held by SLURM: `scontrol release` it (lau"),
        ("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "nodes are down or drained (Req"),
        ("PENDING", "Nodes required for job are DOWN, DRAINED", "nodes are down or drained (No"),
        ("PENDING", "DependencyNeverSatisfied", "what it waits for will never end: cancel it (D"),
        ("PENDING", "Dependency", "waits for other jobs (Dependency)"),
        ("PENDING", "BeginTime", "queued again, starts soon (BeginTime)"),
        ("SUSPENDED", "None", "its job is suspended"),
        ("RUNNING", "None", "its job is running"),
    ],
)
def test_why_a_job_waits_is_named(state: str, reason: str, words: str) -> None:
    assert Queued("7", 0, state, reason).describe().startswith(words)


def test_noise_changes_nothing_of_accounts(slurm: Slurm) -> None:
    lines = [
        "7_1|FAILED|",
        "7_1.batch|FAILED|1024K",
        "7_1.0|OUT_OF_MEMORY|2097152K",
        "7_1.extern|COMPLETED|",
        "8|CANCELLED by 1000|",
        "8.0|CANCELLED|1.50G",
        "job 7|FAILED|1",
    ]
    (slurm.folder / "accounts").write_text(NOISE + "".join(f"{line}\n" for line in lines))
    assert scheduler.read_accounts({"8", "7"}) == {
        ("7", 1): Account("OUT_OF_MEMORY", 2.0),
        ("8", 0): Account("CANCELLED", 1.5),
    }
    assert slurm.said("accounted")[0].endswith("-j 7,8")
    (slurm.folder / "bin/sacct").write_text("#!/bin/sh\nexit 1\n")
    assert scheduler.read_accounts({"7"}) == {}  # no accounting
    assert scheduler.read_accounts(set()) == {}


def test_what_an_allocation_sets_stays_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = {
        "SLURM_NTASKS": "2",
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_MEM_PER_NODE": "100",
        "OMP_NUM_THREADS": "2",
        "SQUEUE_STATES": "R",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    for name, setting in {**outer, "SLURM_CONF": "/c", "SBATCH_ACCOUNT": "a"}.items():
        monkeypatch.setenv(name, setting)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    there = scheduler.environment()
    assert there["OMP_NUM_THREADS"] == "2" and "SQUEUE_STATES" not in there
    monkeypatch.setenv("SLURM_JOB_ID", "5")
    there = scheduler.environment()
    assert outer.keys().isdisjoint(there)
    assert (there["SLURM_CONF"], there["SBATCH_ACCOUNT"]) == ("/c", "a")
