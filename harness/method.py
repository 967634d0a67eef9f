"""A method: from a full-precision model to a quantised one, and the registry that finds them.

A new method is one file in `methods/` (or any package with an entry point in the group
`bitgrid.methods`):

    @dataclass(frozen=True)
    class MyMethod(Method):
        format: Format = IntAsym(bits=2)

        def apply(self, model: Model, calibration: Tokens | None) -> Model:
            ...

    register("my-method", MyMethod(), title="My method", about="what it does (paper)")

Its fields are what a grid may set, vary and compare. In this file: `Method`, `Component`, `register`,
`discover`, `configure`. Not here: any method; the grid's file format (`grid`).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
import sys
import typing
from abc import ABC
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic

from harness.config.misfit import misfit, said
from harness.core.errors import BitgridError, GridError, SettingError, nearest
from harness.core.stage import Input, Resources, Stage, value
from harness.data.text import Tokens
from harness.models.model import Model, host_gib

C = TypeVar("C")


class Component(ABC):
    """A part of a method that a grid chooses by name: a format, an init, an objective, a data source.

    A subclass is a frozen dataclass with a class attribute `name`; defining it makes it selectable.
    """

    name: ClassVar[str]

    @classmethod
    def choices(cls) -> dict[str, type[Component]]:
        """Every named subclass, by name."""
        found: dict[str, type[Component]] = {}
        for child in cls.__subclasses__():
            if "name" in vars(child):
                found[child.name] = child
            found |= child.choices()
        return found

    @classmethod
    def family(cls) -> type[Component]:
        """The kind of part that this is: the class right under Component."""
        return next(kind for kind in cls.__mro__ if Component in kind.__bases__)


@dataclass(frozen=True)
class Step:
    """A model on a method's way, as it was and rounded as if this were the end.

    `origin` has the weights that `before` was made from: the full-precision model's, or rescaled
    ones where weights no longer mean the same.
    """

    name: str
    origin: Stage[Model]
    before: Stage[Model]
    after: Stage[Model]


class Method:
    """From a full-precision model to a quantised one. Subclasses are frozen dataclasses."""

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        """The graph from `base` to the quantised model. By default one stage that calls `apply`."""
        return Apply(self, base, self.calibration(base), seed)

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        """Raise a BitgridError where a layer, given as (O, I) by name, cannot be quantised so."""

    def calibration(self, base: Stage[Model]) -> Stage[Tokens] | None:
        """The tokens that `apply` wants to see; None for methods that need no data."""
        return None

    def apply(self, model: Model, calibration: Tokens | None) -> Model:
        """The quantised model, made on `model.fork()`; `model` itself is shared and stays as it is."""
        raise NotImplementedError(f"{type(self).__name__} has neither `build` nor `apply`")

    def steps(self, base: Stage[Model], seed: int) -> tuple[Step, ...]:
        """What `diagnose: [weights]` looks at: what the method does in turn, its result last."""
        return (Step("full precision", base, base, self.build(base, seed)),)

    def diagnostics(self, base: Stage[Model], seed: int) -> Mapping[str, tuple[Stage[dict], ...]]:
        """What else a grid may `diagnose`, by name: stages whose values are JSON for a figure."""
        return {}


@dataclass(frozen=True)
class Apply(Stage[Model]):
    """A method that is one step."""

    method: Method
    model: Input[Model]
    calibration: Input[Tokens] | None
    seed: int

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model, 32.0), hours=2.0)

    def run(self, work: Path) -> Model:
        calibration = None if self.calibration is None else value(self.calibration)
        return self.method.apply(value(self.model), calibration)


@dataclass(frozen=True)
class Entry:
    """A registered method: a configured instance, and what of it a grid's axes leave alone."""

    name: str
    method: Method
    title: str
    about: str
    fixed: tuple[str, ...]
    source: str


_registry: dict[str, Entry] = {}


def register(name: str, method: Method, title: str, about: str, fixed: Iterable[str] = ()) -> None:
    """Make `method` known as `name`, shown in tables as `title`.

    `fixed` names the fields that make the method what it is. When it is only compared against, the
    grid's axes and defaults over them do not apply to it: RTN stays untrained in a grid that varies
    the objective. Raises BitgridError where the name is taken or a fixed field does not exist.
    """
    caller = sys._getframe(1).f_code.co_filename  # inspect.stack() reads the source of every frame
    if name in _registry and _registry[name].method != method:
        raise BitgridError(
            f"method {name!r} is registered twice: {_registry[name].source}, {caller}"
        )
    fields = dict(settings(method))
    for field in fixed:
        if field not in fields:
            raise BitgridError(f"method {name!r} fixes {field!r}, which is no field of it")
    _registry[name] = Entry(name, method, title, about, tuple(fixed), caller)


def discover() -> Mapping[str, Entry]:
    """Every method: the files of `methods/`, then the entry points of the group `bitgrid.methods`."""
    _import_all()
    return dict(sorted(_registry.items()))


@cache
def _import_all() -> None:
    package = importlib.import_module("methods")
    for module in pkgutil.walk_packages(package.__path__, "methods."):
        importlib.import_module(module.name)
    for point in entry_points(group="bitgrid.methods"):
        point.load()


def entry(name: str) -> Entry:
    """The method called `name`. Raises GridError with the nearest name where there is none."""
    known = discover()
    if name not in known:
        raise GridError(f"method {name!r} is unknown; {nearest(name, known)}")
    return known[name]


def settings(thing: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted path that a grid may set, with its present value: `format`, `format.bits`, …"""
    assert dataclasses.is_dataclass(thing)
    for field in dataclasses.fields(thing):
        held = getattr(thing, field.name)
        yield prefix + field.name, held
        if dataclasses.is_dataclass(held) and not isinstance(held, type):
            yield from settings(held, f"{prefix}{field.name}.")


def possible(thing: object, prefix: str = "") -> Iterator[str]:
    """Every dotted path that a grid may set on any choice of the components, not only the present."""
    assert dataclasses.is_dataclass(thing)
    hints = _hints(thing if isinstance(thing, type) else type(thing))
    for field in dataclasses.fields(thing):
        yield prefix + field.name
        hint = hints[field.name]
        for kind in (hint, *typing.get_args(hint)):
            choices = kind.choices().values() if _is_component(kind) else [kind]
            for choice in choices:
                if dataclasses.is_dataclass(choice):
                    yield from possible(choice, f"{prefix}{field.name}.")


def configure(thing: C, given: Mapping[str, Any], prefix: str = "") -> C:
    """`thing` with settings by dotted path; a component is chosen by name or by a mapping.

    `{"objective": "cakld", "objective.gamma": 0.5, "format": {"name": "nf", "bits": 3}}`. A chosen
    component keeps what it has in common with the one it replaces (bits, group size). Raises
    SettingError, which carries the path, for a name or value that does not fit.
    """
    assert dataclasses.is_dataclass(thing)
    assert not isinstance(thing, type)
    changes = _changes(type(thing), vars(thing), given, prefix)
    return _checked(lambda: dataclasses.replace(thing, **changes), prefix.rstrip("."))


def _changes(
    kind: Any, held: Mapping[str, Any], given: Mapping[str, Any], prefix: str
) -> dict[str, Any]:
    """Fields of `kind` as `given` sets them over `held`, each of its type: nothing is made yet."""
    hints = _hints(kind)
    names = [field.name for field in dataclasses.fields(kind)]
    wholes: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, new in given.items():
        head, _, rest = str(path).partition(".")
        if head not in names:
            words = nearest(head, names, prefix)
            raise SettingError(f"{prefix}{path}", f"{f'{prefix}{path}'!r} is unknown; {words}")
        if rest:
            parts.setdefault(head, {})[rest] = new
        else:
            wholes[head] = new
    return {
        head: _field(
            hints[head],
            held[head],
            wholes.get(head, _KEEP),
            parts.get(head, {}),
            prefix + head,
        )
        for head in {**wholes, **parts}
    }


_KEEP = object()


@cache
def _hints(kind: type) -> dict[str, Any]:
    """The types of a class's fields: asked for in every cell, and slow to find."""
    return typing.get_type_hints(kind)


def _field(hint: Any, current: Any, whole: Any, parts: dict[str, Any], where: str) -> Any:
    """A field of type `hint` that now holds `current`, after it was given a whole and parts of it."""
    kinds: list[Any] = [t for t in (hint, *typing.get_args(hint)) if inspect.isclass(t)]
    family = next((t for t in kinds if _is_component(t)), None)
    fields = next((t for t in kinds if dataclasses.is_dataclass(t)), None)
    if isinstance(whole, Mapping) and fields is not None:
        if family is None and current is None:
            return _made(fields, {}, {**whole, **parts}, where)
        whole, parts = _KEEP, {**whole, **parts}
    if family is not None and whole is not None:
        name = parts.pop("name", whole) if whole is _KEEP else whole
        return _component(family, current, name, parts, where)
    if whole is _KEEP and fields is not None and current is not None:
        return configure(current, parts, f"{where}.")
    if parts:
        raise SettingError(where, f"{where!r} has no parts, so {', '.join(parts)} cannot be set")
    return _fitted(hint, whole, where)


def _fitted(hint: Any, given: Any, where: str) -> Any:
    """`given` as a value of type `hint`. Raises SettingError where it is none, or no key can hold it."""
    try:
        found = pydantic.TypeAdapter(hint).validate_python(given)
    except pydantic.ValidationError as error:
        raise SettingError(where, misfit(error, given, prefix=where).message) from None
    _check_numbers(found, where)
    return found


def _check_numbers(given: Any, where: str) -> None:
    if isinstance(given, float) and not math.isfinite(given):
        raise SettingError(where, f"{where}: {said(given)} should be a finite number")
    if isinstance(given, int) and not -(2**63) <= given < 2**63:
        raise SettingError(where, f"{where}: {given} should fit in 64 bits")
    parts = given.values() if isinstance(given, Mapping) else given
    for part in parts if isinstance(given, Mapping | tuple | list) else ():
        _check_numbers(part, where)


def _component(family: type[Component], current: Any, name: Any, parts: Any, where: str) -> Any:
    """The component of `family` called `name`, sharing what `current` has in common with it."""
    choices = family.choices()
    if name is _KEEP and current is None:
        words = ", ".join(sorted(choices))
        raise SettingError(where, f"{where}: there is none yet: give its 'name', of {words}")
    if name is _KEEP:
        return configure(current, parts, f"{where}.")
    if not isinstance(name, str) or name not in choices:
        raise SettingError(where, f"{where}: {name!r} is unknown; {nearest(name, choices)}")
    if type(current) is choices[name]:
        return configure(current, parts, f"{where}.")
    kept = {} if current is None else vars(current)
    return _made(choices[name], kept, parts, where)


def _made(kind: Any, kept: Mapping[str, Any], parts: Mapping[str, Any], where: str) -> Any:
    """A new `kind` of the given parts, its other fields as `kept` has them."""
    held = {field.name: kept.get(field.name, _default(field)) for field in dataclasses.fields(kind)}
    made = {**held, **_changes(kind, held, parts, f"{where}.")}
    for name, given in made.items():
        if given is dataclasses.MISSING:
            raise SettingError(where, f"{where}.{name} is missing")
    return _checked(lambda: kind(**made), where)


def _default(field: dataclasses.Field) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _is_component(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Component)


def _checked(make: Callable[[], C], where: str) -> C:
    """What `make` makes, with a complaint of its own (a `__post_init__`) turned into a SettingError."""
    try:
        return make()
    except SettingError:
        raise
    except (BitgridError, ValueError) as error:
        raise SettingError(where, f"{where}: {error}" if where else str(error)) from error
