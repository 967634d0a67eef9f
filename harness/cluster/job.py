"""What one job of a launch does: its share of the grid, with the code and the grid as they were.

Called with (launch folder, index) and nothing else: the stages are made from the launch's plan, and
values go to the store, never through the scheduler. A job that is run again, after a requeue or by
mistake twice, finds what is done and goes on with the rest. Not here: submission
(`harness.cluster.submit`), which stages share a job (`harness.cluster.waves`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from harness.cluster import ends, launches
from harness.cluster.launches import Placed
from harness.core.errors import BitgridError, show_text
from harness.core.secrets import hide_secrets
from harness.core.store import Store
from harness.run import plan as plans
from harness.run.plan import Plan
from harness.run.runner import Share, run

NO_VALUE = ("progress.json", "metrics.jsonl", "processes.log")  # what a restart cannot go on from

_ended: list[int] = []  # the SIGTERMs that came
Kept = Counter[tuple[str, int, int]]  # files by name, size and time of change


@dataclass
class Attempt:
    """This process's run of its job."""

    plan: Plan
    store: Store
    job: Placed
    kept: Kept  # what there was to go on from when it began
    began: float = field(default_factory=time.monotonic)
    running: str = ""  # the stage under way
    done: tuple[int, int] = (0, 0)  # its steps, and all of them

    def is_late(self) -> bool:
        """Whether what ends it can be its time limit."""
        return time.monotonic() - self.began >= 0.5 * 3600 * self.job.hours

    def list_kept(self) -> Kept:
        """What the job's stages could go on from; an owner's folder has another name each time."""
        return _list_kept(self.store, self.job.keys)


_attempt: Attempt | None = None


def _list_kept(store: Store, keys: Collection[str]) -> Kept:
    kept: Kept = Counter()
    for key in keys:
        for path in (store.path(key) / "manifest.json", *(store.root / "work" / key).rglob("*")):
            with contextlib.suppress(OSError):
                if path.name not in NO_VALUE and path.is_file():
                    seen = path.stat()
                    kept[path.name, seen.st_size, seen.st_mtime_ns] += 1
    return kept


def is_stuck() -> bool:
    """Whether this job, at its time limit, would come no further by being run again.

    That is where it finished no stage and wrote no checkpoint. At a preemption nothing is stuck.
    """
    at = _attempt
    return at is not None and at.running != "" and at.is_late() and not at.list_kept() - at.kept


def say_limit() -> None:
    """Why a job ends at its time limit and is not queued again, for `bitgrid status`."""
    at = _attempt
    if at is None:
        return
    node = at.plan.nodes.get(at.running)
    kind = node.kind if node else "the stage"
    step = f" at step {at.done[0]}/{at.done[1]}" if at.done[1] else ""
    asked = f"time limit of {at.job.hours:.3g} h, met by {kind}{step}"
    if not at.is_late():
        _say("ended: preempted, and SLURM takes it not back; launch goes on from what is kept")
    elif is_stuck():
        _say(f"ended: {asked}, {ends.NOTHING_KEPT}: give {kind} more hours in the profile")
    else:
        _say(f"ended: {asked}, as often as `requeues` allows; launch goes on from what is kept")


def work(folder: Path, index: int) -> dict[str, int]:
    """Compute the stages of job `index`; counts of what became of them.

    Raises BitgridError where one failed or lacked an input, so that the scheduler knows.
    """
    signal.signal(signal.SIGTERM, lambda number, _: _ended.append(number))
    began, launch = time.time(), launches.read(folder)
    job, store = launch.jobs[index], Store(Path(launch.store))
    plan = plans.read(folder / launches.PLAN)
    share = Share(job.keys, launch.halvings, launch.visible_s)
    attempt = os.environ.get("SLURM_RESTART_COUNT", "0")
    _say(f"job {index} of {launch.id}, attempt {attempt}: {len(job.keys)} stages")
    global _attempt
    _attempt = Attempt(plan, store, job, _list_kept(store, job.keys))
    outcome = run(plan, store, Log(_attempt), launch.created, share)
    if not (outcome.failed or outcome.blocked):
        return {"computed": len(outcome.computed)}
    if _ended:
        # What breaks while the scheduler ends the job, as processes that it kills first, is no
        # failure of the stage: the job runs again, or was cancelled. Some run on for a grace time.
        for key in outcome.failed:
            if (store.failure(key) or {}).get("when", 0.0) >= began:
                store.forget_failure(key)
        while True:
            time.sleep(1)
    raise BitgridError(
        f"{len(outcome.failed)} stages failed, {len(outcome.blocked)} lack an input; "
        "bitgrid status says which"
    )


@dataclass
class Log:
    """A line a stage in the job's log."""

    attempt: Attempt
    began: float = 0.0
    shown: float = 0.0

    def begin(self, key: str) -> None:
        self.attempt.running, self.attempt.done = key, (0, 0)
        self.began = self.shown = time.monotonic()
        _say(f"begin {self._name(key)}")

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.attempt.done = (done, total)
        if time.monotonic() - self.shown > 30:
            self.shown = time.monotonic()
            numbers = "".join(f" {name} {number:.4g}" for name, number in metrics.items())
            _say(f"step {done}/{total}{numbers}")

    def end(self, key: str, state: str, reason: str) -> None:
        took = f" {time.monotonic() - self.began:.1f} s" if state == "done" else f": {reason}"
        _say(f"{state} {self._name(key)}{took}")

    def waiting(self, owners: list[str]) -> None:
        if time.monotonic() - self.shown > 30:
            self.shown = time.monotonic()
            _say(f"waiting for {', '.join(sorted(set(owners))) or 'an input'}")

    def note(self, text: str) -> None:
        _say(f"note: {text}")

    def _name(self, key: str) -> str:
        node = self.attempt.plan.nodes[key]
        return f"{node.kind} {node.title} ({key[:8]})"


def _say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), hide_secrets(show_text(text)), flush=True, file=sys.stdout)
