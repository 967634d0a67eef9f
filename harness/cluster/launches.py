"""What was launched: a folder per launch in the store, and what the queue says of its jobs.

    <store>/launches/<id>/launch.json     jobs, arrays, profile; written before any is submitted
                          <grid>.yaml     the grid as it was, bases and mirror resolved
                          plan.json       its plan: what jobs make their stages from
                          submitted.jsonl SLURM's id of each array, as soon as it is known
                          logs/<array>/   submitit's files: a job's log, arguments, result
    <store>/code/<digest>/                the code as it was, shared by launches of the same code

A run in several processes of one machine leaves the same, of a cluster called `workers`: its jobs'
logs, and while it goes on a claim (`claims/run.<n>`); a file `cancel` asks it to end.

A job is found again by its name, `<grid>:<launch>:<array>`, and its array index, so that a launch
whose process died between submission and note loses nothing. Imports no torch and no submitit.
Not here: cutting a plan into jobs (`waves`), submission (`launch`), what a job does (`job`).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import secrets
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.cluster import scheduler
from harness.cluster.scheduler import Queue, Queued
from harness.core.claims import Claim, Claims
from harness.core.errors import ClusterError, StoreError
from harness.core.files import explained, write_json
from harness.core.store import Store

SCHEMA = 2
PLAN = "plan.json"
CANCEL = "cancel"
WORKERS = "workers"  # the cluster of a run in several processes here
WAIT_S = 600.0  # for another launch into the same store


@dataclass(frozen=True)
class Placed:
    """One job of a launch: its stages, and its place in the queue."""

    keys: tuple[str, ...]
    array: int
    task: int
    wave: int
    hours: float = 1.0  # its time limit
    memory_gib: float = 0.0  # of the host, as asked for; 0 in launches of before it was noted


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

    @property
    def names(self) -> set[str]:
        """The names of its jobs in the queue."""
        return {self.name(job.array) for job in self.jobs}

    @property
    def runner(self) -> dict[str, Any] | None:
        """Who runs it, where that is a process that still lives: its host and process id."""
        return self._claims.find_owner("run") if self.cluster == WORKERS else None

    def take(self) -> Claim | None:
        """The claim that its runner lives."""
        return self._claims.take("run", lambda: False)

    @property
    def _claims(self) -> Claims:
        return Claims(self.folder / "claims")

    def ask_to_end(self) -> None:
        """Have its runner end, on whatever machine it is. Raises StoreError."""
        with explained(self.folder):
            (self.folder / CANCEL).touch()

    def is_asked_to_end(self) -> bool:
        return (self.folder / CANCEL).exists()

    def place_log(self, number: int) -> Path:
        """Where the job of that index writes its log, of a run in several processes."""
        return self.folder / "logs" / "0" / f"run_{number}_0_log.out"

    @property
    def is_ours(self) -> bool:
        """Whether this user launched it."""
        return self._find_owner() == os.geteuid()

    @property
    def owner(self) -> str:
        """Who launched it."""
        try:
            return pwd.getpwuid(self._find_owner()).pw_name
        except KeyError:
            return f"user {self._find_owner()}"

    def _find_owner(self) -> int:
        try:
            return self.folder.stat().st_uid
        except OSError:  # gone meanwhile
            return os.geteuid()

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
        if self.cluster in ("slurm", WORKERS):
            logs = [path for path in logs if _task_of(path.name) == job.task]
        else:  # named by processes
            opening = f"job {self.jobs.index(job)} of {self.id},"
            logs = [path for path in logs if opening in path.read_text(errors="replace")]
        return logs[-1] if logs else None


def make_id() -> str:
    """A new launch's id: when, and a few digits."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


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


def of_grid(store: Store, path: Path, keys: Collection[str]) -> tuple[list[Launch], list[str]]:
    """This user's launches of a grid file, and of the same stages where it had another name; oldest
    first. And a line for each launch that is unreadable."""
    launches, broken = every(store)
    known = set(keys)
    return [
        launch
        for launch in launches
        if launch.is_ours
        and (
            launch.path == str(path.resolve())
            or all(known.issuperset(job.keys) for job in launch.jobs)
        )
    ], broken


def of_keys(store: Store, keys: Collection[str]) -> tuple[list[Launch], list[str]]:
    """All launches of any of these stages, oldest first, whoever launched them and from whatever
    file; and a line for each launch that is unreadable."""
    launches, broken = every(store)
    wanted = set(keys)
    return [
        launch for launch in launches if any(not wanted.isdisjoint(job.keys) for job in launch.jobs)
    ], broken


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
    names = {name for launch in launches if launch.cluster == "slurm" for name in launch.names}
    found = scheduler.queue(names=names)
    entries = [entry for (name, _), entry in found.items() if name in names]
    scheduler.cancel({entry.job for entry in entries})
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


def _task_of(name: str) -> int:
    """Index of a job within its array, from its log's name: <job>_<task>_0_log.out or <job>_0_…"""
    parts = name.split("_")
    return int(parts[1]) if len(parts) == 4 else 0
