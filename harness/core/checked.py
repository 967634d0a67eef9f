"""Frozen dataclasses whose fields are checked, by their types, whenever one is made.

    @dataclass(frozen=True)
    class Training(Checked):
        steps: PositiveInt | None = None             # pydantic's types are the constraints
        betas: tuple[Fraction, Fraction] = (0.9, 0.999)
        schedule: Literal["constant", "cosine"] = "constant"

    Training(steps=0)                                # SettingError: steps: 0 should be more than 0

The same types check what a grid says (`harness.config.settings`) and give editors their schema, so
a constraint is written once, as a type. One over several fields is a `__post_init__` that calls
this one's first and raises SettingError. Not here: the words of a complaint (`misfit`).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, TypeAlias

import pydantic
import typing_extensions
from pydantic_core import core_schema

from harness.core.errors import SettingError
from harness.core.frozen import freeze
from harness.core.misfit import explain
from harness.core.scalars import fit_scalars

# How many of something. What nobody has so many of is a slip of the pen, and refused as one.
Count: TypeAlias = Annotated[int, pydantic.Field(ge=1, le=100_000_000)]
CountOrNone: TypeAlias = Annotated[int, pydantic.Field(ge=0, le=100_000_000)]
Seed: TypeAlias = Annotated[int, pydantic.Field(ge=-(2**63), lt=2**63)]  # as generators take


class AsWritten:
    """A base of classes whose scalars are read as a file means them: see `fit_scalars`."""

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return fit_scalars(handler(source), handler)


class Checked(AsWritten):
    """Base of such dataclasses. A value is of its field's type afterwards: 1 is 1.0 in a float.

    A mapping is one that keeps its order and has a hash (`harness.core.frozen`).
    """

    __pydantic_config__: ClassVar[pydantic.ConfigDict] = pydantic.ConfigDict(
        extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    def __post_init__(self) -> None:
        """Raises SettingError for a value that does not fit its field."""
        cls: Any = type(self)
        values = {name: getattr(self, name) for name in field_types(cls)}
        for name, value in fit_fields(cls, values).items():
            object.__setattr__(self, name, freeze(value))


def make_adapter(kind: Any) -> pydantic.TypeAdapter[Any]:
    """Validates data of a file as a `kind`: scalars are read as the file means them."""
    annotated: Any = Annotated[kind, AsWritten]
    return pydantic.TypeAdapter(annotated)


def fit_fields(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `cls` as their types want them. Raises SettingError with the dotted path."""
    return _fit(fields_adapter(cls), data, "")


def fit_field(cls: Any, name: str, value: object, prefix: str = "") -> Any:
    """One field of a `cls`, whatever the others are. Raises SettingError, `prefix` in its path."""
    return _fit(_field_adapter(cls, name), {name: value}, prefix)[name]


def _fit(adapter: pydantic.TypeAdapter[Any], data: Mapping[str, Any], prefix: str) -> Any:
    try:
        return adapter.validate_python(data)
    except pydantic.ValidationError as error:
        wrong = explain(error, data, prefix=prefix)
        path = ".".join(part for part in (prefix, wrong.path) if part)
        raise SettingError(wrong.message, path) from None


def forget_adapters() -> None:
    """For when there is one more class that a field may hold."""
    fields_adapter.cache_clear()
    _field_adapter.cache_clear()


@cache
def field_types(cls: Any) -> Mapping[str, Any]:
    """The types of the fields that a dataclass is made of, with their constraints."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


@cache
def fields_adapter(cls: Any) -> pydantic.TypeAdapter[dict[str, Any]]:
    """Validates the fields of a dataclass without making one."""
    return _make_adapter(cls, field_types(cls))


@cache
def _field_adapter(cls: Any, name: str) -> pydantic.TypeAdapter[dict[str, Any]]:
    return _make_adapter(cls, {name: field_types(cls)[name]})


def _make_adapter(cls: Any, types: Mapping[str, Any]) -> pydantic.TypeAdapter[dict[str, Any]]:
    make_type: Any = typing_extensions.TypedDict
    fields = make_type(f"{cls.__name__}Fields", dict(types))
    fields.__pydantic_config__ = Checked.__pydantic_config__
    return make_adapter(fields)
