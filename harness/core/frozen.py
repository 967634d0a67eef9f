"""A mapping that can be part of an identity: it keeps its order, never changes, and has a hash.

    layers = FrozenMapping({"*.down_proj": IntAsym(4), "*": IntAsym(2)})

Order is part of it, as it is where the first key that matches wins: two with the same entries in
another order are not equal, and have other keys. Not here: who makes one of what a file says
(`checked`), what it is in a key (`stage`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

V = TypeVar("V", covariant=True)


class FrozenMapping(Mapping[str, V]):
    """Its values are hashed and compared as they are: they should be immutable too."""

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, V] | Iterable[tuple[str, V]] = ()) -> None:
        self._entries: dict[str, V] = dict(entries)

    def __getitem__(self, key: str) -> V:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrozenMapping):
            return NotImplemented
        return [*self._entries.items()] == [*other._entries.items()]

    def __hash__(self) -> int:
        return hash(tuple(self._entries.items()))

    def __repr__(self) -> str:
        return repr(self._entries)


def freeze(value: Any) -> Any:
    """`value` with frozen mappings for mappings, in tuples and mappings too."""
    if isinstance(value, FrozenMapping):
        return value
    if isinstance(value, Mapping):
        return FrozenMapping({str(key): freeze(part) for key, part in value.items()})
    return tuple(map(freeze, value)) if type(value) is tuple else value
