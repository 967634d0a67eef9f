"""What a grid may `evaluate`, by name: perplexities, lm-eval's tasks, and what others register.

    @dataclass(frozen=True)
    class Rhymes(Evaluation):
        name = "rhymes"
        about = "share of lines that rhyme"

        def stage(self, model, options, base):
            return ScoredRhymes(model)               # a Stage[Scores]

    register_evaluation(Rhymes())

by a package with an entry point in the group `bitgrid.evaluations`. Tasks that are too many to be
registered one by one come from a `Catalogue`. Not here: any evaluation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic

from harness.core.checked import Checked, make_adapter
from harness.core.errors import GridError, nearest
from harness.core.misfit import explain
from harness.core.registry import Registry, find_caller
from harness.core.stage import Stage
from harness.data.sources import TEXTS
from harness.evaluation.scores import Scores
from harness.models import Model, Pretrained


@dataclass(frozen=True)
class LimitOnly(Checked):
    """What a grid may say of an evaluation that says nothing else."""

    limit: Annotated[int, pydantic.Field(gt=0, le=100_000_000)] | None = None  # items


class Evaluation(ABC):
    """One thing that a grid may evaluate. Properties may be plain attributes of a subclass."""

    name: str

    @property
    @abstractmethod
    def about(self) -> str:
        """A line for `bitgrid tasks`."""

    @property
    def options(self) -> type:
        """A dataclass: what a grid may say beside the name."""
        return LimitOnly

    @property
    def higher_is_better(self) -> bool:
        """Of its primary metric."""
        return True

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that its rows name: of a group of tasks its members too."""
        return (self.name,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those of `tasks` that a table may show."""
        return (self.name,)

    @property
    def runs_code(self) -> bool:
        """Whether scoring means running what the model wrote."""
        return False

    def check(self, options: Any, base: Pretrained) -> None:
        """Raise a BitgridError where a published model cannot do it, whatever is made of it."""
        return

    @abstractmethod
    def stage(self, model: Stage[Model], options: Any, base: Pretrained | None) -> Stage[Scores]:
        """The stage that scores `model`. Raises a BitgridError where what it reads is not there.

        `base` is the published model behind `model`, for what must be known of every score of it.
        """

    def uses(self) -> tuple[Callable[..., Any] | type, ...]:
        """Functions behind the scores that the stage finds by name rather than by an import."""
        return ()


class Catalogue(ABC):
    """Evaluations by name that are made when they are asked for."""

    about: str
    is_short: bool = False  # whether its names are few and known at once, so that editors list them

    @abstractmethod
    def find(self, name: str) -> Evaluation | None:
        """The evaluation called `name`, or None. Raises GridError for a name that misleads."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """All names; may take seconds."""


EVALUATIONS: Registry[Evaluation] = Registry("task", "bitgrid.evaluations")
CATALOGUES: Registry[Catalogue] = Registry("catalogue of tasks", "bitgrid.evaluations")


def register_evaluation(evaluation: Evaluation) -> None:
    """Make an evaluation known by its name. Raises CollisionError where another one has it."""
    EVALUATIONS.register(evaluation.name, evaluation, find_caller())


def register_catalogue(name: str, catalogue: Catalogue) -> None:
    """Make a catalogue's evaluations known. Names that are registered one by one go before."""
    CATALOGUES.register(name, catalogue, find_caller())


def find_evaluation(name: str) -> Evaluation:
    """The evaluation called `name`. Raises GridError with the nearest name, or with the reason."""
    registered = EVALUATIONS.load()
    if name in registered or name in EVALUATIONS.unavailable():
        return EVALUATIONS.find(name)
    catalogues = CATALOGUES.load().values()
    for catalogue in catalogues:
        if (evaluation := catalogue.find(name)) is not None:
            return evaluation
    if name.partition(":")[0] in TEXTS.load():
        lower = ", ".join(name for name, each in registered.items() if not each.higher_is_better)
        raise GridError(f"{name!r} is a text, not a task; perplexities: {lower}")
    known = {*registered, *(name for catalogue in catalogues for name in catalogue.names())}
    raise GridError(f"task {name!r} is unknown; {nearest(name, known)}")


def build_evaluation(
    model: Stage[Model], name: str, base: Pretrained | None = None, **options: object
) -> Stage[Scores]:
    """The stage that scores `model` on a task by name, with options as a grid has them.

    What `base`, the published model behind `model`, cannot do is an error now, and not when it has
    been quantised. Raises a BitgridError, of the kind of what does not fit.
    """
    evaluation = find_evaluation(name)
    kind = evaluation.options
    try:
        fitted: Any = make_adapter(kind).validate_python(options)
    except pydantic.ValidationError as error:
        raise GridError(explain(error, options, {"": kind}, name).message) from None
    if base is not None:
        evaluation.check(fitted, base)
    return evaluation.stage(model, fitted, base)
