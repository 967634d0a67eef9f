"""What SLURM's commands say: the queue, how jobs ended, how many one may submit.

Sites have them print notices, names of clusters and the like besides: only lines of the form that
was asked for are read. Nothing of an allocation in which one calls them, nor of the user's own
settings of `squeue`, changes what they say. Imports no submitit. Not here: submission (`submit`).
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import ClusterError

PATIENCE_S = 120.0
MARK = "bitgrid"  # opens each line that squeue and sacctmgr are asked for

# What SLURM's commands themselves read; other SLURM_ variables are of an allocation around us.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT", "SLURM_CONF_SERVER")
_OUTER = ("SLURM", "SRUN_", "PMI", "OMP_", "KMP_", "SUBMITIT_")
_DEVICES = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
_FILTERS = ("SQUEUE_", "SACCT_")


def environment() -> dict[str, str]:
    """The environment for SLURM's commands, which jobs inherit: without what an allocation around
    us (by salloc or srun, or another job) has set for itself."""
    inside = "SLURM_JOB_ID" in os.environ or "SLURM_JOBID" in os.environ
    return {
        name: setting
        for name, setting in os.environ.items()
        if name in _KEPT
        or not (
            name.startswith(_FILTERS) or (inside and (name.startswith(_OUTER) or name in _DEVICES))
        )
    }


def slurm(*command: str, patience_s: float = PATIENCE_S) -> str:
    """Standard output of one of SLURM's commands. Raises ClusterError with its complaint."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=patience_s, env=environment()
        )
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} is not installed here: launch where SLURM is") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} does not answer") from None
    if done.returncode:
        complaint = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise ClusterError(f"{command[0]}: {complaint}")
    return done.stdout


# The queue


@dataclass(frozen=True)
class Queued:
    """A job that SLURM has not ended: its id (of the array), index, state and reason."""

    job: str
    task: int
    state: str
    reason: str
    since: float = 0.0  # its launch's `created`: failures before it are run again
    nodes: str = ""  # that it runs on
    left: str = ""  # of its time, as SLURM writes it

    @property
    def running(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING")

    def describe_end(self) -> str:
        """Where it runs, and how long it may, as the end of a line."""
        return f"; its job{f' on {self.nodes}' if self.nodes else ''} ends in {self.left}"

    def describe(self) -> str:
        """Why it waits, or that it runs: in words, and SLURM's own."""
        if self.state == "SUSPENDED":
            return "its job is suspended"
        if self.running:
            return "its job is running"
        for pattern, words in _REASONS:
            if re.search(pattern, f"{self.state} {self.reason}"):
                return f"{words} ({self.reason})"
        return self.reason


_REASONS = (
    ("HELD|Held.*(?:requeue|Launch)|launch failed", "held by SLURM: `scontrol release` it"),
    ("JobHeldAdmin", "held by an administrator"),
    ("JobHeld|HOLD", "held: `scontrol release` it"),
    ("NotAvail|DOWN|DRAIN|NodeDown|PartitionDown|PartitionInactive", "nodes are down or drained"),
    ("DependencyNeverSatisfied", "what it waits for will never end: cancel it"),
    ("Dependency", "waits for other jobs"),
    ("PREEMPT", "preempted, and queued again"),
    ("BeginTime|REQUEUE", "queued again, starts soon"),
)

_LONGEST_WORD = 100_000

Queue = dict[tuple[str, int], Queued]  # by the job's name and index


def queue(everybody: bool = False, names: Collection[str] | None = None) -> Queue:
    """Jobs that have not ended, from one `squeue`: this user's; everybody's that SLURM shows; or
    those of some names, everybody's too, for which nothing is asked where there are none.

    Raises ClusterError.
    """
    whose: tuple[str, ...] = () if everybody else (f"--user={getpass.getuser()}",)
    if names is not None:
        if not names:
            return {}
        listed = ",".join(sorted(names))
        # A list splits at commas, and is one word of a command, which has its limit.
        fits = len(listed) < _LONGEST_WORD and not any("," in name for name in names)
        whose = (f"--name={listed}",) if fits else ()
    jobs: Queue = {}
    said = slurm("squeue", *whose, "-h", "-r", "-o", f"{MARK}|%F|%K|%T|%r|%N|%L|%j")
    for line in said.splitlines():
        words = line.strip().split("|", 7)
        if words[0] != MARK or len(words) != 8:
            continue
        _, job, task, state, reason, nodes, left, name = words
        number = int(task) if task.isdigit() else 0
        jobs[name, number] = Queued(job, number, state, reason, nodes=nodes, left=left)
    return jobs


def hides_jobs() -> bool:
    """Whether SLURM shows a user no jobs of others, or nobody can say."""
    if os.geteuid() == 0:
        return False
    try:
        said = slurm("scontrol", "show", "config")
    except ClusterError:
        return True
    private = re.search(r"^PrivateData\s*=\s*(\S+)", said, re.MULTILINE)
    return private is not None and "jobs" in private[1].split(",")


def cancel(ids: Collection[str]) -> None:
    """Raises ClusterError."""
    if ids:
        slurm("scancel", *sorted(ids))


# Submission

_UNSURE = re.compile(
    "timed out|Unable to contact|Zero Bytes|Connection re|Transport endpoint|temporarily", re.I
)
_SEARCHES_S = (1.0, 3.0, 6.0)


def submit(script: Path, name: str) -> str:
    """The id of a job that sbatch takes. One that arrived without sbatch's saying so, as where its
    connection timed out, is found by its name.

    Raises ClusterError with sbatch's complaint.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(script)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            env=environment(),
        )
        status, said, complaint = done.returncode, done.stdout, done.stderr
    except FileNotFoundError:
        raise ClusterError("sbatch is not installed here: launch where SLURM is") from None
    except subprocess.TimeoutExpired:
        status, said, complaint = 1, "", "sbatch: error: it timed out"
    ids = re.findall(r"^(\d+)(?:;\S+)?\s*$", said, re.MULTILINE)
    if status == 0 and ids:
        return str(ids[-1])
    if status == 0 or _UNSURE.search(complaint):
        for pause in _SEARCHES_S:
            time.sleep(pause)
            with contextlib.suppress(ClusterError):
                found = [
                    entry.job for (its, _), entry in queue(names=[name]).items() if its == name
                ]
                if found:
                    return found[0]
    errors = re.findall(r"(?:sbatch: )?error: (.+)", complaint)
    why = "; ".join(errors) or (complaint.strip() or said.strip()).rpartition("\n")[2]
    raise ClusterError(f"sbatch refuses {name}: {why or 'it does not say why'}")


def count_submittable(
    partitions: Collection[str], accounts: Collection[str], qos: Collection[str]
) -> int | None:
    """How many jobs this user may still submit there, by the limits of his associations, of their
    QOS and of the partitions' QOS, less those that are in the queue; None: nobody says a limit.

    Of what is not named (an empty collection), the least of all counts.
    """
    user = getpass.getuser()
    limits: list[str] = []
    named = set(qos)
    try:
        fields = "format=Account,Partition,MaxSubmit,GrpSubmit,DefaultQOS"
        said = slurm("sacctmgr", "-nP", "show", "assoc", f"user={user}", fields)
        for account, partition, most, group, default in _split(said, 5):
            if (accounts and account not in accounts) or (
                partition and partitions and partition not in partitions
            ):
                continue
            limits += [most, group]
            if not qos:
                named |= {default or "normal"}
        for text in slurm("scontrol", "-o", "show", "partition").splitlines():
            found = re.search(r"^PartitionName=(\S+).* QoS=(\S+)", text)
            if found and found[1] in partitions:
                named.add(found[2])
        said = slurm(
            "sacctmgr", "-nP", "show", "qos", "format=Name,MaxSubmitPU,MaxSubmitPA,GrpSubmit"
        )
        limits += [limit for name, *most in _split(said, 4) if name in named for limit in most]
    except ClusterError:  # no accounting
        return None
    numbers = [int(limit) for limit in limits if limit.isdigit()]
    return min(numbers) - len(queue()) if numbers else None


def _split(said: str, count: int) -> list[list[str]]:
    lines = [line.strip().split("|") for line in said.splitlines()]
    return [words for words in lines if len(words) == count]


def find_max_array() -> int:
    """How many jobs an array may have."""
    limit = re.search(r"^MaxArraySize\s*=\s*(\d+)", slurm("scontrol", "show", "config"), re.M)
    return int(limit[1]) if limit else 1000


# How jobs ended


@dataclass(frozen=True)
class Account:
    """What SLURM's accounting has of a job: its last state, and the host's memory at its peak."""

    state: str
    peak_gib: float = 0.0


_UNITS = {"": 2**-30, "K": 2**-20, "M": 2**-10, "G": 1.0, "T": 2.0**10}
_ACCOUNT = re.compile(r"(\d+)(?:_(\d+))?(\.\w+)?\|([A-Z_]+)[^|]*\|(?:([\d.]+)([KMGT]?))?\|?")


def read_accounts(ids: Collection[str]) -> dict[tuple[str, int], Account]:
    """How jobs ended, by id and index, from one `sacct`; of none where there is no accounting."""
    accounts: dict[tuple[str, int], Account] = {}
    if not ids:
        return accounts
    words = ("-n", "-P", "--format=JobID,State,MaxRSS", "-j", ",".join(sorted(ids)))
    with contextlib.suppress(ClusterError):
        for line in slurm("sacct", *words, patience_s=20.0).splitlines():
            if not (found := _ACCOUNT.fullmatch(line.strip())):
                continue
            job, task, step, state, number, unit = found.groups()
            at = (job, int(task or 0))
            before = accounts.get(at, Account(""))
            peak = max(before.peak_gib, float(number or 0) * _UNITS[unit or ""])
            # Of a step alone: SLURM may say FAILED of a job whose step ran out of memory.
            worst = "OUT_OF_MEMORY" in (state, before.state)
            state = "OUT_OF_MEMORY" if worst else before.state if step else state
            accounts[at] = Account(state, peak)
    return accounts
