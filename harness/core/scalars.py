"""Scalars of a YAML file, by the core schema of YAML 1.2 (yaml.org/spec/1.2.2, section 10.3.2).

    read_scalar("010")              # 10, whose text is "010"
    read_scalar("1:30")             # "1:30": YAML 1.1 makes 90 of it, as it makes false of `no`

A number keeps the text that it was written as, so that a field of text has it as it stands in the
file: `label: 1.10` is "1.10". The field's type says which one is meant, by `fit_scalars`: text
takes a number's text, a number takes no truth value, and a truth value is `true` or `false`. Not
here: files (`harness.config.document`), what is said of a scalar that does not fit (`misfit`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Self, cast

import pydantic
from pydantic_core import core_schema

_FORMS = {  # in this order: an integer is a float by its form
    "null": re.compile(r"null|Null|NULL|~|"),
    "bool": re.compile(r"true|True|TRUE|false|False|FALSE"),
    "int": re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+"),
    "float": re.compile(
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
        r"|[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"
    ),
}


LONGEST_NUMBER = 300  # characters


class Whole(int):
    """An integer of a file."""

    text: str

    def __new__(cls, text: str) -> Self:
        """Raises ValueError where the text is none, or is too long to be meant."""
        if len(text) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(text)} characters")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        number = super().__new__(cls, text if base == 10 else text[2:], base)
        number.text = text
        return number


class Real(float):
    """A number of a file that is no integer."""

    text: str

    def __new__(cls, text: str) -> Self:
        """Raises ValueError as `Whole`."""
        if len(text) > LONGEST_NUMBER:
            raise ValueError(f"a number of {len(text)} characters")
        number = super().__new__(cls, re.sub(r"\.(?=[inIN])", "", text))
        number.text = text
        return number


def read_scalar(text: str) -> bool | Whole | Real | str | None:
    """What a scalar without quotes stands for. Raises ValueError for too long a number."""
    kind = find_kind(text)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    return {"int": Whole, "float": Real, "str": str}[kind](text)


def find_kind(text: str) -> str:
    """What a scalar without quotes is: null, bool, int, float or str."""
    return next((kind for kind, form in _FORMS.items() if form.fullmatch(text)), "str")


def forget_text(value: Any) -> Any:
    """Numbers as plain ones, in lists and mappings too."""
    if isinstance(value, Whole):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Mapping):
        return {key: forget_text(part) for key, part in value.items()}
    return [forget_text(part) for part in value] if isinstance(value, list) else value


def fit_scalars(
    schema: core_schema.CoreSchema, handler: pydantic.GetCoreSchemaHandler
) -> core_schema.CoreSchema:
    """A validator's schema whose numbers, truth values and texts take what a file means by them.

    The classes that it refers to, whose schemas the handler knows, are changed in place.
    """
    return cast(core_schema.CoreSchema, _fit(schema, handler))


def _fit(schema: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
    if isinstance(schema, list | tuple):
        return type(schema)(_fit(part, handler) for part in schema)
    if not isinstance(schema, Mapping):
        return schema
    kind = str(schema.get("type"))
    if kind in _READERS:
        strict: Any = {**schema, "strict": True} if kind != "str" else schema
        return core_schema.no_info_before_validator_function(_READERS[kind], strict)
    if kind == "union" and not _NUMBERS.isdisjoint(part.get("type") for part in schema["choices"]):
        # A number beside text is a number.
        choices = [
            part if part.get("type") == "str" else _fit(part, handler) for part in schema["choices"]
        ]
        return {**schema, "choices": choices}
    if kind == "definition-ref":
        _fit_in_place(schema, handler)
        return schema
    return {key: _fit_parts(key, part, handler) for key, part in schema.items()}


def _fit_parts(key: str, part: Any, handler: pydantic.GetCoreSchemaHandler) -> Any:
    """Of a schema, what stands under a key: other schemas, or lists or mappings of them."""
    if key not in _SCHEMAS:
        return part
    if isinstance(part, Mapping) and key in ("fields", "choices"):
        return {name: _fit(each, handler) for name, each in part.items()}
    return _fit(part, handler)


def _fit_in_place(reference: Any, handler: pydantic.GetCoreSchemaHandler) -> None:
    try:
        schema: Any = handler.resolve_ref_schema(reference)
    except LookupError:  # a class that refers to itself: it is fitted where it is made
        return
    facts = schema.setdefault("metadata", {})
    if not facts.get(_FITTED):
        facts[_FITTED] = True  # first, for classes that refer to each other
        schema.update(_fit(dict(schema), handler))


def _read_quoted(value: Any) -> Any:
    """A number in quotes is one too; other text stays what it is, and is refused."""
    return value if type(value) is not str or len(value) > LONGEST_NUMBER else read_scalar(value)


def _read_whole(value: Any) -> Any:
    number = _read_quoted(value)
    if isinstance(number, float) and number.is_integer():
        return int(number)  # 1e3 is a whole number
    return number if isinstance(number, int) and not isinstance(number, bool) else value


def _read_real(value: Any) -> Any:
    number = _read_quoted(value)
    return number if isinstance(number, int | float) and not isinstance(number, bool) else value


def _read_text(value: Any) -> Any:
    return value.text if isinstance(value, Whole | Real) else value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "int": _read_whole,
    "float": _read_real,
    "bool": lambda value: value,
    "str": _read_text,
}
_NUMBERS = {"int", "float"}
_FITTED = "bitgrid_scalars_fitted"
_SCHEMAS = {
    *("schema", "items_schema", "keys_schema", "values_schema", "extras_schema"),
    *("fields", "choices", "steps"),
}
