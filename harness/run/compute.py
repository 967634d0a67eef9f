"""Computes one stage: its inputs, a clean state, then a value with its manifest, or a record.

Not here: which stage and when (`run`), several processes for one stage (`processes`, `worker`).
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core import provenance
from harness.core.definitions import reach
from harness.core.errors import BitgridError, StoreError, ValueChanged, show_text
from harness.core.execution import execute
from harness.core.scratch import Scratch
from harness.core.secrets import hide_secrets
from harness.core.stage import Stage, find_code
from harness.core.store import Store
from harness.models import device
from harness.models.devices import is_kept_on_host, keeping_on_host


class Failed(BitgridError):
    """The stage `key`, or an input of it that is rebuilt, failed; its record is in the store."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass
class Values:
    """Values of stages by key: at hand, in the store, or rebuilt.

    `users`: by key, the stages still to come that take its value. A value stays at hand while one
    of them lacks it; what a rebuilt value was made from is let go unless another one does. A value
    whose users nobody counts stays.
    """

    store: Store
    users: dict[str, dict[str, Stage[Any]]] = field(default_factory=dict)
    held: dict[str, Any] = field(default_factory=dict)
    on_host: set[str] = field(default_factory=set)  # of those at hand, what a GPU does not have
    check: bool = True  # files against their digests: see `Store.load`

    def count(self, stages: Iterable[Stage[Any]]) -> None:
        """Stages that are to be computed or rebuilt here are users of their inputs."""
        for stage in stages:
            self.users.setdefault(stage.key, {})
            for above in stage.inputs:
                self.users.setdefault(above.key, {})[stage.key] = stage

    def of(self, stage: Stage[Any]) -> Any:
        """Raises Failed where it had to be rebuilt and could not."""
        if stage.key in self.held and (is_kept_on_host() or stage.key not in self.on_host):
            return self.held[stage.key]
        result = self.store.load(stage, check=self.check) if stage.stored else self._rebuilt(stage)
        self.hold(stage, result, is_kept_on_host())
        return result

    def hold(self, stage: Stage[Any], result: Any, on_host: bool = False) -> None:
        """Have a value at hand, if somebody will take it."""
        self.held[stage.key] = result
        (self.on_host.add if on_host else self.on_host.discard)(stage.key)
        self._tidy()

    def release(self, stage: Stage[Any]) -> None:
        """A stage is computed or given up, and takes no more values."""
        for above in stage.inputs:
            self.users.get(above.key, {}).pop(stage.key, None)
        self._tidy()

    def _tidy(self) -> None:
        for key in [key for key in self.held if key in self.users and not self._lacked(key)]:
            del self.held[key]

    def _lacked(self, key: str) -> bool:
        """Whether a stage will take the value: one that is kept, or that is to be rebuilt first."""
        return any(
            user.stored or (user.key not in self.held and self._lacked(user.key))
            for user in self.users.get(key, {}).values()
        )

    def inputs(self, stage: Stage[Any]) -> dict[str, Any]:
        """A stage that takes what it needs to the device finds them on the host."""
        with keeping_on_host(stage.on_host or is_kept_on_host()):
            return {above.key: self.of(above) for above in stage.inputs}

    def drop(self) -> None:
        """Let go of all that is at hand: values share tensors, and one of them was changed."""
        self.held.clear()

    def _rebuilt(self, stage: Stage[Any]) -> Any:
        inputs = self.inputs(stage)
        try:
            with tempfile.TemporaryDirectory() as work:
                return execute(stage, inputs, Path(work))
        except Exception as error:
            if isinstance(error, ValueChanged):
                self.drop()
            fail(stage, error, self.store)
            message = f"{stage.kind} failed: {describe_error(error)}"
            raise Failed(stage.key, message) from error


def compute(
    stage: Stage[Any], values: Values, scratch: Scratch | None = None, keeps: bool = True
) -> Any:
    """The value of a stored stage; with `keeps` it is committed to the store.

    `scratch`: its owner's; without one, nobody else computes the stage. Raises Outbid where another
    owner has taken it over.
    """
    store, inputs = values.store, values.inputs(stage)
    scratch = scratch or store.open_scratch(stage.key)
    with provenance.measure(device()) as measured:
        try:
            result = execute(stage, inputs, scratch.path)
        except ValueChanged:
            values.drop()
            raise
    if keeps:
        code = reach(find_code(stage))
        facts = {"stage": stage.description(), **provenance.describe_code(code), **measured.facts}
        store.commit(stage, result, facts, code.definitions, scratch)
    return result


def fail(stage: Stage[Any], error: Exception, store: Store) -> str | None:
    """Keep the record of a failure; why it could not be kept, if so."""
    record = {
        "stage": stage.description(),
        **provenance.describe_code(reach(find_code(stage))),
        "exception": type(error).__name__,
        "message": describe_error(error),
        "hint": _hint(error),
        "traceback": hide_secrets("".join(traceback.format_exception(error))),
        "when": round(time.time(), 3),
        **provenance.describe_machine(device()),
    }
    try:
        store.fail(stage.key, record)
    except StoreError as unkept:
        return f"failures cannot be recorded: {unkept}"
    return None


def describe_error(error: Exception) -> str:
    """An error in one line; one of the project's own needs no class before it."""
    text = str(error).strip() or type(error).__name__
    if not isinstance(error, BitgridError):
        text = f"{type(error).__name__}: {text.splitlines()[0]}"
    return hide_secrets(show_text(text))


def _hint(error: Exception) -> str | None:
    import torch

    # Of the host torch says it by a RuntimeError.
    refused = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if refused or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory: halve train.micro_batch (the global batch stays), or ask for more"
    return None
