"""A part of a method that a grid chooses by name: a format, an init, an objective, a source of data.

    class Objective(Component, family="objective"):      # a family: one kind of part
        ...

    @dataclass(frozen=True)
    class KL(Objective):                                 # a member, `objective: kl` in a grid
        name = "kl"

A component's identity is what it declares: its family and its name in it. Keys are made of these, so
that a class can be renamed and its file moved and nothing is computed anew. Not here: how a grid's
settings become components (`harness.config.settings`), what goes into a key (`stage`).
"""

from __future__ import annotations

import sys
from abc import ABC
from typing import ClassVar, Self

from harness.core.errors import BitgridError, CollisionError

_members: dict[str, dict[str, type[Component]]] = {}  # by family and name


class Component(ABC):
    """Base of the families. A member is a frozen dataclass with a class attribute `name`.

    Defining it makes it selectable. A class that claims a name which another class of the family
    has raises CollisionError, which names both files; the same class of the same file may be defined
    again, as a reload does, and `dataclass(slots=True)`.
    """

    name: ClassVar[str]
    _family: ClassVar[str]

    def __init_subclass__(cls, family: str | None = None) -> None:
        super().__init_subclass__()
        if family is not None:
            cls._family = family
        if not hasattr(cls, "_family"):
            raise BitgridError(
                f"{_describe(cls)}: a class right under Component names its family: "
                f'class {cls.__name__}(Component, family="…")'
            )
        if "name" in vars(cls):
            cls.claim(cls.name)

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

    @classmethod
    def family_name(cls) -> str:
        """The declared name of the family."""
        return cls._family

    @classmethod
    def identity_name(cls) -> str:
        """Family and name, as keys hold them: `objective/kl`.

        Raises BitgridError for a class that has no name of its own: under an inherited one its
        values would be taken for those of the class that it derives from.
        """
        if "name" not in vars(cls):
            raise BitgridError(f"{_describe(cls)}: give it a `name` of its own in {cls._family!r}")
        return f"{cls._family}/{cls.name}"

    @classmethod
    def choices(cls) -> dict[str, type[Self]]:
        """The classes that are or derive from this one, by name."""
        members = _members.get(cls._family, {})
        return {name: member for name, member in members.items() if issubclass(member, cls)}

    @classmethod
    def siblings(cls) -> dict[str, type[Component]]:
        """All classes of the family, by name."""
        return dict(_members.get(cls._family, {}))


def _source(cls: type) -> tuple[str, str]:
    """What makes a class the same one when its module is run again: its file and its place there."""
    module = sys.modules.get(cls.__module__)
    return getattr(module, "__file__", None) or cls.__module__, cls.__qualname__


def _describe(cls: type) -> str:
    file, name = _source(cls)
    return f"{name} in {file}"
