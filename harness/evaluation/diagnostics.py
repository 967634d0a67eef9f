"""What a report shows of a model's inside: `diagnose:` in a grid.

A diagnostic is a stage whose value is plain JSON, so that its figure needs no model.
Those of every method are registered, by a package with an entry point in the group
`bitgrid.diagnostics`:

    class Ranks(Diagnostic):
        about = "the rank of each layer"

        def stages(self, method, base, layers, seed, options):
            return (RanksOf(method.build(base, seed)),)

    register_diagnostic("ranks", Ranks())

Others are a method's own (`Method.diagnostics`). Not here: any diagnostic; the figures (`reports`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from harness.core.checked import Checked
from harness.core.registry import Registry, find_caller
from harness.core.stage import Stage
from harness.method import Method
from harness.models import Model

Facts: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class NoOptions(Checked):
    """Of a diagnostic that a grid can say nothing of but its name."""


class Diagnostic(ABC):
    """What is looked at of every method's models."""

    about: str  # a line for lists
    options: type = NoOptions  # a dataclass: what a grid may say beside the name

    @abstractmethod
    def stages(
        self,
        method: Method,
        base: Stage[Model],
        layers: Mapping[str, tuple[int, int]],
        seed: int,
        options: Any,
    ) -> tuple[Stage[Facts], ...]:
        """The stages for what the method makes of `base`; each value has a `diagnostic`; a field
        `step` of the stage names the step of the method.

        `layers`: (O, I) of each linear layer, by name. Raises GridError where options do not fit.
        """


DIAGNOSTICS: Registry[Diagnostic] = Registry("diagnostic", "bitgrid.diagnostics")


def register_diagnostic(name: str, diagnostic: Diagnostic) -> None:
    """Make a diagnostic known as `name`. Raises CollisionError where another one has the name."""
    DIAGNOSTICS.register(name, diagnostic, find_caller())


def find_options(name: str) -> type:
    """The options of a diagnostic; a method's own has none."""
    diagnostic = DIAGNOSTICS.load().get(name)
    return NoOptions if diagnostic is None else diagnostic.options


def build_diagnostics(
    asked: Mapping[str, Any],
    method: Method,
    base: Stage[Model],
    layers: Mapping[str, tuple[int, int]],
    seed: int,
) -> dict[str, tuple[Stage[Facts], ...]]:
    """The stages of the diagnostics asked for, options by name, and of all that the method has.

    Raises GridError where options do not fit the model.
    """
    registered = DIAGNOSTICS.load()
    stages = {
        name: registered[name].stages(method, base, layers, seed, options)
        for name, options in asked.items()
        if name in registered
    }
    return {**stages, **method.diagnostics(base, seed)}
