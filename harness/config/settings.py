"""Settings by dotted path: what a method and its components may be told, and the telling.

    configure(method, {"objective": "cakld", "objective.gamma": 0.5, "format.bits": 3})

Not here: the methods and who names them (`harness.method`), the file that the settings stand in
(`harness.grid`).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, TypeVar

import pydantic

from harness.config.misfit import misfit, said
from harness.core.component import Component
from harness.core.errors import BitgridError, SettingError, nearest

C = TypeVar("C")


def list_settings(thing: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted path that a grid may set, with its present value: `format`, `format.bits`, …"""
    assert dataclasses.is_dataclass(thing)
    for field in dataclasses.fields(thing):
        held = getattr(thing, field.name)
        yield prefix + field.name, held
        if dataclasses.is_dataclass(held) and not isinstance(held, type):
            yield from list_settings(held, f"{prefix}{field.name}.")


def list_possible(thing: object, prefix: str = "") -> Iterator[str]:
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
                    yield from list_possible(choice, f"{prefix}{field.name}.")


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
