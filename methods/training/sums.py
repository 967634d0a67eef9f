"""Several objectives that add up.

    objective: {name: sum, parts: [cakld, block-mse], weights: [1, 0.1]}

Each part has its own loss, the mean over label tokens as that part counts them, its own statistic
and its own sight: logits, or the states behind blocks. Not here: how a step takes several at once
(`step`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

from pydantic import Field
from torch import Tensor

from harness.core.errors import BitgridError, SettingError
from harness.core.stage import Input, Stage
from harness.data import Tokens
from harness.models import Model
from methods.training.objectives import Objective, Seen, Term, Untrained

Factor: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]


@dataclass(frozen=True)
class Sum(Objective):
    """Σ weight × the loss of each of the parts, as TSLD's paper adds cross-entropy to its own.

    A part of weight 0 is left out: 0 times an infinite loss would be NaN.
    """

    name = "sum"
    parts: tuple[Objective, ...]  # objectives that add up
    weights: tuple[Factor, ...]  # of the parts, in their order

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.weights) != len(self.parts):
            raise SettingError(
                f"{len(self.parts)} parts need as many weights, not {len(self.weights)}", "weights"
            )
        if not any(self.weights):
            raise SettingError("all weights are 0, so there is no loss", "weights")
        if any(isinstance(part, Untrained) for part in self.parts):
            raise SettingError("'none' has no loss; leave it out", "parts")

    @property
    def needs_teacher(self) -> bool:  # type: ignore[override]
        return any(term.objective.needs_teacher for term in self.list_terms())

    @property
    def title(self) -> str:
        """`cakld + 0.1 block-mse`."""
        pairs = zip(self.parts, self.weights, strict=True)
        return " + ".join(part.title if w == 1 else f"{w:g} {part.title}" for part, w in pairs if w)

    def list_terms(self, statistic: Any = None) -> tuple[Term, ...]:
        known = statistic or [None] * len(self.parts)
        return tuple(
            replace(term, weight=weight * term.weight)
            for part, weight, own in zip(self.parts, self.weights, known, strict=True)
            for term in (part.list_terms(own) if weight else ())
        )

    def build_statistic(self, teacher: Stage[Model], tokens: Stage[Tokens]) -> Stage[Any] | None:
        stages = tuple(
            part.build_statistic(teacher, tokens) if weight else None
            for part, weight in zip(self.parts, self.weights, strict=True)
        )
        return Statistics(stages) if any(stages) else None

    def token_losses(self, seen: Seen) -> Tensor:
        raise BitgridError(
            "a sum has no loss of a token: its parts weigh tokens each by themselves"
        )


@dataclass(frozen=True)
class Statistics(Stage[list[Any]]):
    """What the parts of a sum asked to know before training, in their order; None of the others."""

    kind: ClassVar[str] = "statistics"
    stored: ClassVar[bool] = False
    parts: tuple[Input[Any] | None, ...]

    def run(self, work: Path) -> list[Any]:
        return list(self.parts)
