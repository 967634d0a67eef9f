"""What a field may hold, read from its type.

Not here: whether what it was given fits (`checked`).
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any


def list_choices(hint: Any) -> Iterator[Any]:
    """The types that a type is one of, itself where there is no choice; constraints left out."""
    if typing.get_origin(hint) is typing.Annotated:
        yield from list_choices(typing.get_args(hint)[0])
    elif typing.get_origin(hint) in (typing.Union, types.UnionType):
        for choice in typing.get_args(hint):
            yield from list_choices(choice)
    else:
        yield hint


def find_items(hint: Any, number: int = 0) -> Any:
    """The type of an item of the list that a field may hold, by its number; None where of none."""
    for choice in list_choices(hint):
        if _is_kind(typing.get_origin(choice), (tuple, list)):
            items = [each for each in typing.get_args(choice) if each is not Ellipsis]
            return items[min(number, len(items) - 1)] if items else None
    return None


def find_values(hint: Any) -> Any:
    """The type of what is in the mapping that a field may hold; None where it holds none."""
    for choice in list_choices(hint):
        if _is_kind(typing.get_origin(choice), (Mapping,)):
            return typing.get_args(choice)[1]
    return None


def _is_kind(thing: object, kinds: tuple[type, ...]) -> bool:
    """Whether a thing is a class, and one of these kinds."""
    return isinstance(thing, type) and issubclass(thing, kinds)
