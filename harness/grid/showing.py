"""The value of an axis as tables show it.

Not here: what a value means to a method (`harness.config.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.component import Component
from harness.core.scalars import forget_text


def show_setting(value: Any, held: object) -> Any:
    """An axis value, which a method now holds, as tables show it: `{name: nf, bits: 3}` -> `nf
    bits=3`. Text is what it was in the file, a number what it is worth."""
    if isinstance(value, Mapping):
        name = [str(value["name"])] if "name" in value else []
        parts = {k: _show_part(v, _find_part(held, k)) for k, v in value.items() if k != "name"}
        return " ".join(name + [f"{k}={part}" for k, part in parts.items()])
    members = held if isinstance(held, tuple) else ()
    if isinstance(value, list) and any(isinstance(each, Component) for each in members):
        return " + ".join(map(str, map(show_setting, value, members)))
    return " ".join(held.split()) if isinstance(held, str) else forget_text(value)


def _show_part(value: Any, held: object) -> Any:
    """A value inside of another one: what has parts of its own is in parentheses."""
    shown = show_setting(value, held)
    return f"({shown})" if isinstance(value, Mapping) or " + " in str(shown) else shown


def _find_part(held: object, name: str) -> object:
    return held.get(name) if isinstance(held, Mapping) else getattr(held, name, None)
