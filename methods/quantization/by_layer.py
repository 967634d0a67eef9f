"""The layers of a model by their format, where that differs by layer.

Not here: such a format (`mixed`), what searches and roundings do with a group of layers.
"""

from __future__ import annotations

from collections.abc import Iterable

from methods.quantization.formats import Format, Grouped


def has_levels(format: Format) -> bool:
    """Whether any layer is rounded to levels of a range."""
    return any(isinstance(kind, Grouped) for kind in format.kinds())


def group_by_format(format: Format, layers: Iterable[str]) -> dict[Grouped, list[str]]:
    """The layers that have levels, by their format: each has its own groups."""
    groups: dict[Grouped, list[str]] = {}
    for name in layers:
        if isinstance(kind := format.of(name), Grouped):
            groups.setdefault(kind, []).append(name)
    return groups
