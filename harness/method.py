"""A method: from a full-precision model to a quantised one, and the registry that finds them.

A new method is one file in `methods/` (or any package with an entry point in the group
`bitgrid.methods`):

    @dataclass(frozen=True)
    class MyMethod(Method):
        format: Format = IntAsym(bits=2)

        def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
            ...

    register("my-method", MyMethod(), title="My method", about="what it does (paper)")

Its fields are what a grid may set, vary and compare. In this file: `Method`, `register`, `METHODS`.
Not here: any method; parts of methods (`component`); how settings become fields (`settings`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import singledispatch
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, cast

from harness.config.settings import find_families, list_settings
from harness.core.component import Component
from harness.core.declared import locate
from harness.core.errors import BitgridError, FormatError, ModelError, nearest
from harness.core.registry import Place, Registry, find_caller
from harness.core.stage import Input, Resources, Stage, identify, to_canonical_json, value
from harness.data import Tokens, calibration
from harness.models import Model, check_applied, host_gib, matrices
from harness.models.rehearsal import rehearse
from harness.models.stage import find_pretrained, meta_network

_TOKENS = ("text", "sequences", "length")  # fields that name the tokens of a method


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


class Method(Component, family="method"):
    """From a full-precision model to a quantised one. Subclasses are frozen dataclasses.

    A class's `name`, where it declares none, is the first that it is registered under. `changes`:
    patterns of names of parameters that `apply` changes beside the matrices of the blocks, which is
    all that a method changes unless it says so. `seeded`: whether `apply` draws random numbers; one
    that does not gives one model whatever the seed, which is computed once. `needs`: packages
    beside Bitgrid's own, as pip calls them; their versions are part of what `apply` computes.
    `layer_classes`: of layers, by name, the only ones that it can quantise; none named, all.
    """

    changes: ClassVar[tuple[str, ...]] = ()
    seeded: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()
    layer_classes: ClassVar[tuple[str, ...]] = ()

    def build(self, base: Stage[Model], seed: int) -> Stage[Model]:
        """The graph from `base` to the quantised model. By default one stage that calls `apply`.

        Raises BitgridError where a package that it needs is not installed.
        """
        packages = tuple(find_package(self, name) for name in self.needs)
        return Apply(self, base, self.calibration(base), seed if self.seeded else None, packages)

    def resources(self, base: Stage[Model]) -> Resources:
        """What a job that calls `apply` asks for."""
        return Resources(gpus=1, memory_gib=host_gib(base, 32.0), hours=2.0)

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        """Raise a BitgridError where a layer, given as (O, I) by name, cannot be quantised so.

        By default where a field `group_size` does not divide its inputs; 0 is a whole row.
        """
        size = getattr(self, "group_size", 0)
        for name, (_, inputs) in layers.items():
            if isinstance(size, int) and size and inputs % size:
                raise FormatError(
                    f"layer {name}: groups of {size} do not divide its {inputs} inputs; a "
                    f"group_size that does: {math.gcd(size, inputs)}"
                )

    @property
    def is_reference(self) -> bool:
        """Whether it leaves a model as it was published, so that its title is the model's."""
        return False

    def calibration(self, base: Stage[Model]) -> Stage[Tokens] | None:
        """The tokens that `apply` wants to see; None for methods that need no data.

        By default those that fields `text`, `sequences` and `length` (in tokens) name, if it has
        all three.
        """
        fields: list[Any] = [getattr(self, name, None) for name in _TOKENS]
        return None if None in fields else calibration(base, *fields)

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        """The quantised model, made on `model` or a fork of it, by giving layers new weights.

        Written in place, a tensor changes for all that share it, and the method fails. `work` is a
        folder that survives a kill: what stands there, the next attempt finds.
        """
        raise NotImplementedError(f"{type(self).__name__} has neither `build` nor `apply`")

    def steps(self, base: Stage[Model], seed: int) -> tuple[Step, ...]:
        """What `diagnose: [weights]` looks at: what the method does in turn, its result last."""
        return (Step("full precision", base, base, self.build(base, seed)),)

    def diagnostics(self, base: Stage[Model], seed: int) -> Mapping[str, tuple[Stage[dict], ...]]:
        """What else a grid may `diagnose`, by name: stages whose values are JSON for a figure."""
        return {}


@singledispatch
def list_budget_settings(method: Method) -> tuple[str, ...]:
    """The settings, by dotted path, that say how long a method trains: first the one of its
    optimizer steps, which a grid that matches budgets sets. None where it does not train, or where
    its class registers nothing."""
    return ()


@dataclass(frozen=True)
class Apply(Stage[Model]):
    """A method that is one step. `seed`: of methods that draw random numbers; `packages`: what it
    needs beside Bitgrid's own, each with its version."""

    kind: ClassVar[str] = "apply"
    method: Method
    model: Input[Model]
    calibration: Input[Tokens] | None = None
    seed: int | None = None
    packages: tuple[str, ...] = ()

    @property
    def resources(self) -> Resources:
        return self.method.resources(cast(Stage[Model], self.model))

    @property
    def subject(self) -> str:
        return f"method {self.method.name}"

    def preflight(self) -> None:
        for package in self.packages:  # planned elsewhere, it may have been with another version
            here = find_package(self.method, package.split()[0])
            if here != package:
                raise BitgridError(f"{self.subject} was planned with {package}; here is {here}")

    def run(self, work: Path) -> Model:
        calibration = None if self.calibration is None else value(self.calibration)
        given = value(self.model)
        result = self.method.apply(given.fork(), calibration, work)
        try:
            check_applied(given, result, self.method.changes)
        except ModelError as error:
            raise ModelError(f"method {self.method.name}: {error}") from None
        return result


@rehearse.register
def _of_apply(stage: Apply) -> None:
    base, classes = find_pretrained(stage), stage.method.layer_classes
    if base is None or not classes:
        return
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    for name, matrix in matrices(network).items():
        if (kind := type(matrix.module).__name__) not in classes:
            raise ModelError(
                f"{stage.subject}: layer {name} is of a {kind}, and it quantises only layers of "
                f"{' and '.join(classes)}; rtn quantises all"
            )


def find_package(method: Method, name: str) -> str:
    """An installed package with its version: "hqq 0.2.8". Raises BitgridError where it is not."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        raise BitgridError(
            f"method {method.name!r} needs the package {name}, which is not installed: "
            f"pip install {name}"
        ) from None


@dataclass(frozen=True)
class Entry:
    """A registered method: a configured instance, and what of it a grid's axes leave alone."""

    name: str
    method: Method
    title: str
    about: str
    fixed: tuple[str, ...]
    source: str


METHODS: Registry[Entry] = Registry("method", group="bitgrid.methods", package="methods")


def register(name: str, method: Method, title: str, about: str, fixed: Iterable[str] = ()) -> None:
    """Make `method` known as `name`, shown in tables as `title`.

    `fixed` names the fields that make the method what it is. When it is only compared against, the
    grid's axes and defaults over them do not apply to it: RTN stays untrained in a grid that varies
    the objective. Raises BitgridError where the name is taken or a fixed field does not exist.
    """
    place = find_caller()
    _check_method(name, method, title, place)
    fields = dict(list_settings(method))
    for field in fixed:
        if field not in fields:
            raise BitgridError(
                f"method {name!r} fixes {field!r}, which it does not have; {nearest(field, fields)}"
            )
    METHODS.register(name, Entry(name, method, title, about, tuple(fixed), place.file), place)
    if "name" not in vars(type(method)):
        type(method).claim(name)


def list_parts() -> dict[str, type[Component]]:
    """Every part that a registered method may have, by `family/name`: `init/clip`."""
    found: dict[str, type[Component]] = {}
    for kind in list_kinds():
        for family in find_families(kind).values():
            for name, cls in family.siblings().items():
                found.setdefault(f"{family.family_name()}/{name}", cls)
    return found


def list_kinds() -> list[Any]:
    """The classes of the registered methods, each once: most methods are named points of one."""
    return [*dict.fromkeys(type(entry.method) for entry in METHODS.load().values())]


def _check_method(name: str, method: object, title: str, place: Place) -> None:
    """Raise BitgridError, with file and line, for what cannot be registered."""
    if not isinstance(method, Method):
        what = f"the class {method.__name__}" if isinstance(method, type) else f"{method!r}"
        call = f"{method.__name__}()" if isinstance(method, type) else "one of a class of `Method`"
        raise BitgridError(f"{place}: {name!r} is registered with {what}; give it {call}")
    if not name or not title.strip():
        raise BitgridError(f"{place}: method {name!r} has the title {title!r}, which tables show")
    cls: Any = type(method)
    if cls.build is Method.build and cls.apply is Method.apply:
        raise BitgridError(f"{locate(cls)}: it has neither `apply` nor `build`")
    for field in dataclasses.fields(cls):
        held = getattr(method, field.name)
        try:
            to_canonical_json(identify(held))
            hash(held)
        except (TypeError, ValueError):
            raise BitgridError(
                f"{locate(cls)}: field {field.name!r} holds a {type(held).__name__}, which has no "
                "place in a key; use numbers, text, tuples, mappings of them or components"
            ) from None
