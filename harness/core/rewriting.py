"""Graphs of stages in which some stages are replaced.

    root = rewrite(root, lambda stage: redraw(stage, seeds))

Not here: what is replaced (`seeds`, `halting`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar, cast

from harness.core.stage import Stage

T = TypeVar("T")


def rewrite(root: Stage[T], change: Callable[[Stage[Any]], Stage[Any]]) -> Stage[T]:
    """The graph with `change` of each stage, which is given it on its new inputs. Where nothing
    changes, it is the graph itself."""
    changed: dict[str, Stage[Any]] = {}

    def visit(stage: Stage[Any]) -> Stage[Any]:
        if stage.key not in changed:
            changed[stage.key] = change(_replace_inputs(stage, visit))
        return changed[stage.key]

    return cast(Stage[T], visit(root))


def _replace_inputs(stage: Stage[T], replace: Callable[[Stage[Any]], Stage[Any]]) -> Stage[T]:
    """The stage on other inputs; itself where they are the same."""

    def swap(held: Any) -> Any:
        if isinstance(held, tuple):
            swapped = tuple(map(swap, held))
            return held if all(a is b for a, b in zip(held, swapped, strict=True)) else swapped
        return replace(held) if isinstance(held, Stage) else held

    held = {field.name: getattr(stage, field.name) for field in dataclasses.fields(stage)}
    changed = {name: new for name, each in held.items() if (new := swap(each)) is not each}
    return dataclasses.replace(stage, **changed) if changed else stage
