"""The stage that gives a model attachments. Not here: what they are and do (`attachments`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.core.stage import Input, Stage, closure, value
from harness.models.attachments import Attachment
from harness.models.model import Model


@dataclass(frozen=True)
class Attach(Stage[Model]):
    """The model that does this while it runs, after what it does already."""

    kind: ClassVar[str] = "attach"
    stored: ClassVar[bool] = False
    model: Input[Model]
    attachments: tuple[Attachment, ...]

    def run(self, work: Path) -> Model:
        return value(self.model).attach(*self.attachments)


def find_attachments(model: Input[Model]) -> tuple[Attachment, ...]:
    """What a model will do while it runs, as far as stages of this kind say."""
    above = closure([model]) if isinstance(model, Stage) else ()
    return tuple(a for stage in above if isinstance(stage, Attach) for a in stage.attachments)
