"""Settings by dotted path: what a method and its components may be told, and the telling.

    configure(method, {"objective": "cakld", "objective.gamma": 0.5, "format.bits": 3})

A path goes on into a component, and into a list of them, where it is about every member that has
such a field. A mapping is given as a whole, and so is a list whose members are to be others.

Here the paths are laid over what is set already; whether the outcome fits is pydantic's to say, by
the types of the fields (`harness.core.checked`). Not here: the methods and who names them
(`harness.method`), the file that the settings stand in (`harness.grid`).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, TypeVar, cast

from harness.core.checked import Checked, field_types, fit_field, fit_fields
from harness.core.component import Component
from harness.core.errors import BitgridError, SettingError, nearest
from harness.core.frozen import FrozenMapping
from harness.core.hints import find_items, find_values, list_choices
from harness.core.misfit import show

C = TypeVar("C", bound=Checked)
_KEEP = object()  # no value: the field stays as it is


def list_settings(thing: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every dotted path that a grid may set, with its present value: `format.bits`, …

    Of a list of components, a path has the value of the first that has such a field.
    """
    own, cls = set(), cast(Any, type(thing))
    for name in _list_defaults(cls):
        held = getattr(thing, name)
        yield prefix + name, held
        own.add(prefix + name)
        inside: dict[str, object] = {}
        for part in held if isinstance(held, tuple) else (held,):
            if dataclasses.is_dataclass(type(part)):
                inside = dict(list_settings(part, f"{prefix}{name}.")) | inside
        yield from inside.items()
    if (stand_in := find_stand_in(thing)) is not None:
        for path, held in list_settings(stand_in, prefix):
            if path not in own:
                yield path, held


def find_stand_in(held: object) -> object:
    """The component inside of `held` of which is said what `held` lacks; None where none is."""
    name = held.stands_in if isinstance(held, Component) else None
    return None if name is None else getattr(held, name)


def describe_setting(held: object, is_inside: bool = False) -> str:
    """A value of a setting as messages and help show it: `nf`, `[hadamard, clip]`, `0.5`.

    Of a component that is `is_inside` another value, what is not as its class has it too.
    """
    if isinstance(held, Component):
        defaults = _list_defaults(type(held))
        fields = {name: getattr(held, name) for name in defaults} if is_inside else {}
        own = [
            f"{name}={describe_setting(value, True)}"
            for name, value in fields.items()
            if value != _make_default(type(held), name)
        ]
        return " ".join([type(held).name, *own])
    if isinstance(held, FrozenMapping):
        parts = (f"{key}: {describe_setting(part, True)}" for key, part in held.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(held, tuple):
        return f"[{', '.join(describe_setting(each, True) for each in held)}]"
    return show(held)


def list_places(
    cls: Any, prefix: str = "", above: tuple[Any, ...] = ()
) -> Iterator[tuple[str, Any, str]]:
    """Every dotted path that a grid may set on a `cls`, on any choice of the components, with the
    class and field that it sets.

    A class that is part of itself is listed once on a path: of a format whose field is a format,
    those of the formats below it, but not of one of its own kind there.
    """
    for name, hint in field_types(cls).items():
        yield prefix + name, cls, name
        for choice in _list_below(hint):
            if choice not in (*above, cls):
                yield from list_places(choice, f"{prefix}{name}.", (*above, cls))


def find_families(cls: Any) -> dict[str, type[Component]]:
    """By dotted path, the family whose members a field may hold: one, a list, a mapping of them."""
    families: dict[str, type[Component]] = {}
    for path, owner, name in list_places(cls):
        hint = field_types(owner)[name]
        kinds = [*list_classes(hint), *list_classes(find_values(hint))]
        for family in filter(_is_component, kinds):
            families.setdefault(path, family)
    return families


def is_possible(cls: Any, path: str) -> bool:
    """Whether a grid may set a dotted path on a `cls`, however deep."""
    return next(_list_owners(cls, path), None) is not None


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
    if head not in hints and _is_component(cls) and cls.stands_in is not None:
        for choice in _list_below(hints[cls.stands_in]):
            if choice is not cls:
                yield from _list_owners(choice, path)
    for choice in _list_below(hints[head]) if head in hints and rest else ():
        yield from _list_owners(choice, rest)


def _list_below(hint: Any) -> Iterator[Any]:
    """The classes whose fields a path may name behind a field of type `hint`."""
    for kind in list_classes(hint):
        yield from kind.choices().values() if _is_component(kind) else [kind]


def _check_field(owner: Any, name: str, value: object, prefix: str) -> None:
    hint = field_types(owner)[name]
    kind: Any = next(list_classes(hint), None)
    values = [value]
    if (inner := next(list_classes(find_values(hint)), None)) is not None:
        kind, values = inner, [*value.values()] if isinstance(value, Mapping) else []
    elif next(list_classes(find_items(hint)), None) is not None and isinstance(value, list):
        values = value
    if kind is None:
        fit_field(owner, name, value, prefix)
    for chosen in map(_read_name, values if _is_component(kind) else ()):
        if chosen is not None:
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
    stands_in = cls.stands_in if _is_component(cls) else None
    if stands_in is not None and stands_in not in data and isinstance(held, Component):
        data[stands_in] = held
    wholes: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {}
    for path, value in settings.items():
        head, _, rest = str(path).partition(".")
        if head not in hints and stands_in is not None:
            head, rest = stands_in, str(path)
        if head not in hints:
            hint = nearest(head, hints, prefix)
            raise SettingError(f"{f'{prefix}{path}'!r} is unknown; {hint}", f"{prefix}{path}")
        if rest:
            parts.setdefault(head, {})[rest] = value
        else:
            wholes[head] = value
    for head in {**wholes, **parts}:
        before = data.get(head, _make_default(cls, head))
        whole, part = wholes.get(head, _KEEP), parts.get(head, {})
        data[head] = _lay_field(hints[head], before, whole, part, prefix + head)
    return data


def _lay_field(hint: Any, held: object, whole: Any, parts: dict[str, Any], where: str) -> object:
    """Data for a field of type `hint`, which holds `held` and was given a whole and parts of it."""
    of_items, of_values = find_items(hint), find_values(hint)
    if next(list_classes(of_items), None) is not None and (parts or _is_written(whole)):
        return _lay_items(of_items, held, whole, parts, where)
    if of_values is not None and isinstance(whole, Mapping) and not parts:
        return {
            key: _lay_field(of_values, None, part, {}, f"{where}.{key}")
            for key, part in whole.items()
        }
    kind = next((each for each in list_choices(hint) if _is_class(each)), None)
    is_component = _is_component(kind)
    if isinstance(whole, Component) and not parts:  # as Python gives it
        return whole
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


def _is_written(whole: object) -> bool:
    """Whether a list of components is given: as a list, or as one member in its place."""
    return isinstance(whole, list | tuple | Mapping | str)


def _lay_items(hint: Any, held: object, whole: Any, parts: dict[str, Any], where: str) -> object:
    """Data for a list of components: its members, with `parts` in each that has such fields.

    A member keeps what the held one of its class has: the first of a class that of the first.
    """
    kind = next(list_classes(hint))
    before = list(held) if isinstance(held, tuple) else []
    if whole is _KEEP:
        members = [(type(each), each, _KEEP) for each in before]
    else:
        written = whole if isinstance(whole, list | tuple) else [whole]
        classes = [_find_class(kind, each) for each in written]
        members = [
            (cls, _take(before, cls), each) for cls, each in zip(classes, written, strict=True)
        ]
    lacked, data = dict(parts), []
    for cls, base, each in members:
        own = {path: part for path, part in parts.items() if is_possible(cls, path)}
        lacked = {path: part for path, part in lacked.items() if path not in own}
        data.append(_lay_field(hint, base, each, own, where))
    for path in lacked:
        near = nearest(path, [each for cls, *_ in members for each, *_ in list_places(cls)])
        message = f"{where}: no member of the list has {path!r}; {near}"
        raise SettingError(message, f"{where}.{path}")
    return data


def _find_class(kind: Any, written: object) -> Any:
    """The class of a member of a list as a grid writes it; its family where that has no such."""
    name = _read_name(written)
    return kind.choices().get(name, kind) if _is_component(kind) and type(name) is str else kind


def _take(held: list[object], cls: Any) -> object:
    """The first of a class, which is taken out; None where there is none."""
    found = next((number for number, each in enumerate(held) if type(each) is cls), None)
    return None if found is None else held.pop(found)


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
    stand_in = find_stand_in(held)
    before = held if stand_in is None or type(held) is cls else stand_in
    fields = _lay(before, cls, parts, f"{where}.")
    return {"name": cls.own_name(), **fields} if family.is_chosen_by_name() else fields


def _check_size(number: object, where: str) -> None:
    """Raise SettingError for a whole number that no generator of random numbers would take."""
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        raise SettingError(f"{where}: {show(number)} should fit in 64 bits", where)
    if isinstance(number, Mapping | tuple | list):
        for part in number.values() if isinstance(number, Mapping) else number:
            _check_size(part, where)


def list_classes(hint: Any) -> Iterator[Any]:
    """The families and dataclasses that a field of type `hint` may hold, alone or in a list."""
    yield from filter(_is_class, list_choices(hint))
    yield from filter(_is_class, list_choices(find_items(hint)))


def _is_class(hint: Any) -> bool:
    return _is_component(hint) or (inspect.isclass(hint) and dataclasses.is_dataclass(hint))


def _is_component(hint: Any) -> bool:
    return inspect.isclass(hint) and issubclass(hint, Component)


def is_redefined(thing: object, path: str, before: object) -> bool:
    """Whether a setting means something else in the component that has it than in general.

    It does where the component changes a default of a class that it derives from, and where its
    default is another than that of the component which `before` has there, unless a class of both
    leaves it open, as formats do their bits. A format in blocks of 32, where formats have groups of
    128, is no such format in blocks of 128.
    """
    above, _, name = path.rpartition(".")
    if not above:  # no component has it
        return False
    held, other = (dict(list_settings(each)).get(above) for each in (thing, before))
    others = other if isinstance(other, tuple) else (other,)
    return any(
        all(_differs(each, instead, name) for instead in others or (None,))
        for each in (held if isinstance(held, tuple) else (held,))
    )


def _differs(held: object, other: object, name: str) -> bool:
    """Whether a default of `held` is its own, rather than its bases' or that of `other`."""
    while isinstance(held, Component) and name not in _list_defaults(type(held)):
        held = find_stand_in(held)
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


def _make_default(cls: Any, name: str) -> object:
    """What a field holds where nothing is said of it; None where it has no default."""
    default = _find_default(cls, name)
    if default is dataclasses.MISSING:
        return None
    is_made = cls.__dataclass_fields__[name].default_factory is not dataclasses.MISSING
    return default() if is_made and callable(default) else default


@cache
def _list_defaults(cls: Any) -> Mapping[str, object]:
    """The default of each field of a dataclass; what makes it, where something does."""
    fields = dataclasses.fields(cls)
    return {
        each.name: each.default
        if each.default_factory is dataclasses.MISSING
        else each.default_factory
        for each in fields
    }
