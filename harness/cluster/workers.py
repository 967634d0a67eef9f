"""Runs a plan in several processes of this machine: one for each GPU, or on CPUs as many as asked.

The same jobs as on a cluster (`waves`), so that a model is loaded once and a shared stage computed
once; who has most work behind him goes first. A job starts where its inputs are there, enough
processes are free (a stage that asks for several GPUs takes several) and the host has the memory
that the jobs under way ask for. A process that dies leaves a record of a failure, and another takes
its place. Processes are started before there is a plan: what they import takes seconds, in which
the plan is made. All end with this one. Not here: what such a process does (`harness.run.lane`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from harness.cluster import launches, waves
from harness.cluster.launches import Launch, Placed
from harness.cluster.profile import Profile
from harness.cluster.waves import Job
from harness.core.errors import BitgridError
from harness.core.files import explained
from harness.core.installation import SAFE_PATH
from harness.core.store import Store
from harness.run import plan as plans
from harness.run.lane import CLOCK
from harness.run.plan import Plan
from harness.run.progress import Bar
from harness.run.runner import Outcome

COMMAND = (sys.executable, "-m", "harness.run.lane")
PATIENCE_S = 20.0
CANCEL_S = 2.0  # between two looks whether the run was cancelled
AHEAD = 8  # processes that are started before it is known for how many there is work
MEMORY_SHARE = 0.9  # of the host's, for jobs at once


def find_devices(workers: str | None, gpus: str | None) -> list[str]:
    """The device of each process, as BITGRID_DEVICE names it.

    workers: how many, or `auto`: one for each GPU, or for each core without any; gpus: numbers of
    GPUs, as `0,1,3`. Raises BitgridError for what this machine does not have.
    """
    import torch

    there = torch.cuda.device_count()
    if gpus is not None:
        numbers = [word.strip() for word in gpus.split(",")]
        for number in numbers:
            if not number.isdigit() or int(number) >= there or numbers.count(number) > 1:
                have = f"the machine has {there}" + (f", 0 to {there - 1}" if there else "")
                raise BitgridError(f"--gpus {gpus}: {number!r} is no GPU of its own; {have}")
        return [f"cuda:{number}" for number in numbers]
    assert workers is not None
    named = os.environ.get("BITGRID_DEVICE")
    on_gpus = there > 0 if named is None else named.startswith("cuda")
    if workers == "auto":
        count = there if on_gpus else len(os.sched_getaffinity(0))
    elif workers.isdigit() and int(workers) > 0:
        count = int(workers)
    else:
        raise BitgridError(f"--workers {workers}: it should be a number of at least 1, or auto")
    if named and ":" in named and count > 1:
        raise BitgridError(
            f"--workers {count}: a worker has a GPU, and {named} is named alone; "
            "--gpus names several"
        )
    if on_gpus and count > there:
        raise BitgridError(f"--workers {count}: a worker has a GPU, and the machine has {there}")
    if named and ":" in named:
        return [named]
    return [f"cuda:{number}" if on_gpus else named or "cpu" for number in range(count)]


class Crew:
    """The processes that compute on this machine, one for each of `devices`, until the end of
    `with`. Those that will be needed, as far as is known, are started where it begins; others with
    their first job, and again as often as one dies that is needed.

    retry_before: see `harness.run.runner.run`; command: what starts one, `COMMAND` by default.
    """

    def __init__(
        self,
        store: Store,
        devices: Sequence[str],
        retry_before: float = 0.0,
        command: Sequence[str] | None = None,
    ) -> None:
        words = [str(store.root), "--retry-before", repr(retry_before)]
        self.command = [*(command or COMMAND), *words]
        self.processes = [_Process(number, device) for number, device in enumerate(devices)]
        self.events = queue.SimpleQueue[tuple[_Process, subprocess.Popen[str], str | None]]()

    def __enter__(self) -> Self:
        try:
            for process in self.processes[:AHEAD]:
                self.start(process)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End all processes, at once: what they have finished is kept."""
        running = [each for each in self.processes if each.process is not None]
        for each in running:
            assert each.process and each.process.stdin
            with contextlib.suppress(OSError):  # it is dead
                each.process.stdin.close()
            if each.job is None:  # it does nothing, or still imports and would read the end late
                each.process.kill()
        for each in running:
            assert each.process
            try:
                each.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                each.process.kill()
            each.process = None

    def start(self, process: _Process) -> None:
        threads = max(1, len(os.sched_getaffinity(0)) // len(self.processes))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **SAFE_PATH}
        started = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,  # until its first job, which has a log: see `_Pool._bury`
            env={**environment, "BITGRID_DEVICE": process.device},
            text=True,
            start_new_session=True,  # Ctrl-C comes to this process alone, which ends the others
        )
        process.process = started
        threading.Thread(target=self._listen, args=[process, started], daemon=True).start()

    def _listen(self, process: _Process, started: subprocess.Popen[str]) -> None:
        assert started.stdout
        for line in started.stdout:
            self.events.put((process, started, line))
        self.events.put((process, started, None))


def run(plan: Plan, store: Store, keys: Sequence[str], bar: Bar, crew: Crew) -> Outcome:
    """Compute the kept stages `keys` of a plan in the processes of a crew."""
    jobs = waves.jobs(plan, keys, Profile(cluster="local", gpus=len(crew.processes)))
    record = _record(plan, store, jobs)
    pool = _Pool(plan, store, jobs, crew, record, bar)
    with record.take() or contextlib.nullcontext():
        try:
            pool.run()
        except BaseException:
            crew.__exit__()  # while others still see the run
            raise
    return pool.outcome


def _record(plan: Plan, store: Store, jobs: Sequence[Job]) -> Launch:
    """What others see of the run: see `harness.cluster.launches`. Raises StoreError."""
    placed = [Placed(job.keys, 0, number, job.wave) for number, job in enumerate(jobs)]
    record = Launch(
        id=launches.make_id(),
        grid=plan.name,
        path=plan.path,
        store=str(store.root),
        code="",
        cluster=launches.WORKERS,
        created=time.time(),
        visible_s=0.0,
        jobs=tuple(placed),
    )
    record.write()
    plans.write(plan, record.folder / launches.PLAN)
    with explained(record.folder):
        record.place_log(0).parent.mkdir(parents=True)
    return record


@dataclass
class _Process:
    """One process, and what it does."""

    number: int
    device: str
    process: subprocess.Popen[str] | None = None
    job: int | None = None
    stage: str | None = None  # under way

    @property
    def is_free(self) -> bool:
        return self.job is None


@dataclass
class _Pool:
    plan: Plan
    store: Store
    jobs: list[Job]
    crew: Crew
    record: Launch
    bar: Bar
    outcome: Outcome = field(default_factory=Outcome)
    ended: set[int] = field(default_factory=set)
    lent: dict[int, list[_Process]] = field(default_factory=dict)  # by job, the first computes

    def __post_init__(self) -> None:
        self.processes = self.crew.processes
        self.lanes = [self.bar.add_lane() for _ in self.processes]
        self.waiting = sorted(range(len(self.jobs)), key=lambda job: -self.jobs[job].tail_h)
        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.memory_gib = MEMORY_SHARE * pages / 2**30

    def run(self) -> None:
        while self.waiting or self.lent:
            self._start_ready()
            try:
                process, of, line = self.crew.events.get(timeout=CANCEL_S)
            except queue.Empty:
                if self.record.is_asked_to_end():
                    raise BitgridError(
                        "cancelled: what is finished is kept; the same command goes on"
                    ) from None
                continue
            if of is not process.process:
                continue  # of one that has another in its place
            if line is None:
                self._bury(process)
            elif line.startswith("{"):
                self._hear(process, json.loads(line))

    def _start_ready(self) -> None:
        """Start jobs, those with most work behind them first, as long as the next one fits."""
        for number in list(self.waiting):
            job = self.jobs[number]
            if not job.needs <= self.ended:
                continue
            free = [each for each in self.processes if each.is_free]
            count = min(max(1, job.gpus), len(self.processes))
            used = sum(self.jobs[other].request.memory_gib or 0.0 for other in self.lent)
            too_large = used + (job.request.memory_gib or 0.0) > self.memory_gib
            if count > len(free) or (self.lent and too_large):
                return  # nothing goes before it, or it might never find room
            self.waiting.remove(number)
            self.lent[number] = free[:count]
            for each in free[:count]:
                each.job = number
            self._send(free[0], job, free[:count])

    def _send(self, process: _Process, job: Job, together: Sequence[_Process]) -> None:
        if process.process is None:
            self.crew.start(process)
        assert process.process and process.process.stdin
        gpus = [each.device.partition(":")[2] for each in together]
        several = len(together) > 1 and all(gpus)
        visible = ",".join(map(_name_visible, gpus)) if several else None
        plan, log = str(self.record.folder / launches.PLAN), str(self._log(process))
        order = {"plan": plan, "keys": job.keys, "gpus": visible, "log": log}
        try:
            process.process.stdin.write(json.dumps(order) + "\n")
            process.process.stdin.flush()
        except OSError:
            pass  # it is dead, which its output tells next

    def _log(self, process: _Process) -> Path:
        """The log of the job that a process has."""
        assert process.job is not None
        return self.record.place_log(process.job)

    def _hear(self, process: _Process, told: dict[str, Any]) -> None:
        ((what, said),) = told.items()
        lane = self.lanes[process.number]
        if what == "begin":
            process.stage = said
            lane.begin(said)
        elif what == "step":
            lane.step(*said)
        elif what == "end":
            self._end(process, *said)
        elif what == "waiting":
            lane.waiting(said)
        elif what == "note":
            lane.note(said)
        elif what == "over":
            self._free(process)

    def _end(self, process: _Process, key: str, state: str, reason: str) -> None:
        process.stage = None
        if key in self.outcome.failed:  # of a process that died: told already
            return
        self.lanes[process.number].end(key, state, reason)
        listed = {"done": self.outcome.computed, "failed": self.outcome.failed}
        listed.get(state, self.outcome.blocked).append(key)

    def _free(self, process: _Process) -> None:
        assert process.job is not None
        self.ended.add(process.job)
        for each in self.lent.pop(process.job):
            each.job = None
            self.lanes[each.number].rest_idle()

    def _bury(self, process: _Process) -> None:
        """Record why a process died; its job goes on in another one, without the stage."""
        dead, process.process = process.process, None
        assert dead is not None and dead.stderr
        code = dead.wait()
        if process.job is None:
            return
        with self._log(process).open("a") as log:  # what it said before it opened one itself
            log.write(dead.stderr.read())
        key = process.stage or self._find_next(self.jobs[process.job])
        if key is not None and not self.store.has(key):
            reason = _explain_death(code, self._log(process))
            node = self.plan.nodes[key]
            record = {"exception": "ProcessDied", "message": reason, "hint": None}
            facts = {"traceback": "", "code": node.code, "when": time.time(), "stage": node.stage}
            self.store.fail(key, {**record, **facts})
            self._end(process, key, "failed", reason)
        if self._find_next(self.jobs[process.job]) is None:
            self._free(process)
            return
        number = process.job
        for each in self.lent.pop(number):
            each.job = None
        self.waiting.insert(0, number)

    def _find_next(self, job: Job) -> str | None:
        """The first stage of a job that has not ended; None where all have."""
        bad = {*self.outcome.failed, *self.outcome.blocked}
        left = (key for key in job.keys if key not in bad and not self.store.has(key))
        return next(left, None)


def _name_visible(number: str) -> str:
    """A GPU as CUDA_VISIBLE_DEVICES names it, which may show this process some of them alone."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[int(number)] if visible else number


def _explain_death(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
        return f"its process was killed by {name}{memory}"
    lines = log.read_text(errors="replace").strip().splitlines()
    lines = [line for line in lines if not re.match(CLOCK, line)]
    return f"its process ended with {code}" + (f": {lines[-1]}" if lines else "")
