"""Submits a grid's jobs through submitit.

    found = prepare(grid, plan, store, profile, keys)     # what would be submitted
    launch(found, ...)                                    # snapshot, record, sbatch

A job's arguments are (launch folder, index). Jobs import the code of a snapshot and make their
stages from a copy of the plan, so that what is edited after the launch changes nothing of it.
Arrays wait with `afterany` for those that compute their inputs; a job itself checks that they are
there. Of two launches at once the second waits for the first, and leaves out what is queued.
Not here: cutting (`harness.cluster.waves`), records and queue (`harness.cluster.launches`), what a
job does (`harness.cluster.job`), submitit's private parts (`harness.cluster.compat`).
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from harness.cluster import compat, job, launches, scheduler, waves
from harness.cluster.launches import Launch, Placed
from harness.cluster.profile import Profile, Request
from harness.cluster.script import write_lines
from harness.cluster.snapshots import check_snapshot, take_snapshot
from harness.config.document import write_yaml
from harness.core.errors import UNSHOWABLE, BitgridError, ClusterError, show_text
from harness.core.store import Store
from harness.grid.expand import Grid
from harness.run import plan as plans
from harness.run.plan import Plan


class Work:
    """What submitit calls in a job. At a time limit or preemption the same call is queued again,

    unless the job would only meet its limit again.
    """

    def __call__(self, folder: str, index: int) -> dict[str, int]:
        compat.end_without_error(job.say_limit)
        check_snapshot(Path(launches.read(Path(folder)).code))
        return job.work(Path(folder), index)

    def checkpoint(self, folder: str, index: int) -> DelayedSubmission | None:
        return None if job.is_stuck() else DelayedSubmission(self, folder, index)


@dataclass(frozen=True)
class Prepared:
    """What is to be submitted."""

    jobs: list[waves.Job]
    arrays: list[waves.Array]
    queued: Mapping[str, scheduler.Queued]  # stages that other jobs in the queue will compute

    @property
    def waves(self) -> int:
        return max((array.wave for array in self.arrays), default=0)


def prepare(
    plan: Plan,
    store: Store,
    profile: Profile,
    keys: Collection[str],
    large: Collection[str] = (),
    given_up: Collection[str] = (),
    waves_at_most: int | None = None,
) -> Prepared:
    """Jobs for the kept stages `keys` that no job in the queue will compute.

    given_up: stages whose jobs may still be in the queue, but have failed them or lack an input;
    waves_at_most: of jobs that wait for one another, so many.
    """
    slurm = profile.cluster == "slurm"
    queued = launches.live(store, _ask_queue(plan, store)) if slurm else {}
    queued = {key: entry for key, entry in queued.items() if key not in given_up}
    missing = [key for key in keys if key not in queued]
    elsewhere = {key: entry.job for key, entry in queued.items()}
    jobs = waves.jobs(plan, missing, profile, elsewhere, large)
    jobs = [job for job in jobs if waves_at_most is None or job.wave <= waves_at_most]
    most = profile.max_jobs or (_max_submit() if slurm else None)
    jobs = waves.packed(jobs, profile.models_per_job)
    if most is not None:
        jobs = _within(jobs, most)
    return Prepared(jobs, waves.arrays(jobs, _max_array() if slurm else 1000), queued)


def _ask_queue(plan: Plan, store: Store) -> scheduler.Queue:
    """Jobs in the queue, of anybody's launches, that may compute stages of the plan."""
    known, broken = launches.of_keys(store, plan.stored())
    names = {name for launch in known for name in launch.names}
    # Where a launch cannot be read nobody knows what it has: `launches.live` looks at all. And
    # that SLURM answers is known before anything is written.
    return scheduler.queue(everybody=True, names=names if names and not broken else None)


def launch(
    prepared: Prepared,
    grid: Grid,
    plan: Plan,
    store: Store,
    profile: Profile,
    halvings: Mapping[str, int] | None = None,
    large: Collection[str] = (),
) -> Launch:
    """Write the launch's folder and submit its arrays; with a local cluster, wait for them too.

    Raises ClusterError where SLURM refuses one, after cancelling those before it.
    """
    places = {
        number: (place, task)
        for place, array in enumerate(prepared.arrays)
        for task, number in enumerate(array.jobs)
    }
    record = Launch(
        id=f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}",
        grid=grid.name,
        path=str(grid.path.resolve()),
        store=str(store.root),
        code=str(take_snapshot(store)),
        cluster=profile.cluster,
        created=time.time(),
        visible_s=profile.visible_s,
        jobs=tuple(_place(j, *places[n]) for n, j in enumerate(prepared.jobs)),
        halvings=dict(halvings or {}),
        large=tuple(large),
    )
    record.write()
    _write_grid(grid, record.folder / f"{grid.name}.yaml")
    plans.write(plan, record.folder / launches.PLAN)
    try:
        for number, array in enumerate(prepared.arrays):
            _submit(record, number, array, profile)
    except ClusterError as error:
        raise ClusterError(f"{error}; {_undo(record)}") from None
    return record


def _place(asked: waves.Job, array: int, task: int) -> Placed:
    request = asked.request
    hours, memory_gib = request.hours or 1.0, request.memory_gib or 0.0
    return Placed(asked.keys, array, task, asked.wave, hours, memory_gib)


def _undo(record: Launch) -> str:
    """Cancel what was submitted of a launch; says what became of it."""
    if not record.submitted:
        shutil.rmtree(record.folder)
        return "nothing was submitted"
    try:
        return f"{launches.cancel([record])} jobs that were submitted before are cancelled"
    except ClusterError as error:
        return f"jobs that were submitted before are still queued: {error}"


def dry(prepared: Prepared, grid: Grid, store: Store, profile: Profile) -> Iterator[str]:
    """The sbatch file of each array, with arrays' numbers where SLURM's ids will stand."""
    for number, array in enumerate(prepared.arrays):
        executor = _executor(store.root / "launches" / "ID" / "logs" / str(number), profile)
        ids = {place: f"<array {place}>" for place in array.after}
        asked = _parameters(array, profile, f"{grid.name}:ID:{number}", ids, store.root / "code")
        executor.update_parameters(**asked)
        yield compat.write_submission_file(executor, len(array.jobs))


def _within(jobs: list[waves.Job], most: int) -> list[waves.Job]:
    """The same work in at most `most` jobs. Raises ClusterError where that cannot be."""
    fused = math.ceil(len(jobs) / most)
    while len(fused_jobs := waves.packed(jobs, fused)) > most:
        if fused >= len(jobs):
            raise ClusterError(
                f"the grid needs {len(fused_jobs)} jobs or more, and {most} more may be queued "
                "(max_jobs of the profile, else SLURM's MaxSubmit): wait for others to end, or "
                "launch less"
            )
        fused += math.ceil(fused / 4)
    return fused_jobs


def _write_grid(grid: Grid, path: Path) -> None:
    """The grid as one file that needs no other: bases taken in, the mirror's place absolute."""
    keys = grid.file.model_dump(exclude_none=True)
    if grid.access.folder is not None:
        keys["mirror"] = str(grid.access.folder)
    path.write_text(f"# {show_text(grid.question)}\n" + write_yaml(keys))


def _submit(record: Launch, number: int, array: waves.Array, profile: Profile) -> None:
    executor = _executor(record.folder / "logs" / str(number), profile)
    name, code = record.name(number), Path(record.code)
    executor.update_parameters(**_parameters(array, profile, name, record.submitted, code))
    folders = [str(record.folder)] * len(array.jobs)
    try:
        # What sbatch complains of is told once, by us.
        with _environment(profile, code), contextlib.redirect_stderr(io.StringIO()):
            submitted = executor.map_array(Work(), folders, list(array.jobs))
    except submitit.core.utils.FailedJobError as error:
        raise ClusterError(f"sbatch refuses {name}: {_complaint(error)}") from None
    record.note(number, submitted[0].job_id.split("_")[0])
    if profile.cluster != "slurm":  # nobody else would keep the order
        for one in submitted:
            with contextlib.suppress(submitit.core.utils.FailedJobError, BitgridError):
                one.result()


def _executor(folder: Path, profile: Profile) -> submitit.AutoExecutor:
    if profile.cluster == "slurm" and (found := re.search(rf"[%\\{UNSHOWABLE}]", str(folder))):
        raise ClusterError(
            f"{str(folder)!r} has the character U+{ord(found[0]):04X}, which names another file to "
            "SLURM: have the store elsewhere (--store)"
        )
    options = {"slurm_max_num_timeout": profile.requeues} if profile.cluster == "slurm" else {}
    try:
        return submitit.AutoExecutor(folder, cluster=profile.cluster, **options)
    except RuntimeError as error:
        raise ClusterError(f"cluster: {profile.cluster}: {error}") from None


def _parameters(
    array: waves.Array, profile: Profile, name: str, submitted: Mapping[int, str], code: Path
) -> dict[str, Any]:
    """submitit's parameters of an array; `submitted` are the ids of those before it."""
    asked: Request = array.request
    minutes = math.ceil(60 * (asked.hours or 1.0))
    shared = {"name": name, "timeout_min": minutes, "stderr_to_stdout": True}
    if profile.cluster != "slurm":
        return shared
    after = sorted({*(submitted[place] for place in array.after), *array.outside})
    slurm = {
        "mem_gb": asked.memory_gib,
        "cpus_per_task": asked.cpus,
        "slurm_partition": asked.partition,
        "slurm_account": asked.account,
        "slurm_qos": asked.qos,
        "slurm_constraint": asked.constraint,
        "slurm_gres": _gres(asked.gpu, array.gpus),
        "slurm_array_parallelism": profile.array_parallelism,
        "slurm_signal_delay_s": profile.signal_delay_s,
        "slurm_dependency": f"afterany:{':'.join(after)}" if after else None,
        "slurm_setup": write_lines(profile.setup, code),
        "slurm_additional_parameters": {
            key: setting
            for key, setting in {"requeue": True, **asked.sbatch}.items()
            if setting is not None and setting is not False
        },
    }
    return shared | {key: setting for key, setting in slurm.items() if setting is not None}


def _gres(gpu: str | None, count: int) -> str | None:
    return None if gpu == "none" or not count else f"{gpu or 'gpu'}:{count}"


@contextlib.contextmanager
def _environment(profile: Profile, code: Path) -> Iterator[None]:
    """The snapshot's code for jobs that are started without a shell."""
    if profile.cluster != "local":
        yield
        return
    before = dict(os.environ)
    others = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{code}:{others}" if others else str(code)
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _complaint(error: Exception) -> str:
    complaints = re.findall(r"(?:sbatch: )?error: (.+)", str(error))
    return "; ".join(complaints) or str(error).strip().rpartition("\n")[2] or "it does not say why"


def _max_array() -> int:
    limit = re.search(
        r"^MaxArraySize\s*=\s*(\d+)", scheduler.slurm("scontrol", "show", "config"), re.M
    )
    return int(limit[1]) if limit else 1000


def _max_submit() -> int | None:
    """How many jobs this user may have in the queue, less those that are there; None: no limit."""
    import getpass

    try:
        answer = scheduler.slurm(
            *("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=MaxSubmit")
        )
    except ClusterError:  # no accounting
        return None
    limits = [int(word) for word in answer.split() if word.isdigit()]
    return max(1, min(limits) - len(scheduler.queue())) if limits else None
