"""A method: from a full-precision model to a quantised one, and the registry that finds them.

A new method is one file in `methods/` (or any package with an entry point in the group
`bitgrid.methods`):

    @dataclass(frozen=True)
    class MyMethod(Method):
        format: Format = IntAsym(bits=2)

        def apply(self, model: Model, calibration: Tokens | None) -> Model:
            ...

    register("my-method", MyMethod(), about="what it does (paper)")

Its fields are what a grid may set, vary and compare. In this file: `Method`, `Component`, `register`,
`discover`, `configure`. Not here: any method; the grid's file format (`grid`).
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from harness.errors import BitgridError, GridError, nearest
from harness.stage import Input, Stage, value

if TYPE_CHECKING:
    from harness.models import Model
    from harness.text import Tokens

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


class Method(ABC):
    """From a full-precision model to a quantised one. Subclasses are frozen dataclasses."""

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        """The graph from `base` to the quantised model. By default one stage that calls `apply`."""
        return Apply(self, base, self.calibration(base), seed)

    def calibration(self, base: Stage[Model]) -> Stage[Tokens] | None:
        """The tokens that `apply` wants to see; None for methods that need no data."""
        return None

    def apply(self, model: Model, calibration: Tokens | None) -> Model:
        """The quantised model, made on `model.fork()`; `model` itself is shared and stays as it is."""
        raise NotImplementedError(f"{type(self).__name__} has neither `build` nor `apply`")


@dataclass(frozen=True)
class Apply(Stage["Model"]):
    """A method that is one step."""

    method: Method
    model: Input[Model]
    calibration: Input[Tokens] | None
    seed: int

    def run(self, work: Path) -> Model:
        return self.method.apply(value(self.model), value(self.calibration))


@dataclass(frozen=True)
class Entry:
    """A registered method: a configured instance, and what of it a grid's axes leave alone."""

    name: str
    method: Method
    about: str
    fixed: tuple[str, ...]
    source: str


_registry: dict[str, Entry] = {}


def register(name: str, method: Method, about: str, fixed: Iterable[str] = ()) -> None:
    """Make `method` known as `name`.

    `fixed` names the fields that make the method what it is. When it is only compared against, the
    grid's axes and defaults over them do not apply to it: RTN stays untrained in a grid that varies
    the objective. Raises BitgridError where the name is taken or a fixed field does not exist.
    """
    caller = inspect.stack()[1].filename
    if name in _registry and _registry[name].method != method:
        raise BitgridError(f"method {name!r} is registered twice: {_registry[name].source}, {caller}")
    fields = field_names(method)
    for field in fixed:
        if field not in fields:
            raise BitgridError(f"method {name!r} fixes {field!r}, which is no field of it")
    _registry[name] = Entry(name, method, about, tuple(fixed), caller)


@cache
def discover() -> Mapping[str, Entry]:
    """Every method: the files of `methods/`, then the entry points of the group `bitgrid.methods`."""
    package = importlib.import_module("methods")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"methods.{module.name}")
    for point in entry_points(group="bitgrid.methods"):
        point.load()
    return dict(sorted(_registry.items()))


def entry(name: str) -> Entry:
    """The method called `name`. Raises GridError with the nearest name where there is none."""
    known = discover()
    if name not in known:
        raise GridError(f"method {name!r} is unknown; {nearest(name, known)}")
    return known[name]
