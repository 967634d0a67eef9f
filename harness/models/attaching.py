"""The stage that gives a model attachments. Not here: what they are and do (`attachments`)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from harness.core.stage import Input, Stage, added, closure, value
from harness.models.attachments import Attachment
from harness.models.model import Model


@dataclass(frozen=True)
class Attach(Stage[Model]):
    """The model that does this while it runs, after what it does already. `observed`: what the
    attachments have to know of it, as they asked for."""

    kind: ClassVar[str] = "attach"
    stored: ClassVar[bool] = False
    model: Input[Model]
    attachments: tuple[Attachment, ...]
    observed: Input[Any] | None = added(None)

    def run(self, work: Path) -> Model:
        if self.observed is None:
            return value(self.model).attach(*self.attachments)
        known = value(self.observed)
        return value(self.model).attach(*(each.told(known) for each in self.attachments))


def build_attached(model: Stage[Model], attachments: Iterable[Attachment]) -> Stage[Model]:
    """The stage of a model with all of them; one that has to know something of the model observes
    it with those before it, and is given in a stage of its own.

    Raises BitgridError where one lacks what it takes to observe.
    """
    together: tuple[Attachment, ...] = ()
    for each in attachments:
        before = Attach(model, together) if together else model
        if (observed := each.observe(before)) is None:
            together += (each,)
        else:
            model, together = Attach(before, (each,), observed), ()
    return Attach(model, together) if together else model


def find_attachments(model: Input[Model]) -> tuple[Attachment, ...]:
    """What a model will do while it runs, as far as stages of this kind say."""
    above = closure([model]) if isinstance(model, Stage) else ()
    return tuple(a for stage in above if isinstance(stage, Attach) for a in stage.attachments)
