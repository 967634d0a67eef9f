"""Running one stage: inputs first, then a clean state, then `run`.

Not here: which stage runs and when (`harness.run.runner`), what is kept (`harness.core.store`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from harness.core.errors import BitgridError, ValueChanged
from harness.core.fingerprint import (
    find_change,
    fingerprint,
    forget_fingerprint,
    recall_fingerprint,
)
from harness.core.frozen import FrozenMapping
from harness.core.stage import Stage

T = TypeVar("T")


def execute(stage: Stage[T], values: Mapping[str, Any], work: Path) -> T:
    """Run one stage: inputs first (`values` by key), then a clean state, then `run`.

    The order matters. If a stage loaded its own input, the load would move the random generators
    and cells of different history would see different data. Inputs are shared by whoever takes
    them: ValueChanged, naming the stage and the part, where `run` changed one. What a value says of
    itself is checked (`check`, where it has one) before anybody else sees it.
    """
    bound = cast(Stage[T], _bind(stage, values))
    seed = getattr(stage, "seed", None) or 0
    with clean_state(int(seed)), _unchanged(stage, values):
        result = bound.run(work)
    if hasattr(result, "check"):
        try:
            result.check()
        except BitgridError as error:
            error.args = (f"{stage.subject}: its result is not sound: {error}",)
            raise
    return result


@contextlib.contextmanager
def _unchanged(stage: Stage[Any], values: Mapping[str, Any]) -> Iterator[None]:
    """Raises ValueChanged where an input of the stage is not the same afterwards."""
    inputs = [values[above.key] for above in stage.inputs]
    before = [recall_fingerprint(each) for each in inputs]

    def check() -> None:
        for given, known in zip(inputs, before, strict=True):
            if (part := find_change(known, fingerprint(given))) is not None:
                forget_fingerprint(given)
                raise ValueChanged(
                    f"{stage.subject} changed {part} of the {type(given).__name__.lower()} that it "
                    "was given, which others share; work on a copy (a model's is `model.fork()`) "
                    "and give it new tensors"
                )

    try:
        yield
    except Exception:  # what ends the process (an interrupt, an exit) waits for no check
        check()
        raise
    check()


@contextlib.contextmanager
def clean_state(seed: int) -> Iterator[None]:
    """Python, NumPy and torch generators seeded, gradients on, float32 the default dtype."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def _bind(thing: Any, values: Mapping[str, Any], top: bool = True) -> Any:
    """`thing` with every stage inside it replaced by its value."""
    if isinstance(thing, Stage) and not top:
        return values[thing.key]
    if isinstance(thing, tuple | list):
        return type(thing)(_bind(item, values, top=False) for item in thing)
    if isinstance(thing, FrozenMapping):
        return FrozenMapping({key: _bind(part, values, top=False) for key, part in thing.items()})
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        parts = {
            f.name: _bind(getattr(thing, f.name), values, top=False)
            for f in dataclasses.fields(thing)
            if f.init
        }
        unchanged = all(parts[name] is getattr(thing, name) for name in parts)
        return thing if unchanged else dataclasses.replace(thing, **parts)
    return thing
