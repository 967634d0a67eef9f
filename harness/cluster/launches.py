"""What was launched: a folder per launch in the store, and what the queue says of its jobs.

    <store>/launches/<id>/launch.json     jobs, arrays, profile; written before any is submitted
                          <grid>.yaml     the grid as it was, bases and mirror resolved
                          plan.json       its plan: what jobs make their stages from
                          submitted.jsonl SLURM's id of each array, as soon as it is known
                          logs/<array>/   submitit's files: a job's log, arguments, result
    <store>/code/<digest>/                the code as it was, shared by launches of the same code

A job is found again by its name, `<grid>:<launch>:<array>`, and its array index, so that a launch
whose process died between submission and note loses nothing. Imports no torch and no submitit.
Not here: cutting a plan into jobs (`waves`), submission (`launch`), what a job does (`job`).
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from harness.core.errors import ClusterError, StoreError
from harness.core.files import write_json
from harness.core.store import Store

SCHEMA = 2
PLAN = "plan.json"
WAIT_S = 600.0  # for another launch into the same store


@dataclass(frozen=True)
class Placed:
    """One job of a launch: its stages, and its place in the queue."""

    keys: tuple[str, ...]
    array: int
    task: int
    wave: int
    hours: float = 1.0  # its time limit


@dataclass(frozen=True)
class Launch:
    """One submission of (a part of) a grid. The index of a job in `jobs` is its argument."""

    id: str
    grid: str  # name
    path: str  # the grid file as the user named it, absolute
    store: str
    code: str
    cluster: str
    created: float  # seconds since the epoch; failures before it are run again
    visible_s: float
    jobs: tuple[Placed, ...]
    halvings: dict[str, int] = field(default_factory=dict)  # by stage: see `Stage.leaner`
    large: tuple[str, ...] = ()  # stages that got the profile's larger request
    submitted: dict[int, str] = field(default_factory=dict)  # array -> SLURM's id

    @property
    def folder(self) -> Path:
        return Path(self.store) / "launches" / self.id

    def name(self, array: int) -> str:
        return f"{self.grid}:{self.id}:{array}"

    def write(self) -> None:
        """Raises StoreError."""
        facts = asdict(self)
        del facts["submitted"]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "launch.json", {"schema": SCHEMA, **facts})
        except OSError as error:
            raise StoreError(f"{self.folder} cannot be written: {error.strerror}") from None

    def note(self, array: int, job: str) -> None:
        """Remember that an array was submitted as SLURM job `job`."""
        self.submitted[array] = job
        # A full disk ends no launch half-way: jobs are found by their names too.
        with contextlib.suppress(OSError), (self.folder / "submitted.jsonl").open("a") as file:
            file.write(json.dumps({"array": array, "job": job}) + "\n")

    def log(self, job: Placed) -> Path | None:
        """The log of a job, once it has started."""
        logs = sorted((self.folder / "logs" / str(job.array)).glob("*_log.out"))
        if self.cluster == "slurm":
            logs = [path for path in logs if _task_of(path.name) == job.task]
        else:  # named by processes
            opening = f"job {self.jobs.index(job)} of {self.id},"
            logs = [path for path in logs if opening in path.read_text(errors="replace")]
        return logs[-1] if logs else None


def read(folder: Path) -> Launch:
    """Raises StoreError where the record is missing, unreadable or of another version."""
    path = folder / "launch.json"
    try:
        facts = json.loads(path.read_text())
        if facts.pop("schema") != SCHEMA:
            raise StoreError(f"{path} is of another version; remove its folder and launch again")
        facts["jobs"] = tuple(Placed(**{**j, "keys": tuple(j["keys"])}) for j in facts["jobs"])
        facts["large"] = tuple(facts["large"])
        launch = Launch(**facts)
        noted = folder / "submitted.jsonl"
        lines = noted.read_text(errors="replace").splitlines() if noted.exists() else []
    except PermissionError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); remove its folder once its jobs have ended"
        ) from None
    for line in lines:
        # Half a line, of a launch that was killed.
        with contextlib.suppress(ValueError, KeyError, TypeError):
            submission = json.loads(line)
            launch.submitted[submission["array"]] = submission["job"]
    return launch


def of_grid(store: Store, path: Path) -> tuple[list[Launch], list[str]]:
    """All launches of a grid file, oldest first; and a line for each launch that is unreadable."""
    launches, broken = every(store)
    return [launch for launch in launches if launch.path == str(path.resolve())], broken


def every(store: Store) -> tuple[list[Launch], list[str]]:
    """All launches, oldest first; and a line for each that cannot be read."""
    launches, broken = [], []
    for folder in folders(store):
        try:
            launches.append(read(folder))
        except StoreError as error:
            broken.append(str(error))
    return launches, broken


def folders(store: Store) -> list[Path]:
    """The folders of all launches. Raises StoreError where nobody can say which there are."""
    try:
        names = sorted(os.listdir(store.root / "launches"))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StoreError(f"{store.root / 'launches'} cannot be read: {error.strerror}") from None
    paths = [store.root / "launches" / name for name in names if not name.startswith(".")]
    return [path for path in paths if not os.path.isfile(path)]  # which is somebody's note


@dataclass(frozen=True)
class Queued:
    """A job that SLURM has not ended: its id (of the array), index, state and reason."""

    job: str
    task: int
    state: str
    reason: str
    since: float = 0.0  # its launch's `created`: failures before it are run again

    @property
    def running(self) -> bool:
        return self.state in ("RUNNING", "COMPLETING", "SUSPENDED", "STAGE_OUT", "SIGNALING")


Queue = dict[tuple[str, int], Queued]  # by the job's name and index


def queue(everybody: bool = False) -> Queue:
    """Jobs that have not ended, this user's or as many as SLURM shows, from one `squeue`.

    Raises ClusterError.
    """
    whose = () if everybody else (f"--user={getpass.getuser()}",)
    lines = slurm("squeue", *whose, "-h", "-r", "-o", "%F|%K|%T|%r|%j").splitlines()
    jobs: Queue = {}
    for line in lines:
        job, task, state, reason, name = line.split("|", 4)
        number = int(task) if task.isdigit() else 0
        jobs[name, number] = Queued(job, number, state, reason)
    return jobs


def live(store: Store, jobs: Queue, strict: bool = True) -> dict[str, Queued]:
    """Stages that jobs in the queue will compute, of any launch into this store.

    Of a launch that cannot be read they are not known: raises StoreError, or goes on if not strict.
    """
    held: dict[str, Queued] = {}
    for id in sorted(ids_in(jobs)):
        if not (store.root / "launches" / id / "launch.json").exists():
            continue  # another store's
        try:
            launch = read(store.root / "launches" / id)
        except StoreError:
            if strict:
                raise
            continue
        for job in launch.jobs:
            entry = jobs.get((launch.name(job.array), job.task))
            if entry is not None:
                held |= dict.fromkeys(job.keys, replace(entry, since=launch.created))
    return held


def cancel(launches: Collection[Launch]) -> int:
    """Take the jobs of these launches out of the queue; how many there were."""
    names = {launch.name(array) for launch in launches for array in {j.array for j in launch.jobs}}
    entries = [entry for (name, _), entry in queue().items() if name in names]
    if ids := sorted({entry.job for entry in entries}):
        slurm("scancel", *ids)
    return len(entries)


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Keeps other launches into the store out while this one looks at the queue and submits.

    Raises ClusterError where another one does not come to an end.
    """
    until = time.monotonic() + WAIT_S
    while (claim := store.claim("launch")) is None:
        if time.monotonic() > until:
            owner = store.claimed("launch") or {}
            raise ClusterError(f"{owner.get('host')}:{owner.get('pid')} is launching for too long")
        time.sleep(0.5)
    with claim:
        yield


def ids_in(jobs: Iterable[tuple[str, int]]) -> set[str]:
    """Ids of the launches that have jobs in the queue; jobs of other origin have other names."""
    named = (re.search(r":([\w-]+):[^:]*$", name) for name, _ in jobs)
    return {found[1] for found in named if found}


def slurm(*command: str) -> str:
    """Standard output of one of SLURM's commands. Raises ClusterError with its complaint."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} is not installed here: launch where SLURM is") from None
    except subprocess.TimeoutExpired:
        raise ClusterError(f"{command[0]} does not answer") from None
    if done.returncode:
        complaint = (done.stderr.strip() or f"status {done.returncode}").splitlines()[-1]
        raise ClusterError(f"{command[0]}: {complaint}")
    return done.stdout


def end_of(log: Path | None) -> str:
    """In a few words, why a job ended that left no value and no record: of its last attempt."""
    if log is None:
        return "cancelled before it started"
    log_text = re.split(_BEGIN, log.read_text(errors="replace"))[-1]
    for pattern, reason in _ENDS:
        if re.search(pattern, log_text):
            return reason
    last = next((line for line in reversed(log_text.splitlines()) if line.strip()), "")
    return f"ended without a record; last line: {last.strip()[:100]}"


_BEGIN = r"Starting with \w*JobEnvironment"  # submitit's, at each attempt
_ENDS = (  # the telling ones first: SLURM may log several for one end
    (r"DUE TO TIME LIMIT", "time limit"),
    (r"DUE TO PREEMPTION", "preempted"),
    (r"DUE TO NODE FAILURE|NODE_FAIL", "node failure"),
    (r"oom[-_ ]kill|Out Of Memory", "out of memory (of the host)"),
    (r"timed-out too many times", "time limit, as often as the profile's requeues allow"),
    (r"DUE TO JOB REQUEUE", "requeued"),
    (r"CANCELLED AT", "cancelled"),
)


def _task_of(name: str) -> int:
    """Index of a job within its array, from its log's name: <job>_<task>_0_log.out or <job>_0_…"""
    parts = name.split("_")
    return int(parts[1]) if len(parts) == 4 else 0
