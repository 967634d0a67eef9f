"""Runs a plan, or a job's part of it: what is missing, inputs first, each stage once.

A stored stage is claimed, computed from a clean state and committed, by several processes where it
asks for several GPUs; an unstored one is rebuilt when something needs it. A failure becomes a
record and does not stop the other cells. Stopping at any moment loses at most the stage under way,
and a training stage not even that. An input that turns out to be damaged is computed again first.
Not here: how one stage is computed (`harness.run.compute`, `harness.run.processes`), SLURM
(`harness.cluster`), what it looks like (`harness.run.progress`).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.core.claims import Claim
from harness.core.errors import Damaged, StoreError
from harness.core.scratch import Scratch
from harness.core.stage import Stage, closure, listening
from harness.core.store import Store
from harness.models import device
from harness.run import processes, renewal
from harness.run.compute import Failed, Values, compute, describe_error, fail
from harness.run.plan import Plan
from harness.run.states import needed, standing_failure

POLL_S = 1.0
PROGRESS_S = 5.0


def _give_back() -> None:
    """Return to the device what torch's allocator keeps of values that are gone."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Watcher(Protocol):
    """Told what happens, to show it."""

    def begin(self, key: str) -> None: ...
    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None: ...
    def end(self, key: str, state: str, reason: str) -> None: ...
    def waiting(self, owners: list[str]) -> None: ...
    def note(self, text: str) -> None: ...


@dataclass
class Outcome:
    """What a run did: keys by what became of them."""

    computed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Share:
    """The part of a plan that one job computes; what it needs beside is computed by other jobs."""

    keys: tuple[str, ...]
    halvings: Mapping[str, int] = field(default_factory=dict)  # how often a stage is made leaner
    patience_s: float = 60.0  # how late a file may appear that another host wrote


def run(
    plan: Plan,
    store: Store,
    watcher: Watcher,
    retry_before: float = 0.0,
    share: Share | None = None,
) -> Outcome:
    """Compute what a plan's scores still need. Others may run the same plan at the same time.

    Failures on record before `retry_before` (seconds since the epoch) are run again, and those
    of stages that are not kept in any case: what made them fail may lie outside of the key. Raises
    BitgridError, before anything is computed, where this machine lacks what a stage needs.
    """
    wanted = needed(plan, store, None if share is None else share.keys)
    stages = plan.stages(wanted)
    store.tidy()
    own = {key for key in wanted if share is None or key in share.keys or not stages[key].stored}
    share = share or Share(())
    for key, times in share.halvings.items():
        for _ in range(times):
            stages[key] = stages[key].leaner()
    runner = _Runner(plan, store, watcher, Values(store), stages, set(wanted), own, share)
    for key in wanted:
        stands = stages[key].stored and standing_failure(plan.nodes[key], key, store)
        if stands and not (key in own and stands.get("when", 0.0) < retry_before):
            runner.bad[key] = "failed"
        elif key in own:
            store.forget_failure(key)
            stages[key].preflight()
            processes.check(stages[key])
    return runner.run([key for key in wanted if key in own and stages[key].stored])


@dataclass
class _Progress:
    """Writes how far a stage is into its scratch, for `status` on other machines.

    Raises Outbid where another owner has taken the stage over.
    """

    scratch: Scratch
    written: float = -math.inf
    first: tuple[int, float] | None = (
        None  # what was done, and when, as this attempt began to speak
    )

    def __call__(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        self.first = self.first or (done, time.time())
        now = time.monotonic()
        if now - self.written >= PROGRESS_S:
            self.written = now
            facts = {"done": done, "total": total, "metrics": dict(metrics), "first": self.first}
            self.scratch.require()
            self.scratch.say_progress(facts)


@dataclass
class _Runner:
    plan: Plan
    store: Store
    watcher: Watcher
    values: Values
    stages: dict[str, Stage[Any]]
    wanted: set[str]
    own: set[str]
    share: Share
    bad: dict[str, str] = field(default_factory=dict)  # key -> failed | blocked
    outcome: Outcome = field(default_factory=Outcome)
    missed: dict[str, float] = field(default_factory=dict)  # since when nobody has made an input
    noted: set[str] = field(default_factory=set)
    again: list[str] = field(default_factory=list)  # damaged, and to be computed again

    def run(self, pending: list[str]) -> Outcome:
        self.values.count(self.stages[key] for key in self.own)
        while pending:
            damaged = len(self.again)
            left = [key for key in pending if not self._settle(key)]
            new = self.again[damaged:]
            if len(left) == len(pending) and not new:
                owners = [self.store.claimed(key) for key in left]
                self.watcher.waiting([f"{o['host']}:{o['pid']}" for o in owners if o])
                time.sleep(POLL_S)
            pending = new + left
        return self.outcome

    def _settle(self, key: str) -> bool:
        """Whether a stored stage is done with: computed here or elsewhere, failed, or blocked."""
        stage = self.stages[key]
        if self.store.has(key):
            self.values.release(stage)
            return True
        if self.store.is_arriving(key):
            return False
        above = self.plan.upstream(key)[:-1]
        if self.bad.get(key) == "failed":
            reason = "failed before with this code; --retry failed runs it again"
            return self._give_up(key, "failed", reason)
        lacking = [
            up
            for up in above
            if up in self.wanted and not (self.stages[up].stored and self.store.has(up))
        ]
        if any(self.bad.get(up) for up in lacking):
            reason = "an input failed; --retry failed runs it again"
            return self._give_up(key, "blocked", reason)
        if stored := [up for up in lacking if self.stages[up].stored]:
            # An input is being computed elsewhere, or is itself still to come.
            for up in stored:
                if why := self._hopeless(up):
                    return self._give_up(key, "blocked", why)
            return False
        try:
            claim = self.store.claim(key)
        except StoreError as error:
            return self._give_up(key, "failed", str(error))
        if claim is None:
            return False
        with claim:
            ended = self._compute(stage, claim)
        if ended:
            self.values.release(stage)
        return ended

    def _compute(self, stage: Stage[Any], claim: Claim) -> bool:
        """Whether it was computed or failed; else it is still to come, from here or elsewhere."""
        key = stage.key
        self.watcher.begin(key)
        try:
            scratch = self.store.take_over(claim)
            if self.store.has(key):  # kept just before its owner was outbid
                return False
            self._compute_in(scratch, stage)
        except Damaged as error:
            return self._heal(error, stage)
        except Exception as error:
            if self.store.has(key):  # another owner has kept it, and whatever broke because of that
                return False
            if not claim.stands:
                taken = f"{stage.kind} {key[:8]} was taken over by another process"
                self._note(f"{taken}, and is left to it")
                return False
            return self._record(error, stage)
        self.outcome.computed.append(key)
        self.watcher.end(key, "done", "")
        return True

    def _compute_in(self, scratch: Scratch, stage: Stage[Any]) -> None:
        progress = _Progress(scratch)

        def step(done: int, total: int, metrics: Mapping[str, float]) -> None:
            progress(done, total, metrics)
            self.watcher.step(done, total, metrics)

        if stage.resources.gpus > 1:
            self.values.held.clear()  # the processes need the memory
            _give_back()
            for above in closure([stage]):
                if above.stored and above.key != stage.key and self.store.has(above.key):
                    self.store.check_files(above.key)
            processes.run_together(stage, self.store, scratch, step, self._note)
            return
        for above in stage.inputs:
            # Computing the stage takes it too, and does not make it again.
            if notice := above.notice(self.values.of(above)):
                self._note(notice)
        with listening(step):
            result = compute(stage, self.values, scratch)
        self.values.hold(stage, result, stage.on_host and device().type != "cpu")

    def _record(self, error: Exception, stage: Stage[Any]) -> bool:
        """A failure: kept where it can be, said, and in the way of what needs the value."""
        if isinstance(error, Failed):
            self.bad[error.key] = "failed"
            state = "failed" if error.key == stage.key else "blocked"
            return self._give_up(stage.key, state, str(error))
        if unkept := fail(stage, error, self.store):
            self._note(unkept)
        return self._give_up(stage.key, "failed", describe_error(error))

    def _heal(self, error: Damaged, stage: Stage[Any]) -> bool:
        """Take a damaged input out of the store, to be computed again before `stage`."""
        if error.key in self.again or error.key not in self.plan.nodes:
            return self._record(error, stage)
        if self.store.has(error.key):
            return False  # another runner has computed it again since we read it
        self._note(f"{error}; it is computed again")
        try:
            renewal.take_out(self.store, error.key)
        except StoreError as unmoved:
            return self._record(unmoved, stage)
        lacking = needed(self.plan, self.store, [error.key])
        stages = self.plan.stages(lacking)
        self.stages.update({key: stages[key] for key in stages if key not in self.stages})
        self.wanted |= set(lacking)
        self.own |= set(lacking)
        self.values.count(self.stages[key] for key in lacking)
        self.again += [key for key in lacking if self.stages[key].stored]
        return False

    def _note(self, text: str) -> None:
        """Say it, once however many stages it is true of."""
        if text not in self.noted:
            self.noted.add(text)
            self.watcher.note(text)

    def _hopeless(self, key: str) -> str | None:
        """Why an input that is another job's to compute will not come, if so."""
        if key in self.own:
            return None
        kind = self.plan.nodes[key].kind
        if record := standing_failure(self.plan.nodes[key], key, self.store):
            return f"an input failed: {kind}: {record['message']}"
        if self.store.claimed(key) or self.store.has(key):
            self.missed.pop(key, None)
            return None
        since = self.missed.setdefault(key, time.monotonic())
        if time.monotonic() - since < self.share.patience_s:
            return None
        return f"an input is missing: {kind} {key[:8]}, and nobody is computing it"

    def _give_up(self, key: str, state: str, reason: str) -> bool:
        self.bad[key] = state
        (self.outcome.failed if state == "failed" else self.outcome.blocked).append(key)
        self.watcher.end(key, state, reason)
        self.values.release(self.stages[key])
        return True
