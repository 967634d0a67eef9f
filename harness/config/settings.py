"""Settings by dotted path: what a method and its components may be told, and the telling.

    configure(method, {"objective": "cakld", "objective.gamma": 0.5, "format.bits": 3})

Here the paths are laid over what is set already; whether the outcome fits is pydantic's to say, by
the types of the fields (`harness.core.checked`). Not here: the methods and who names them
(`harness.method`), the file that the settings stand in (`harness.grid`).
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from harness.core.checked import Checked, field_types, fit_field, fit_fields
from harness.core.component import Component
from harness.core.errors import BitgridError, SettingError, nearest
from harness.core.misfit import show

C = TypeVar("C", bound=Checked)
_KEEP = object()  # no value: the field stays as it is


def list_settings(thing: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted path that a grid may set, with its present value: `format.bits`, …"""
    assert dataclasses.is_dataclass(thing)
    for field in dataclasses.fields(thing):
        held = getattr(thing, field.name)
        yield prefix + field.name, held
        if dataclasses.is_dataclass(held) and not isinstance(held, type):
            yield from list_settings(held, f"{prefix}{field.name}.")


def list_possible(thing: object, prefix: str = "") -> Iterator[str]:
    """Every dotted path that a grid may set, on any choice of the components."""
    for name, hint in field_types(thing if isinstance(thing, type) else type(thing)).items():
        yield prefix + name
        for kind in list_classes(hint):
            for choice in kind.choices().values() if _is_component(kind) else [kind]:
                yield from list_possible(choice, f"{prefix}{name}.")


def check_possible(cls: Any, path: str, value: object) -> None:
    """Raise SettingError where no choice of components has a field at `path` that takes a value.

    Of a component that a mapping describes, only the name is looked at.
    """
    fault: SettingError | None = None
    for owner, name in _list_owners(cls, path):
        try:
            _check_field(owner, name, value, path.rpartition(".")[0])
            return
        except SettingError as error:
            fault = fault or error
    if fault is not None:
        raise fault


def _list_owners(cls: Any, path: str) -> Iterator[tuple[Any, str]]:
    """The classes that may have the field at a path, with its name in them."""
    head, _, rest = path.partition(".")
    hints = field_types(cls)
    if head in hints and not rest:
        yield cls, head
    for kind in list_classes(hints[head]) if head in hints and rest else ():
        for choice in kind.choices().values() if _is_component(kind) else [kind]:
            yield from _list_owners(choice, rest)


def _check_field(owner: Any, name: str, value: object, prefix: str) -> None:
    kind = next(list_classes(field_types(owner)[name]), None)
    if kind is None:
        fit_field(owner, name, value, prefix)
    elif _is_component(kind) and (chosen := _read_name(value)) is not None:
        try:
            kind.find(chosen)
        except SettingError as error:
            where = f"{prefix}.{name}" if prefix else name
            raise SettingError(f"{where}: {error}", where) from None


def _read_name(value: object) -> object:
    return value.get("name") if isinstance(value, Mapping) else value


def configure(thing: C, settings: Mapping[str, Any]) -> C:
    """`thing` with settings by dotted path; a component is chosen by name or by a mapping.

    `{"objective": "cakld", "objective.gamma": 0.5, "format": {"name": "nf", "bits": 3}}`. A chosen
    component keeps what means the same in it and in the one that it replaces: fields of one name
    and one default (a group size, a text). Raises SettingError, which carries the path, for a name
    or value that does not fit.
    """
    fields = fit_fields(type(thing), _lay(thing, type(thing), settings))
    try:
        return type(thing)(**fields)
    except SettingError:
        raise
    except BitgridError as error:  # of several fields that do not fit each other
        raise SettingError(str(error)) from error


def _lay(held: object, cls: Any, settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Data for a `cls`: what it has in common with `held`, and `settings` over that."""
    hints = field_types(cls)
    data = {name: getattr(held, name) for name in hints if _is_shared(held, cls, name)}
    wholes: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        head, _, rest = str(path).partition(".")
        if head not in hints:
            hint = nearest(head, hints, prefix)
            raise SettingError(f"{f'{prefix}{path}'!r} is unknown; {hint}", f"{prefix}{path}")
        if rest:
            parts.setdefault(head, {})[rest] = value
        else:
            wholes[head] = value
    for head in {**wholes, **parts}:
        whole, part = wholes.get(head, _KEEP), parts.get(head, {})
        data[head] = _lay_field(hints[head], data.get(head), whole, part, prefix + head)
    return data


def _lay_field(hint: Any, held: object, whole: Any, parts: dict[str, Any], where: str) -> object:
    """Data for a field of type `hint`, which holds `held` and was given a whole and parts of it."""
    kind = next(list_classes(hint), None)
    is_component = _is_component(kind)
    if kind is not None and isinstance(whole, Mapping):
        whole, parts = _KEEP, {**whole, **parts}
    if kind is None or whole is None or not (whole is _KEEP or is_component):
        if parts:
            raise SettingError(
                f"{where!r} has no parts, so {', '.join(parts)} cannot be set", where
            )
        _check_size(whole, where)
        return whole
    if is_component:
        name = parts.pop("name", _KEEP) if whole is _KEEP else whole
        return _lay_component(kind, held, name, parts, where)
    return _lay(held, kind, parts, f"{where}.")


def _lay_component(
    family: type[Component], held: object, name: Any, parts: dict[str, Any], where: str
) -> object:
    """Data for a component: of the class called `name`, or of the one that it is."""
    if name is _KEEP and not isinstance(held, Component):
        return parts  # refused by the family: the name is missing
    try:
        cls: Any = type(held) if name is _KEEP else family.find(name)
    except SettingError as error:
        raise SettingError(f"{where}: {error}", where) from None
    fields = _lay(held, cls, parts, f"{where}.")
    return {"name": cls.own_name(), **fields} if family.is_chosen_by_name() else fields


def _check_size(number: object, where: str) -> None:
    """Raise SettingError for a whole number that no generator of random numbers would take."""
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise SettingError(f"{where}: {show(number)} should fit in 64 bits", where)
    if isinstance(number, Mapping | tuple | list):
        for part in number.values() if isinstance(number, Mapping) else number:
            _check_size(part, where)


def list_classes(hint: Any) -> Iterator[Any]:
    """The families and dataclasses that a field of type `hint` may hold."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        yield from list_classes(typing.get_args(hint)[0])
    elif origin in (typing.Union, types.UnionType):
        for choice in typing.get_args(hint):
            yield from list_classes(choice)
    elif _is_component(hint) or dataclasses.is_dataclass(hint):
        yield hint


def _is_component(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Component)


def is_redefined(thing: object, path: str, before: object) -> bool:
    """Whether a setting means something else in the component that has it than in general.

    It does where the component changes a default of a class that it derives from, and where its
    default is another than that of the component which `before` has there, unless a class of both
    leaves it open, as formats do their bits. A format in blocks of 32, where formats have groups of
    128, is no such format in blocks of 128.
    """
    *above, name = path.split(".")
    held, other = (dict(list_settings(each)).get(".".join(above)) for each in (thing, before))
    if not isinstance(held, Component):
        return False
    bases = [base for base in type(held).__mro__[1:] if dataclasses.is_dataclass(base)]
    same = (dataclasses.MISSING, _find_default(type(held), name))
    if any(_find_default(base, name) not in same for base in bases):
        return True
    if not isinstance(other, Component) or _find_default(type(other), name) in same:
        return False
    common = [base for base in bases if isinstance(other, base)]
    return not any(name in _list_defaults(base) for base in common)


def _find_default(cls: type, name: str) -> object:
    return _list_defaults(cls).get(name, dataclasses.MISSING)


def _is_shared(held: object, cls: type, name: str) -> bool:
    """Whether a field is the same in what is held and in a class that may replace it.

    A field of one name whose default is another means something else there.
    """
    if not dataclasses.is_dataclass(held) or isinstance(held, type):
        return False
    ours, theirs = _list_defaults(cls), _list_defaults(type(held))
    return name in theirs and (isinstance(held, cls) or ours[name] == theirs[name])


def _list_defaults(cls: Any) -> dict[str, object]:
    """The default of each field of a dataclass; what makes it, where something does."""
    fields = dataclasses.fields(cls)
    return {
        each.name: each.default
        if each.default_factory is dataclasses.MISSING
        else each.default_factory
        for each in fields
    }
