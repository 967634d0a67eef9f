"""Runs a plan in this process: what is missing, inputs first, each stage once.

A stored stage is claimed, computed from a clean state and committed, by several processes where it
asks for several GPUs; an unstored one is rebuilt when something needs it. A failure becomes a record
and does not stop the other cells. Stopping at any moment loses at most the stage under way, and a
training stage not even that.
Not here: how one stage is computed (`compute`, `processes`), SLURM (`launch`), what it looks like
(`progress`).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness import processes
from harness.compute import Failed, Values, compute, fail, words
from harness.grid import Grid
from harness.plan import Plan, needed, standing_failure
from harness.stage import Stage, closure, listening
from harness.store import Store

POLL_S = 1.0


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
    def end(self, key: str, state: str, words: str) -> None: ...
    def waiting(self, owners: list[str]) -> None: ...


@dataclass
class Outcome:
    """What a run did: keys by what became of them."""

    computed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)


def run(
    grid: Grid, plan: Plan, store: Store, watcher: Watcher, retry_failed: bool = False
) -> Outcome:
    """Compute what the grid's scores still need. Others may run the same grid at the same time.

    Raises BitgridError, before anything is computed, where this machine lacks what a stage needs.
    """
    roots = [stage for cell in grid.cells for stage in cell.scores]
    stages = {stage.key: stage for stage in closure(list(roots))}
    wanted = set(needed(plan, store))
    runner = _Runner(grid.path, plan, store, watcher, Values(store), stages, wanted)
    for key in wanted:
        if retry_failed or not standing_failure(plan.nodes[key], key, store):
            store.forget_failure(key)
            stages[key].preflight()
            processes.check(stages[key])
        else:
            runner.bad[key] = "failed"
    return runner.run([key for key in plan.nodes if key in wanted and stages[key].stored])


@dataclass
class _Runner:
    path: Path
    plan: Plan
    store: Store
    watcher: Watcher
    values: Values
    stages: dict[str, Stage[Any]]
    wanted: set[str]
    bad: dict[str, str] = field(default_factory=dict)  # key -> failed | blocked
    outcome: Outcome = field(default_factory=Outcome)
    users: dict[str, set[str]] = field(default_factory=dict)

    def run(self, pending: list[str]) -> Outcome:
        for key in self.wanted:
            for above in self.stages[key].inputs:
                self.users.setdefault(above.key, set()).add(key)
        while pending:
            left = [key for key in pending if not self._settle(key)]
            if len(left) == len(pending):
                owners = [self.store.claimed(key) for key in left]
                self.watcher.waiting([f"{o['host']}:{o['pid']}" for o in owners if o])
                time.sleep(POLL_S)
            pending = left
        return self.outcome

    def _settle(self, key: str) -> bool:
        """Whether a stored stage is done with: computed here or elsewhere, failed, or blocked."""
        stage = self.stages[key]
        if self.store.has(key):
            self._release(key)
            return True
        above = self.plan.upstream(key)[:-1]
        if self.bad.get(key) == "failed":
            words = "failed before with this code; --retry failed runs it again"
            return self._give_up(key, "failed", words)
        if any(self.bad.get(up) for up in above if up in self.wanted):
            return self._give_up(key, "blocked", "an input failed")
        if any(
            self.stages[up].stored and not self.store.has(up) for up in above if up in self.wanted
        ):
            # An input is being computed elsewhere, or is itself still to come.
            return False
        claim = self.store.claim(key)
        if claim is None:
            return False
        with claim:
            self._compute(stage)
        self._release(key)
        return True

    def _compute(self, stage: Stage[Any]) -> None:
        key, store = stage.key, self.store
        self.watcher.begin(key)
        try:
            if stage.resources.gpus > 1:
                self.values.held.clear()  # the processes need the memory
                _give_back()
                processes.together(stage, self.path, store, self.watcher.step)
            else:
                with listening(self.watcher.step):
                    result = compute(stage, self.values)
                if self.users.get(key):
                    self.values.held[key] = result
        except Failed as error:
            self.bad[error.key] = "failed"
            self._give_up(key, "failed" if error.key == key else "blocked", str(error))
            return
        except Exception as error:
            fail(stage, error, store)
            self._give_up(key, "failed", words(error))
            return
        self.outcome.computed.append(key)
        self.watcher.end(key, "done", "")

    def _release(self, key: str) -> None:
        """Let go of values whose last user is done."""
        for above in self.stages[key].inputs:
            users = self.users.get(above.key, set())
            users.discard(key)
            if not users:
                self.values.held.pop(above.key, None)
                if not above.stored:
                    self._release(above.key)

    def _give_up(self, key: str, state: str, words: str) -> bool:
        self.bad[key] = state
        (self.outcome.failed if state == "failed" else self.outcome.blocked).append(key)
        self.watcher.end(key, state, words)
        self._release(key)
        return True
