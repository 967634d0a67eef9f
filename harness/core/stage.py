"""The one idea: a stage is a pure computation whose fields are its identity.

    @dataclass(frozen=True)
    class Perplexity(Stage[float]):
        model: Input[Model]                  # a stage here before the run, its value inside `run`
        window: int = 2048

        def run(self, work: Path) -> float:
            model = value(self.model)
            ...

A cell of a grid is a graph of such stages. Everything else follows: a stage's key chains its class,
its version, its fields and its inputs' keys, so that equal work has an equal key and is done once.

In this file: `Stage`, keys, inputs, running one stage from a clean state, and `report`, by which a
running stage says how far it is. Not here: where values lie (`store`), what order stages run in
(`plan`, `run`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar, cast

from harness.core.reads import Read

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """What a job that runs a stage asks for. Not part of the key: it does not change the value."""

    gpus: int = 0
    memory_gib: float = 4.0
    hours: float = 1.0


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A pure computation; its fields are its identity, its Stage fields its inputs.

    A field holds JSON scalars, tuples, frozen dataclasses (components) or other stages. A field
    named `seed` seeds the run (0 without one); it is never derived from the key, so that data order
    is paired between cells that share a seed. Fields that are `incidental` stay out of the key.
    """

    version: ClassVar[int] = 1  # bump by hand when the result changes
    stored: ClassVar[bool] = True  # False: cheap, rebuilt in memory, never written

    @property
    def resources(self) -> Resources:
        """What a job that runs this stage asks for."""
        return Resources()

    def leaner(self) -> Self:
        """The same value in less device memory, where that can be: for a retry after it ran out."""
        return self

    def preflight(self) -> None:
        """Raise BitgridError where this machine lacks what `run` needs: before anything is computed."""
        return

    def reads(self) -> tuple[Read, ...]:
        """What lies outside of the graph that the key rests on: files, data sets, models of a hub."""
        return ()

    def notice(self, made: T) -> str | None:
        """What a user should know of the value that was made, in words; None where there is nothing."""
        return None

    def is_mapped(self, made: T) -> bool:
        """Whether a value that is not kept lies in files: who makes it again shares the memory."""
        return False

    def run(self, work: Path) -> T:
        """Compute the value. Inputs are already values; `work` survives a kill and a requeue.

        Where `resources` ask for several GPUs, as many processes run it together (`worker`), with
        torch.distributed set up; the value is what the first of them returns.
        """
        raise NotImplementedError

    @cached_property
    def key(self) -> str:
        """24 hex digits over class, version, fields and upstream keys; equal in any process."""
        text = canonical([_class_name(type(self)), self.version, described(self)])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def inputs(self) -> tuple[Stage[Any], ...]:
        """The stages among the fields, in field order, each once."""
        return _inputs(self)

    def __str__(self) -> str:
        return f"{type(self).__name__}:{self.key[:8]}"


def incidental(default: Any) -> Any:
    """A dataclass field that is no part of a key: it says how a value is computed, not which one.

    For what changes memory or speed, and the value by float rounding at most: micro-batch, devices.
    """
    return dataclasses.field(default=default, metadata={"incidental": True})


Input: TypeAlias = Stage[T] | T
"""A field that is a stage when the graph is built and that stage's value inside `run`."""


def value(bound: Input[T]) -> T:
    """The value of an input inside `run`. Raises TypeError where no engine has put it there."""
    if isinstance(bound, Stage):
        raise TypeError(f"{bound} is not resolved: stages are run by the engine, not by hand")
    return bound


def canonical(thing: object) -> str:
    """JSON with one spelling for one thing: sorted keys, no spaces, no NaN."""
    return json.dumps(thing, sort_keys=True, separators=(",", ":"), allow_nan=False)


def described(thing: Any, whole: bool = False) -> dict[str, Any]:
    """The fields of a stage or component as JSON; with `whole` the incidental ones too."""
    return {
        f.name: identity(getattr(thing, f.name), whole)
        for f in dataclasses.fields(thing)
        if whole or not f.metadata.get("incidental")
    }


def description(stage: Stage[Any]) -> dict[str, Any]:
    """A stage as JSON for a reader: class, version, every field, inputs by key."""
    return {
        "class": _class_name(type(stage)),
        "version": stage.version,
        **described(stage, whole=True),
    }


def identity(thing: object, whole: bool = False) -> Any:
    """What of a field goes into the key, as JSON; with `whole` also what does not.

    Raises TypeError for what has no stable identity.
    """
    if isinstance(thing, Stage):
        return {"stage": thing.key}
    if isinstance(thing, Enum):
        return identity(thing.value, whole)
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, tuple | list):
        return [identity(item, whole) for item in thing]
    if isinstance(thing, Mapping):
        return {str(name): identity(item, whole) for name, item in thing.items()}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return {"class": _class_name(type(thing)), **described(thing, whole)}
    raise TypeError(
        f"{type(thing).__name__} cannot be a field of a stage: it has no stable identity"
    )


def modules(stage: Stage[Any]) -> set[str]:
    """The modules whose code computes a stage: its class's and its components', not its inputs'."""
    found = {type(stage).__module__}

    def search(thing: object) -> None:
        for child in _children(thing):
            if not isinstance(child, Stage):
                if dataclasses.is_dataclass(child):
                    found.add(type(child).__module__)
                search(child)

    search(stage)
    return found


def closure(roots: list[Stage[Any]]) -> list[Stage[Any]]:
    """Every stage that the roots need, inputs before users, each key once, the roots' order kept."""
    done: dict[str, Stage[Any]] = {}

    def visit(stage: Stage[Any]) -> None:
        if stage.key not in done:
            for upstream in stage.inputs:
                visit(upstream)
            done.setdefault(stage.key, stage)

    for root in roots:
        visit(root)
    return list(done.values())


def execute(stage: Stage[T], values: Mapping[str, Any], work: Path) -> T:
    """Run one stage: inputs first (`values` by key), then a clean state, then `run`.

    The order matters. If a stage loaded its own input, the load would move the random generators
    and cells of different history would see different data.
    """
    bound = cast(Stage[T], _bind(stage, values))
    seed = getattr(stage, "seed", 0)
    with clean_state(int(seed)):
        return bound.run(work)


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


Reporter: TypeAlias = Callable[[int, int, Mapping[str, float]], None]
_reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)


def report(done: int, total: int, **metrics: float) -> None:
    """Said by a running stage: `done` of `total` units, with metrics to show (loss=2.31)."""
    listener = _reporter.get()
    if listener is not None:
        listener(done, total, metrics)


@contextlib.contextmanager
def listening(reporter: Reporter) -> Iterator[None]:
    """Every `report` inside goes to `reporter`."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


def kinds() -> set[str]:
    """Names of all kinds of stages that are known, of loaded methods too."""

    def below(cls: type) -> Iterator[type]:
        children: list[type] = cls.__subclasses__()
        for child in children:
            yield child
            yield from below(child)

    return {cls.__name__ for cls in below(Stage)}


def _class_name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _children(thing: object) -> Iterator[object]:
    if isinstance(thing, tuple | list):
        yield from thing
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from (getattr(thing, f.name) for f in dataclasses.fields(thing))


def _inputs(stage: Stage[Any]) -> tuple[Stage[Any], ...]:
    found: dict[str, Stage[Any]] = {}

    def search(thing: object) -> None:
        if isinstance(thing, Stage):
            found.setdefault(thing.key, thing)
        else:
            for child in _children(thing):
                search(child)

    for child in _children(stage):
        search(child)
    return tuple(found.values())


def _bind(thing: Any, values: Mapping[str, Any], top: bool = True) -> Any:
    """`thing` with every stage inside it replaced by its value."""
    if isinstance(thing, Stage) and not top:
        return values[thing.key]
    if isinstance(thing, tuple | list):
        return type(thing)(_bind(item, values, top=False) for item in thing)
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        parts = {
            f.name: _bind(getattr(thing, f.name), values, top=False)
            for f in dataclasses.fields(thing)
            if f.init
        }
        unchanged = all(parts[name] is getattr(thing, name) for name in parts)
        return thing if unchanged else dataclasses.replace(thing, **parts)
    return thing
