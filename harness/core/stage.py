"""The one idea: a stage is a pure computation whose fields are its identity.

    @dataclass(frozen=True)
    class Perplexity(Stage[float]):
        kind: ClassVar[str] = "perplexity"
        model: Input[Model]                  # a stage here before the run, its value inside `run`
        window: int = 2048

        def run(self, work: Path) -> float:
            model = value(self.model)
            ...

A cell of a grid is a graph of such stages. Everything else follows: a stage's key chains its kind,
its version, its fields and its inputs' keys, so that equal work has an equal key and is done once.
The kind is a declared name, no class's, module's or file's: code may be renamed and moved.

In this file: `Stage`, keys, inputs, stages from their descriptions, and `report`. Not here: running
a stage (`harness.core.execution`), where values lie (`harness.core.store`), what order stages run
in (`harness.run.plan`, `harness.run.runner`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Enum
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar, cast

from harness.core.component import Component
from harness.core.errors import BitgridError, CollisionError
from harness.core.frozen import FrozenMapping
from harness.core.hints import find_items, find_values, list_choices
from harness.core.parts import SCALARS, list_keyed, list_parts
from harness.core.reads import Read

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """What a job that runs a stage asks for. Not part of the key: it does not change the value."""

    gpus: int = 0  # of all nodes together
    memory_gib: float = 4.0  # of a node
    hours: float = 1.0
    disk_gib: float = 0.0  # of the store, where the value is large: at most
    nodes: int = 1


@dataclass(frozen=True)
class Stage(Generic[T]):
    """A pure computation; its fields are its identity, its Stage fields its inputs.

    A field holds JSON scalars, tuples, frozen mappings, frozen dataclasses (components) or other
    stages. A field named `seed` seeds the run (0 without one); it is never derived from the key, so
    that data order is paired between cells that share a seed. Fields that are `incidental` stay out
    of the key, and those that are `added` as long as they have their default.

    A subclass declares its `kind`; BitgridError where it does not, or where another class has it.
    """

    # The stage's name in keys, plans, profiles: never changed, never used twice.
    kind: ClassVar[str]
    version: ClassVar[int] = 1  # bump by hand when the result changes
    stored: ClassVar[bool] = True  # False: cheap, rebuilt in memory, never written
    on_host: ClassVar[bool] = False  # True: `run` moves what it needs of its inputs to the device

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _declare(cls)

    @property
    def resources(self) -> Resources:
        """What a job that runs this stage asks for."""
        return Resources()

    @property
    def subject(self) -> str:
        """Who computes, as a message calls it."""
        return f"stage {self.kind}"

    def uses(self) -> tuple[Callable[..., Any] | type, ...]:
        """Classes and functions that `run` finds by a name in its fields rather than by an import.

        Their code is code behind the value, as that of the stage's class and components is.
        """
        return ()

    def leaner(self) -> Self:
        """The same value in less device memory, where that can be: for a retry after it ran out."""
        return self

    def preflight(self) -> None:
        """Raise BitgridError where this machine lacks what `run` needs, before it computes."""

    def reads(self) -> tuple[Read, ...]:
        """What the key rests on outside of the graph: files, data sets, models of a hub."""
        return ()

    def notice(self, result: T) -> str | None:
        """What a user should know of the value, in words; None where there is nothing to say."""
        return None

    def is_mapped(self, result: T) -> bool:
        """Whether a value that is not kept lies in files: who makes it again shares the memory."""
        return False

    def run(self, work: Path) -> T:
        """Compute the value. Inputs are already values; `work` survives a kill and a requeue.

        Where `resources` ask for several GPUs, as many processes run it together
        (`harness.run.worker`), with torch.distributed set up; the value is what the first returns.
        """
        raise NotImplementedError

    @cached_property
    def key(self) -> str:
        """24 hex digits over kind, version, fields and upstream keys; equal in any process."""
        text = to_canonical_json([self.kind, self.version, describe_fields(self)])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @cached_property
    def inputs(self) -> tuple[Stage[Any], ...]:
        """The stages among the fields, in field order, each once."""
        return _inputs(self)

    def description(self) -> dict[str, Any]:
        """The stage as JSON: kind, version, every field (incidental ones too), inputs by key."""
        return {"kind": self.kind, "version": self.version, **describe_fields(self, whole=True)}

    @staticmethod
    def from_description(
        description: Mapping[str, Any], inputs: Mapping[str, Stage[Any]]
    ) -> Stage[Any]:
        """The stage that gave `description`; `inputs` has the stages it names, by key.

        The modules that define its kind and components must have been imported. Raises BitgridError
        where this code does not know the kind, its version or a field.
        """
        return _rebuilt(description, inputs)

    def __str__(self) -> str:
        return f"{self.kind}:{self.key[:8]}"


def incidental(default: Any) -> Any:
    """A dataclass field that is no part of a key: it says how a value is computed, not which one.

    For what changes memory or speed, and the value by float rounding at most: micro-batch, devices.
    """
    return dataclasses.field(default=default, metadata={"keyed": lambda held: False})


def added(default: Any) -> Any:
    """A dataclass field that came later than values of its class: no part of a key at `default`,
    which stands for what the code did before. Never change it: a key would mean two things."""
    return dataclasses.field(default=default, metadata={"keyed": lambda held: held != default})


Input: TypeAlias = Stage[T] | T
"""A field that is a stage when the graph is built and that stage's value inside `run`."""


def value(bound: Input[T]) -> T:
    """The value of an input inside `run`. Raises TypeError where no engine has put it there."""
    if isinstance(bound, Stage):
        raise TypeError(f"{bound} is not resolved: stages are run by the engine, not by hand")
    return bound


def to_canonical_json(thing: object) -> str:
    """JSON with one spelling for one thing: sorted keys, no spaces, no NaN."""
    return json.dumps(thing, sort_keys=True, separators=(",", ":"), allow_nan=False)


def describe_fields(thing: Any, whole: bool = False) -> dict[str, Any]:
    """The fields of a stage or component as JSON; with `whole` the incidental ones too."""
    cls: Any = type(thing)
    held = ((name, getattr(thing, name), is_keyed) for name, is_keyed in list_keyed(cls))
    return {
        name: part if type(part) in SCALARS else identify(part, whole)
        for name, part, is_keyed in held
        if whole or is_keyed is None or is_keyed(part)
    }


def identify(thing: object, whole: bool = False) -> Any:
    """What of a field goes into the key, as JSON; with `whole` also what does not.

    Raises TypeError for what has no stable identity.
    """
    if isinstance(thing, Stage):
        return {"stage": thing.key}
    if isinstance(thing, Enum):
        return identify(thing.value, whole)
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, tuple | list):
        return [identify(item, whole) for item in thing]
    if isinstance(thing, FrozenMapping):  # in its order, which a JSON object would lose
        return {"mapping": [[name, identify(item, whole)] for name, item in thing.items()]}
    if isinstance(thing, Mapping):
        return {str(name): identify(item, whole) for name, item in thing.items()}
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        declared = thing.declare_identity() if isinstance(thing, Component) else {}
        return {**declared, **describe_fields(thing, whole)}
    raise TypeError(
        f"{type(thing).__name__} cannot be a field of a stage: it has no stable identity"
    )


def read_component(described: Mapping[str, Any]) -> Any:
    """The component that `identify(…, whole=True)` gave; its module must have been imported.

    Raises BitgridError where this code does not know its name or a field.
    """
    return _field_value(Any, described, {})


def find_code(stage: Stage[Any]) -> tuple[Callable[..., Any] | type, ...]:
    """What computes a stage: its class, its components' classes and what it `uses`.

    Of its inputs those too that are not stored: they are made again whenever the stage is computed,
    so their code is behind its value. The code of a stored input is behind that input's own.
    """
    classes: dict[Any, None] = {type(stage): None}

    def search(thing: object) -> None:
        for child in list_parts(thing):
            if not isinstance(child, Stage):
                if dataclasses.is_dataclass(child):
                    classes[type(child)] = None
                search(child)

    search(stage)
    for above in stage.inputs:
        if not above.stored:
            classes |= dict.fromkeys(find_code(above))
    return (*classes, *stage.uses())


def closure(roots: list[Stage[Any]]) -> list[Stage[Any]]:
    """Every stage that the roots need, inputs before users, each key once, in the roots' order."""
    done: dict[str, Stage[Any]] = {}

    def visit(stage: Stage[Any]) -> None:
        if stage.key not in done:
            for upstream in stage.inputs:
                visit(upstream)
            done.setdefault(stage.key, stage)

    for root in roots:
        visit(root)
    return list(done.values())


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


_kinds: dict[str, type[Stage[Any]]] = {}


def kinds() -> Mapping[str, type[Stage[Any]]]:
    """All kinds of stages that are known, of loaded methods too: kind -> class."""
    return types.MappingProxyType(_kinds)


def _declare(cls: type[Stage[Any]]) -> None:
    kind = vars(cls).get("kind")
    if not isinstance(kind, str):
        raise BitgridError(
            f"stage class {cls.__qualname__} ({_file_of(cls)}) declares no kind: "
            "add  kind: ClassVar[str] = 'a-name-of-its-own'"
        )
    other = _kinds.get(kind)
    if other is not None and _place_of(other) != _place_of(cls):
        raise CollisionError(
            f"two classes of stages have the kind {kind!r}: {other.__qualname__} in "
            f"{_file_of(other)}, {cls.__qualname__} in {_file_of(cls)}"
        )
    _kinds[kind] = cls


def _place_of(cls: type) -> tuple[str, str]:
    """Where a class is defined: the same for one that is defined again, as by a reload."""
    return _file_of(cls), cls.__qualname__


def _file_of(cls: type) -> str:
    try:
        return inspect.getfile(cls)
    except (OSError, TypeError):  # defined at a prompt
        return cls.__module__


def _rebuilt(description: Mapping[str, Any], inputs: Mapping[str, Stage[Any]]) -> Stage[Any]:
    fields = dict(description)
    kind, version = fields.pop("kind"), fields.pop("version")
    cls = _kinds.get(kind)
    if cls is None:
        raise BitgridError(f"stage kind {kind!r} is unknown: the method that has it is not here")
    if cls.version != version:
        raise BitgridError(f"stage {kind!r} has version {cls.version} here, not {version}")
    return cast(Stage[Any], _remade(cls, fields, inputs))


def _remade(cls: type, fields: Mapping[str, Any], inputs: Mapping[str, Stage[Any]]) -> Any:
    """A dataclass from its fields as JSON."""
    hints = _type_hints(cls)
    unknown = fields.keys() - {field.name for field in dataclasses.fields(cls)}
    if unknown:
        raise BitgridError(f"{cls.__name__} has no field {min(unknown)!r} here: the code differs")
    return cls(**{n: _field_value(hints.get(n), held, inputs) for n, held in fields.items()})


def _field_value(hint: Any, held: Any, inputs: Mapping[str, Stage[Any]]) -> Any:
    """A field of type `hint` from its JSON: what `identity` made of it, undone."""
    if isinstance(held, list):
        parts = [_field_value(find_items(hint, i), each, inputs) for i, each in enumerate(held)]
        return parts if typing.get_origin(hint) is list else tuple(parts)
    choices = list(list_choices(hint))
    if not isinstance(held, dict):
        enums = [each for each in choices if isinstance(each, type) and issubclass(each, Enum)]
        return enums[0](held) if enums and held is not None else held
    if set(held) == {"stage"}:
        return inputs[held["stage"]]
    if set(held) == {"mapping"}:
        kind, entries = find_values(hint), held["mapping"]
        return FrozenMapping((key, _field_value(kind, part, inputs)) for key, part in entries)
    if "component" in held:
        named = {key: part for key, part in held.items() if key not in ("component", "revision")}
        made = _remade(Component.called(held["component"]), named, inputs)
        if made.revision != (kept := held.get("revision", 1)):
            raise BitgridError(f"{held['component']} is revision {made.revision} here, not {kept}")
        return made
    plain = [each for each in choices if _is_plain(each)]
    return _remade(plain[0], held, inputs) if plain else held


def _is_plain(hint: Any) -> bool:
    """Whether a type is a dataclass that is described by its fields alone."""
    plain = isinstance(hint, type) and dataclasses.is_dataclass(hint)
    return plain and not issubclass(hint, Stage | Component)


@cache
def _type_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _inputs(stage: Stage[Any]) -> tuple[Stage[Any], ...]:
    inputs: dict[str, Stage[Any]] = {}

    def search(thing: object) -> None:
        if isinstance(thing, Stage):
            inputs.setdefault(thing.key, thing)
        else:
            for child in list_parts(thing):
                search(child)

    for child in list_parts(stage):
        search(child)
    return tuple(inputs.values())
