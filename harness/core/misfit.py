"""What does not fit a type, in the words of who wrote it instead of the validator's.

    except pydantic.ValidationError as error:
        wrong = explain(error, data)         # wrong.where, wrong.message

Of a field that may be one of several types the validator complains once for each, under names of
its own (`seed.int`, `seed.list[int]`); here that is one complaint about what the file says.
Not here: what may be given (`harness.grid.schema`, `harness.cluster.profile`, a method's fields).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import pydantic

from harness.core.errors import SettingError, nearest
from harness.core.scalars import Real, Whole, read_scalar

Where: TypeAlias = tuple[str | int, ...]
"""A place in data: keys of mappings and numbers of items, from the top."""

_OURS = "value_error"  # a complaint of code of ours, in its own words
# What was asked for, by the start of the validator's name of the complaint.
_WANTED = {
    "int_": "a whole number",
    "float_": "a number",
    "finite_number": "a finite number",
    "bool_": "true or false",
    "string_": "text",
    "list_": "a list",
    "tuple_": "a list",
    "dict_": "a mapping",
    "model_": "a mapping",
    "dataclass_": "a mapping",
    "none_required": "null",
    "missing": "longer",
    "too_long": "shorter",
}
_YES, _NO = ("yes", "on", "y", "1"), ("no", "off", "n", "0")  # words of YAML 1.1
_LIMITS = {
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
}


class Misfit(NamedTuple):
    """The place in what was given, and the complaint in one line."""

    where: Where
    message: str

    @property
    def path(self) -> str:
        """The place as a dotted path, without the numbers of items."""
        return ".".join(step for step in self.where if isinstance(step, str))


def explain(
    error: pydantic.ValidationError,
    data: Any,
    known: Mapping[str, type] | None = None,
    prefix: str = "",
) -> Misfit:
    """The one complaint about `data` that explains most.

    `known`: the models and dataclasses whose keys may be given, under the dotted path that holds
    them ("" for the top); `prefix`: the dotted path of `data` itself. A key that is unknown goes
    before one that is missing, since it may be the same one misspelt.
    """
    complaints = [(_locate(each, data), each) for each in error.errors()]
    for place, each in complaints:
        if each["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            names = _list_keys_at([str(step) for step in place[:-1]], known or {})
            near = f"; {nearest(place[-1], names)}" if names else ""
            start = _begin(prefix, place[:-1])
            return Misfit(place, f"{start}key {place[-1]!r} is unknown{near}")
    # Of one field the deepest complaint is of the type that what was given looks like.
    field = complaints[0][0][:1]
    of_field = (pair for pair in complaints if pair[0][: len(field)] == field)
    place, first = max(of_field, key=_measure_depth)
    kind = first["type"]
    is_key = kind == "invalid_key" or "[key]" in first["loc"]
    is_missing = kind == "missing" and isinstance(place[-1], str)
    start = _begin(prefix, place[:-1] if is_key or is_missing else place)
    if is_key and kind != _OURS:
        return Misfit(place, f"{start}key {show(first['input'])} should be text")
    if is_missing:
        return Misfit(place, f"{start}key {place[-1]!r} is missing")
    if kind == _OURS:
        return _say_ours(first["ctx"]["error"], place, prefix)
    same = [each for where, each in complaints if where == place]
    limits = [each for each in same if each["type"] in _LIMITS]
    wanted = " or ".join(dict.fromkeys(map(_say_wanted, limits or same)))
    meant = _guess(first["input"], kind)
    return Misfit(place, f"{start}{show(first['input'])} should be {wanted}{meant}")


def _say_ours(error: Exception, place: Where, prefix: str) -> Misfit:
    """A complaint in its own words; what it says of a part inside has that part's path."""
    inside = error.path if isinstance(error, SettingError) else ""
    place = (*place, inside) if inside else place
    return Misfit(place, f"{_begin(prefix, place)}{str(error).removeprefix(f'{inside}: ')}")


def _guess(value: object, kind: str) -> str:
    """What else may have been meant by a scalar, which YAML 1.1 or Python reads so."""
    meant: object = None
    if isinstance(value, str) and kind.startswith(("int_", "float_")):
        plain = re.sub(r"(?<=\d)[_ ](?=\d)", "", value.strip())
        # Not of 1,500, which is 1500 to some and 1.5 to others.
        meant = read_scalar(re.sub(r"^(\d+),(\d\d?|\d{4,})$", r"\1.\2", plain))
        kinds = Whole if kind.startswith("int_") else Whole | Real
        meant = show(meant) if isinstance(meant, kinds) else None
    elif kind.startswith("bool_"):
        word = str(value).lower()
        meant = {**dict.fromkeys(_YES, "true"), **dict.fromkeys(_NO, "false")}.get(word)
    elif isinstance(value, bool) and kind.startswith("string_"):
        meant = f'"{show(value)}", in quotes'
    return f"; did you mean {meant}?" if meant else ""


def _list_keys_at(path: Sequence[str], known: Mapping[str, type]) -> list[str]:
    """The keys that may be given at a path, or at the nearest one above it that is known."""
    for end in range(len(path), 0, -1):
        if model := known.get(".".join(path[:end])):
            return _list_keys(model)
    return _list_keys(known[""]) if not path and "" in known else []


def _list_keys(model: type) -> list[str]:
    if issubclass(model, pydantic.BaseModel):
        return [*model.model_fields]
    return [*getattr(model, "__dataclass_fields__", ())]


def show(value: object) -> str:
    """A value as a YAML file would say it, or the beginning of it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) and not math.isfinite(value):
        return f".{value}".replace(".-", "-.")
    text = value.text if isinstance(value, Whole | Real) else _represent(value)
    return text if len(text) <= 60 else text[:60] + "…"


def _represent(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # an integer of more digits than Python prints
        return f"a number of {type(value).__name__}, too long to be shown"


def _begin(prefix: str, place: Where) -> str:
    """The beginning of a message: the dotted path of a place in what lies at `prefix`."""
    path = ".".join(step for step in (prefix, *place) if isinstance(step, str) and step)
    return f"{path}: " if path else ""


def _say_wanted(each: Mapping[str, Any]) -> str:
    kind = str(each["type"])
    if kind in _LIMITS:
        limits = {name: f"{v:g}" if isinstance(v, float) else v for name, v in each["ctx"].items()}
        return _LIMITS[kind].format(**limits)
    for start, phrase in _WANTED.items():
        if kind.startswith(start):
            return phrase
    message = str(each["msg"])
    return message.removeprefix("Input should be ").lower()


def _locate(each: Mapping[str, Any], data: Any) -> Where:
    """Where a complaint is in `data`: its location without the validator's names of types."""
    place: list[str | int] = []
    for step in each["loc"]:
        if isinstance(data, Mapping) and step in data:
            data = data[step]
            place.append(str(step))
        elif isinstance(data, Sequence) and isinstance(step, int) and step < len(data):
            data = data[step]
            place.append(step)
    return (*place, each["loc"][-1]) if each["type"] == "missing" else tuple(place)


def _measure_depth(pair: tuple[Where, Any]) -> int:
    return len(pair[0])
