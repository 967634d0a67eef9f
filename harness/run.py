"""Runs a plan in this process: what is missing, inputs first, each stage once.

A stored stage is claimed, computed from a clean state and committed; an unstored one is rebuilt when
something needs it. A failure becomes a record and does not stop the other cells. Stopping at any
moment loses at most the stage under way, and a training stage not even that.
Not here: SLURM (`launch`), what it looks like (`progress`).
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness import provenance
from harness.errors import BitgridError
from harness.grid import Grid
from harness.plan import Plan, needed, standing_failure
from harness.stage import Stage, closure, described, execute, listening
from harness.store import Store

POLL_S = 1.0


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


class InputFailed(BitgridError):
    """A stage was not tried because what it needs could not be computed."""


def run(
    grid: Grid, plan: Plan, store: Store, watcher: Watcher, retry_failed: bool = False
) -> Outcome:
    """Compute what the grid's scores still need. Others may run the same grid at the same time."""
    roots = [stage for cell in grid.cells for stage in cell.scores]
    stages = {stage.key: stage for stage in closure(list(roots))}
    wanted = set(needed(plan, store))
    runner = _Runner(plan, store, watcher, stages, wanted)
    for key in wanted:
        if retry_failed or not standing_failure(plan.nodes[key], key, store):
            store.forget_failure(key)
        else:
            runner.bad[key] = "failed"
    return runner.run([key for key in plan.nodes if key in wanted and stages[key].stored])


@dataclass
class _Runner:
    plan: Plan
    store: Store
    watcher: Watcher
    stages: dict[str, Stage[Any]]
    wanted: set[str]
    bad: dict[str, str] = field(default_factory=dict)  # key -> failed | blocked
    values: dict[str, Any] = field(default_factory=dict)
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
        code = self.plan.nodes[key].code
        try:
            with listening(self.watcher.step):
                inputs = self._inputs(stage)
                with provenance.measured() as measured:
                    result = execute(stage, inputs, store.work(key))
            facts = {"stage": _describe(stage), "code": code, **measured.facts}
            store.commit(stage, result, facts)
        except InputFailed as error:
            self._give_up(key, "blocked", str(error))
            return
        except Exception as error:
            store.fail(key, _record(stage, error, code))
            self._give_up(key, "failed", _words(error))
            return
        if self.users.get(key):
            self.values[key] = result
        self.outcome.computed.append(key)
        self.watcher.end(key, "done", "")

    def _inputs(self, stage: Stage[Any]) -> dict[str, Any]:
        return {above.key: self._value(above) for above in stage.inputs}

    def _value(self, stage: Stage[Any]) -> Any:
        """The value of an input: at hand, in the store, or rebuilt."""
        key = stage.key
        if key in self.bad:
            raise InputFailed(f"{type(stage).__name__} failed")
        if key not in self.values:
            if stage.stored:
                self.values[key] = self.store.load(stage)
            else:
                inputs = self._inputs(stage)
                try:
                    with tempfile.TemporaryDirectory() as work:
                        self.values[key] = execute(stage, inputs, Path(work))
                except Exception as error:
                    self.store.fail(key, _record(stage, error, self.plan.nodes[key].code))
                    self.bad[key] = "failed"
                    raise InputFailed(f"{type(stage).__name__} failed: {_words(error)}") from error
        return self.values[key]

    def _release(self, key: str) -> None:
        """Let go of values whose last user is done."""
        for above in self.stages[key].inputs:
            users = self.users.get(above.key, set())
            users.discard(key)
            if not users:
                self.values.pop(above.key, None)
                if not above.stored:
                    self._release(above.key)

    def _give_up(self, key: str, state: str, words: str) -> bool:
        self.bad[key] = state
        (self.outcome.failed if state == "failed" else self.outcome.blocked).append(key)
        self.watcher.end(key, state, words)
        self._release(key)
        return True


def _describe(stage: Stage[Any]) -> dict[str, Any]:
    """A stage in words for its manifest: class, version, fields, inputs by key."""
    cls = type(stage)
    name = f"{cls.__module__}.{cls.__qualname__}"
    return {"class": name, "version": cls.version, **described(stage, whole=True)}


def _record(stage: Stage[Any], error: Exception, code: str) -> dict[str, Any]:
    return {
        "stage": _describe(stage),
        "code": code,
        "exception": type(error).__name__,
        "message": _words(error),
        "hint": _hint(error),
        "traceback": "".join(traceback.format_exception(error)),
        "when": round(time.time(), 3),
        **provenance.environment(),
    }


def _words(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return (
        text
        if isinstance(error, BitgridError)
        else f"{type(error).__name__}: {text.splitlines()[0]}"
    )


def _hint(error: Exception) -> str | None:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory: halve train.micro_batch (the global batch stays), or ask for more"
    return None
