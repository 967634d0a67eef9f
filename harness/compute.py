"""Computes one stage: its inputs, a clean state, then a value with its manifest, or a record.

Not here: which stage and when (`run`), several processes for one stage (`processes`, `worker`).
"""

from __future__ import annotations

import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import provenance
from harness.errors import BitgridError
from harness.stage import Stage, description, execute, modules
from harness.store import Store


class Failed(BitgridError):
    """The stage `key`, or an input of it that is rebuilt, failed; its record is in the store."""

    def __init__(self, key: str, words: str) -> None:
        super().__init__(words)
        self.key = key


@dataclass
class Values:
    """Values of stages by key: at hand, in the store, or rebuilt."""

    store: Store
    held: dict[str, Any] = field(default_factory=dict)

    def of(self, stage: Stage[Any]) -> Any:
        """Raises Failed where it had to be rebuilt and could not."""
        if stage.key not in self.held:
            made = self.store.load(stage) if stage.stored else self._rebuilt(stage)
            self.held[stage.key] = made
        return self.held[stage.key]

    def inputs(self, stage: Stage[Any]) -> dict[str, Any]:
        return {above.key: self.of(above) for above in stage.inputs}

    def _rebuilt(self, stage: Stage[Any]) -> Any:
        inputs = self.inputs(stage)
        try:
            with tempfile.TemporaryDirectory() as work:
                return execute(stage, inputs, Path(work))
        except Exception as error:
            fail(stage, error, self.store)
            said = f"{type(stage).__name__} failed: {words(error)}"
            raise Failed(stage.key, said) from error


def compute(stage: Stage[Any], values: Values, keeps: bool = True) -> Any:
    """The value of a stored stage; with `keeps` it is committed to the store."""
    store, inputs = values.store, values.inputs(stage)
    with provenance.measured() as measured:
        result = execute(stage, inputs, store.work(stage.key))
    if keeps:
        facts = {"stage": description(stage), "code": _code(stage), **measured.facts}
        store.commit(stage, result, facts)
    return result


def fail(stage: Stage[Any], error: Exception, store: Store) -> None:
    """Keep the record of a failure."""
    record = {
        "stage": description(stage),
        "code": _code(stage),
        "exception": type(error).__name__,
        "message": words(error),
        "hint": _hint(error),
        "traceback": "".join(traceback.format_exception(error)),
        "when": round(time.time(), 3),
        **provenance.environment(),
    }
    store.fail(stage.key, record)


def words(error: Exception) -> str:
    """An error in one line; one of the project's own needs no class before it."""
    text = str(error).strip() or type(error).__name__
    return (
        text
        if isinstance(error, BitgridError)
        else f"{type(error).__name__}: {text.splitlines()[0]}"
    )


def _code(stage: Stage[Any]) -> str:
    return provenance.code_digest(frozenset(modules(stage)))


def _hint(error: Exception) -> str | None:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out of memory: halve train.micro_batch (the global batch stays), or ask for more"
    return None
