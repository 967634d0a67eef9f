"""What lies inside of a value that is part of an identity: of tuples, mappings, dataclasses.

Not here: which of it are stages (`stage`), what it is in a key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from harness.core.frozen import FrozenMapping

SCALARS = frozenset({int, float, str, bool, type(None)})
"""What holds nothing, and is JSON as it is."""


def list_parts(thing: object) -> Iterator[object]:
    """What a thing holds at once, in order, without numbers and text, which hold nothing."""
    held: Iterable[object] = ()
    if isinstance(thing, tuple | list):
        held = thing
    elif isinstance(thing, FrozenMapping):
        held = thing.values()
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        held = (getattr(thing, name) for name in _list_fields(type(thing)))
    return (part for part in held if type(part) not in SCALARS)


@cache
def _list_fields(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


@cache
def list_keyed(cls: Any) -> tuple[tuple[str, Callable[[Any], bool] | None], ...]:
    """The fields of a dataclass, each with what says whether it is part of a key; None: it is."""
    return tuple((field.name, field.metadata.get("keyed")) for field in dataclasses.fields(cls))
