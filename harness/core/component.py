"""A part of a method that a grid chooses by name: a format, an init, an objective.

    class Objective(Component, family="objective"):      # a family: one kind of part
        ...

    @dataclass(frozen=True)
    class KL(Objective):                                 # a member, `objective: kl` in a grid
        name = "kl"

A component's identity is what it declares: its family and its name in it. Keys are made of these,
so that a class can be renamed and its file moved and nothing is computed anew. Not here: how a
grid's settings become components (`harness.config.settings`), what goes into a key (`stage`).
"""

from __future__ import annotations

import dataclasses
import sys
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Annotated, Any, ClassVar, Self, TypeAlias, TypeVar, cast

import pydantic
from pydantic_core import core_schema

from harness.core.checked import Checked, field_types, forget_adapters
from harness.core.declared import check_body, check_class
from harness.core.errors import BitgridError, CollisionError, SettingError, nearest
from harness.core.frozen import FrozenMapping, freeze
from harness.core.scalars import fit_scalars, forget_text

C = TypeVar("C")

_members: dict[str, dict[str, type[Component]]] = {}  # by family and name
# Whose schema is being made: as one of several, and as a choice of several.
_choice: ContextVar[type[Component] | None] = ContextVar("choice", default=None)
_choosing: ContextVar[tuple[type[Component], ...]] = ContextVar("choosing", default=())


class Component(Checked, ABC):
    """Base of the families. A member is a frozen dataclass with a class attribute `name`.

    Defining it makes it selectable. A class that claims a name which another class of the family
    has raises CollisionError, which names both files; the same class of the same file may be
    defined again, as a reload does, and `dataclass(slots=True)`.
    """

    name: ClassVar[str]
    # A field of the own family that takes the place of the component which this one replaces in a
    # grid: what is said of the family in general, and this one lacks, is said of that one.
    stands_in: ClassVar[str | None] = None
    # Only training makes it what it is: it is checked in a method that trains.
    needs_training: ClassVar[bool] = False
    _family: ClassVar[str]

    @property
    def revision(self) -> int:
        """Raised by hand when what these fields give changes, as a stage's `version`, for those
        fields alone; no part of a key at 1."""
        return 1

    def __init_subclass__(cls, family: str | None = None) -> None:
        super().__init_subclass__()
        if family is not None:
            cls._family = family
        if not hasattr(cls, "_family"):
            raise BitgridError(
                f"{_describe(cls)}: a class right under Component names its family: "
                f'class {cls.__name__}(Component, family="…")'
            )
        check_body(cls)
        if "name" in vars(cls):
            cls.claim(cls.name)

    def __new__(cls, *values: object, **named: object) -> Self:
        """Raises BitgridError, with file and line, where the class itself has a fault."""
        check_class(cls)
        return super().__new__(cls)

    @classmethod
    def claim(cls, name: str) -> None:
        """Be called `name` in the family. Raises CollisionError where another class is."""
        members = _members.setdefault(cls._family, {})
        holder = members.get(name, cls)
        if _source(holder) != _source(cls):
            raise CollisionError(
                f"{cls._family} {name!r} is defined twice: {_describe(holder)}, {_describe(cls)}"
            )
        cls.name = name
        members[name] = cls
        forget_adapters()

    @classmethod
    def family_name(cls) -> str:
        """The declared name of the family."""
        return cls._family

    @classmethod
    def own_name(cls) -> str:
        """The name in the family.

        Raises BitgridError for a class that has none of its own: under an inherited one its values
        would be taken for those of the class that it derives from.
        """
        if "name" not in vars(cls):
            raise BitgridError(f"{_describe(cls)}: give it a `name` of its own in {cls._family!r}")
        return cls.name

    @classmethod
    def identity_name(cls) -> str:
        """Family and name, as keys hold them: `objective/kl`. Raises BitgridError as `own_name`."""
        return f"{cls._family}/{cls.own_name()}"

    def declare_identity(self) -> dict[str, Any]:
        """What keys hold beside the fields: the name, and a revision above 1."""
        revised = {"revision": self.revision} if self.revision > 1 else {}
        return {"component": self.identity_name(), **revised}

    @staticmethod
    def called(identity: str) -> type[Component]:
        """The class of an `identity_name`. Raises BitgridError where no module defines it."""
        family, _, name = identity.partition("/")
        if name not in _members.get(family, {}):
            raise BitgridError(
                f"{family} {name!r} is unknown; {nearest(name, _members.get(family, {}))}"
            )
        return _members[family][name]

    @classmethod
    def choices(cls) -> dict[str, type[Self]]:
        """The classes that are or derive from this one, by name."""
        members = _members.get(cls._family, {})
        return {name: member for name, member in members.items() if issubclass(member, cls)}

    @classmethod
    def find(cls, name: object) -> type[Self]:
        """The choice called `name`. Raises SettingError with the nearest one."""
        choices = cls.choices()
        if not isinstance(name, str) or name not in choices:
            raise SettingError(f"{name!r} is unknown; {nearest(name, choices)}")
        return choices[name]

    @classmethod
    def is_chosen_by_name(cls) -> bool:
        """Whether a field of this class may hold a member of another one."""
        return cls.choices() != {vars(cls).get("name"): cls}

    @classmethod
    def siblings(cls) -> dict[str, type[Component]]:
        """All classes of the family, by name."""
        return dict(_members.get(cls._family, {}))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """A member, or a mapping of its fields, and of its name where there is a choice.

        A choice inside of itself, as of a format whose field is a format, is a reference to it.
        """
        if _choice.get() is cls or not cls.is_chosen_by_name():
            token = _choice.set(None)
            try:
                return fit_scalars(handler(source), handler)
            finally:
                _choice.reset(token)
        reference = f"{cls.__module__}.{cls.__qualname__}Choice:{id(cls)}"
        if cls in _choosing.get():
            return core_schema.definition_reference_schema(reference)
        token_above = _choosing.set((*_choosing.get(), cls))
        try:
            fields = {
                name: _without_name(cls._make_member_schema(member, source, handler))
                for name, member in cls.choices().items()
            }
        finally:
            _choosing.reset(token_above)
        if not fields:
            return core_schema.is_instance_schema(cls)
        union = core_schema.tagged_union_schema(fields, discriminator="name")
        return core_schema.no_info_wrap_validator_function(cls._choose, union, ref=reference)

    @classmethod
    def _make_member_schema(
        cls, member: type[Component], source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        token = _choice.set(None if member is cls else member)
        try:
            if member is cls:  # asked for by its name, it would be a choice again
                return fit_scalars(handler(source), handler)
            return handler.generate_schema(member)
        finally:
            _choice.reset(token)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """For editors, what a grid may say: a name, or a mapping which may leave out the name."""
        written = handler.resolve_ref_schema(handler(schema))
        if "oneOf" in written:
            return {"anyOf": [{"enum": sorted(cls.choices())}, *written["oneOf"]]}
        if "properties" in written:
            written["properties"]["name"] = {"const": cls.own_name()}
        return written

    @classmethod
    def _choose(cls, choice: Any, validate: Callable[[Any], Any]) -> Any:
        if isinstance(choice, cls):
            return choice
        data = choice if isinstance(choice, Mapping) else {"name": choice}
        if "name" not in data:
            names = ", ".join(sorted(cls.choices()))
            raise ValueError(f"there is none yet: give its 'name', of {names}")
        cls.find(data["name"])
        try:
            return validate(data)
        except SettingError:  # with the path of what does not fit
            raise
        except BitgridError as error:  # of several fields that do not fit each other
            raise ValueError(str(error)) from error


class Changes(FrozenMapping[Any]):
    """What a grid says of a component without naming it: the fields in which it differs from
    another one, which whoever holds the changes has."""

    def apply(self, to: C) -> C:
        """The other one with these fields. Raises SettingError where it has no such field, or does
        not take the value."""
        cls: Any = type(to)
        names = field_types(cls)
        for name in self:
            if name not in names:
                kind = getattr(to, "name", cls.__name__)
                raise SettingError(f"{kind!r} has no such field; {nearest(name, names)}", name)
        changed: Any = to
        return cast(C, dataclasses.replace(changed, **self))

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._read)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "object", "not": {"required": ["name"]}}

    @classmethod
    def _read(cls, value: Any) -> Changes:
        if isinstance(value, Changes):
            return value
        if not isinstance(value, Mapping) or "name" in value:
            raise ValueError("should be a mapping of fields")
        return cls(forget_text(freeze(value)))


class _OneOrMore:
    """One thing stands for a list of one."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: pydantic.GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(
            lambda value: value if isinstance(value, list | tuple) else (value,), handler(source)
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        several = handler(schema)
        return {"anyOf": [several["items"], several]}


Several: TypeAlias = Annotated[tuple[C, ...], _OneOrMore()]
"""A field of a list of components, of which a grid may give one alone: `init: clip`."""


def _without_name(schema: core_schema.CoreSchema) -> core_schema.CoreSchema:
    """`schema` of a member's fields, for data that has the name too."""
    return core_schema.no_info_before_validator_function(
        lambda data: {key: part for key, part in data.items() if key != "name"}, schema
    )


def _source(cls: type) -> tuple[str, str]:
    """What makes a class the same one when its module is run again."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or cls.__module__, cls.__qualname__


def _describe(cls: type) -> str:
    file, name = _source(cls)
    return f"{name} in {file}"


def find_named(name: str, identities: Iterable[str]) -> list[str]:
    """Those of some identities that are called so: `init/clip`, or `clip` of every family."""
    return [each for each in identities if name in (each, each.partition("/")[2])]
