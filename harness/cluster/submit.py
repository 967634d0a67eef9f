"""Submits a grid's jobs through submitit.

    found = prepare(plan, store, profile, keys)     # what would be submitted
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
import shlex
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from harness.cluster import compat, launches, scheduler, waves
from harness.cluster.launches import Launch, Placed
from harness.cluster.parameters import ask_sbatch
from harness.cluster.profile import Profile, Request
from harness.cluster.script import write_lines
from harness.cluster.snapshots import check_snapshot, take_snapshot
from harness.cluster.throttle import throttle
from harness.config.document import EITHER, MERGED, Document, write_yaml
from harness.core.errors import UNSHOWABLE, BitgridError, ClusterError, show_text
from harness.core.store import Store
from harness.run import plan as plans
from harness.run.plan import Plan

# What SLURM calls its limits on jobs in the queue.
_LIMIT = re.compile("MaxSubmit|GrpSubmit|MaxJobCount|submission limit|submit limit", re.I)
NOTICE = "end"  # in place of an array's number


class Work:
    """What submitit calls in a job. At a time limit or preemption the same call is queued again,

    unless the job would only meet its limit again.
    """

    def __call__(self, folder: str, index: int) -> dict[str, int]:
        from harness.cluster import job  # it imports torch, which nobody needs who submits

        compat.end_without_error(job.say_limit)
        check_snapshot(Path(launches.read(Path(folder)).code))
        return job.work(Path(folder), index)

    def checkpoint(self, folder: str, index: int) -> DelayedSubmission | None:
        from harness.cluster import job

        return None if job.is_stuck() else DelayedSubmission(self, folder, index)


@dataclass(frozen=True)
class Prepared:
    """What is to be submitted."""

    jobs: list[waves.Job]
    arrays: list[waves.Array]
    queued: Mapping[str, scheduler.Queued]  # stages that other jobs in the queue will compute
    left: int = 0  # jobs for which there is no room now, by the limit on jobs in the queue

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
    gres: Mapping[str, str] | None = None,
) -> Prepared:
    """Jobs for the kept stages `keys` that no job in the queue will compute.

    given_up: stages whose jobs may still be in the queue, but have failed them or lack an input;
    waves_at_most: of jobs that wait for one another, so many; gres: see `waves.jobs`. Raises
    ClusterError where the queue has no room for any.
    """
    slurm = profile.cluster == "slurm"
    queued = launches.live(store, _ask_queue(plan, store)) if slurm else {}
    queued = {key: entry for key, entry in queued.items() if key not in given_up}
    missing = [key for key in keys if key not in queued]
    elsewhere = {key: entry.job for key, entry in queued.items()}
    jobs = waves.jobs(plan, missing, profile, elsewhere, large, gres)
    jobs = [job for job in jobs if waves_at_most is None or job.wave <= waves_at_most]
    jobs, left = waves.packed(jobs, profile.models_per_job), 0
    most = profile.max_jobs or (_count_room(profile) if slurm else None)
    if most is not None and jobs:
        jobs, left = _fit(jobs, most - bool(profile.notify))
    arrays = waves.arrays(jobs, scheduler.find_max_array() if slurm else 1000)
    if profile.launch_parallelism is not None:
        arrays = throttle(arrays, jobs, profile.launch_parallelism)
    return Prepared(jobs, arrays, queued, left)


def _ask_queue(plan: Plan, store: Store) -> scheduler.Queue:
    """Jobs in the queue, of anybody's launches, that may compute stages of the plan."""
    known, broken = launches.of_keys(store, plan.stored())
    names = {name for launch in known for name in launch.names}
    # Where a launch cannot be read nobody knows what it has: `launches.live` looks at all. And
    # that SLURM answers is known before anything is written.
    return scheduler.queue(everybody=True, names=names if names and not broken else None)


def launch(
    prepared: Prepared,
    plan: Plan,
    store: Store,
    profile: Profile,
    halvings: Mapping[str, int] | None = None,
    large: Collection[str] = (),
) -> Launch:
    """Write the launch's folder and submit its arrays; with a local cluster, wait for them too.

    Raises ClusterError where SLURM refuses one, after cancelling those before it; where it is for a
    limit on jobs they stay, and `Launch.submitted` lacks the others.
    """
    places = {
        number: (place, task)
        for place, array in enumerate(prepared.arrays)
        for task, number in enumerate(array.jobs)
    }
    record = Launch(
        id=launches.make_id(),
        grid=plan.name,
        path=plan.path,
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
    _write_grid(plan, record.folder / f"{plan.name}.yaml")
    plans.write(plan, record.folder / launches.PLAN)
    try:
        for number, array in enumerate(prepared.arrays):
            _submit(record, number, array, profile)
        if profile.notify and profile.cluster == "slurm":
            _submit_notice(record, profile, profile.notify)
    except ClusterError as error:
        if not (record.submitted and _LIMIT.search(str(error))):
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


def dry(prepared: Prepared, plan: Plan, store: Store, profile: Profile) -> Iterator[str]:
    """The sbatch file of each array, with arrays' numbers where SLURM's ids will stand."""
    for number, array in enumerate(prepared.arrays):
        folder = store.root / "launches" / "ID" / "logs" / str(number)
        after = [*(f"<array {place}>" for place in sorted(array.after)), *sorted(array.outside)]
        name = f"{plan.name}:ID:{number}"
        yield _submitter(folder, array, profile, name, after, store.root / "code").write_script(
            len(array.jobs)
        )


def _count_room(profile: Profile) -> int | None:
    """How many jobs there is room for in the queue, as SLURM says."""
    asked = [profile, *profile.stages.values(), *([profile.large] if profile.large else [])]
    named = [
        {getattr(request, key) for request in asked} - {None}
        for key in ("partition", "account", "qos")
    ]
    return scheduler.count_submittable(*named)


def _fit(jobs: list[waves.Job], most: int) -> tuple[list[waves.Job], int]:
    """The same work in at most `most` jobs, or what comes first of it; and how many jobs are left.

    Raises ClusterError where there is no room at all.
    """
    if most < 1:
        raise ClusterError(
            f"{len(jobs)} jobs are to be submitted, and no more may be queued (max_jobs of the "
            "profile, else SLURM's limits of the association and the QOS): wait for others to end"
        )
    fused = math.ceil(len(jobs) / most)
    while len(fused_jobs := waves.packed(jobs, fused)) > most:
        if fused >= len(jobs):  # inputs before users: the first of them need none of the others
            return fused_jobs[:most], len(fused_jobs) - most
        fused += math.ceil(fused / 4)
    return fused_jobs, 0


def _write_grid(plan: Plan, path: Path) -> None:
    """The grid as one file that needs no other: bases taken in, the mirror's place absolute."""
    document = Document(Path(plan.path), MERGED, either=EITHER)
    keys = {key: each for key, each in (document.data or {}).items() if key != "base"}
    if keys.get("mirror"):
        naming_file, _ = document.find(("mirror",))
        keys["mirror"] = str(naming_file.parent / keys["mirror"])
    if plan.basis.mirror:
        keys["mirror"] = plan.basis.mirror
    path.write_text(f"# {show_text(plan.question)}\n" + write_yaml(keys))


def _submit(record: Launch, number: int, array: waves.Array, profile: Profile) -> None:
    folder, code = record.folder / "logs" / str(number), Path(record.code)
    arguments = [(str(record.folder), index) for index in array.jobs]
    name = record.name(number)
    if profile.cluster == "slurm":
        after = sorted({*(record.submitted[place] for place in array.after), *array.outside})
        submitter = _submitter(folder, array, profile, name, after, code)
        calls = [DelayedSubmission(Work(), *each) for each in arguments]
        record.note(number, submitter.submit_array(calls))
        return
    try:
        executor = submitit.AutoExecutor(folder, cluster=profile.cluster)
    except RuntimeError as error:
        raise ClusterError(f"cluster: {profile.cluster}: {error}") from None
    minutes = math.ceil(60 * (array.request.hours or 1.0))
    executor.update_parameters(name=name, timeout_min=minutes, stderr_to_stdout=True)
    with _environment(profile, code), contextlib.redirect_stderr(io.StringIO()):
        submitted = executor.map_array(Work(), *zip(*arguments, strict=True))
    record.note(number, submitted[0].job_id.split("_")[0])
    for one in submitted:  # nobody else would keep the order
        with contextlib.suppress(submitit.core.utils.FailedJobError, BitgridError):
            one.result()


def _submit_notice(record: Launch, profile: Profile, command: str) -> None:
    """A job that runs a command of the user's once all others have ended."""
    least = Request(hours=0.1, memory_gib=0.5, cpus=1)
    request = least.over(Request(**{name: getattr(profile, name) for name in Request.model_fields}))
    array = waves.Array((), frozenset(), frozenset(), 0, gpus=0, nodes=1, request=request)
    name = f"{record.grid}:{record.id}:{NOTICE}"
    after = sorted(record.submitted.values())
    folder = record.folder / "logs" / NOTICE
    submitter = _submitter(folder, array, profile, name, after, Path(record.code))
    facts = {"GRID": record.path, "STORE": record.store, "LAUNCH": record.id}
    exports = [f"export BITGRID_{key}={shlex.quote(fact)}" for key, fact in facts.items()]
    submitter.update_parameters(setup=[*profile.setup, *exports], use_srun=False)
    submitter.submit_command(command)


def _submitter(
    folder: Path,
    array: waves.Array,
    profile: Profile,
    name: str,
    after: Sequence[str],
    code: Path,
) -> compat.Submitter:
    """What submits an array; `after` are the ids of the jobs that it waits for."""
    if found := re.search(rf"[%\\{UNSHOWABLE}]", str(folder)):
        raise ClusterError(
            f"{str(folder)!r} has the character U+{ord(found[0]):04X}, which names another file to "
            "SLURM: have the store elsewhere (--store)"
        )
    python = shlex.quote(profile.python or sys.executable)
    words = f"{profile.prefix} {python}" if profile.prefix else python
    try:
        submitter = compat.Submitter(folder, profile.requeues, words)
    except RuntimeError as error:
        raise ClusterError(f"cluster: {profile.cluster}: {error}") from None
    asked, submitter.unset = ask_sbatch(
        array.request, array.gpus, profile.requeues > 0, array.nodes
    )
    # The job itself is on the first node, and starts what others do (`harness.run.processes`).
    alone = ["--nodes=1", "--ntasks=1"] if array.nodes > 1 else []
    submitter.directives = profile.directives
    settings = {
        "job_name": name,
        "time": math.ceil(60 * (array.request.hours or 1.0)),
        "array_parallelism": min(filter(None, (profile.array_parallelism, array.parallel))),
        "signal_delay_s": profile.signal_delay_s,
        "dependency": f"afterany:{':'.join(after)}" if after else None,
        "setup": write_lines(profile.setup, code, profile.node_scratch),
        "srun_args": [*profile.srun, *alone],
        "stderr_to_stdout": True,
        "additional_parameters": asked,
    }
    submitter.update_parameters(**{key: each for key, each in settings.items() if each is not None})
    return submitter


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
