"""What a grid may say beside the name of a task of lm-eval."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from harness.core.checked import Checked


@dataclass(frozen=True)
class LmEvalOptions(Checked):
    """What a grid may say of a task of lm-eval."""

    limit: Annotated[int, Field(gt=0, le=100_000_000)] | None = None  # items
    num_fewshot: Annotated[int, Field(ge=0, le=1000)] | None = None
    bos: bool | None = None  # before each prompt; default: no, as the papers do


@dataclass(frozen=True)
class LmEvalCodeOptions(LmEvalOptions):
    """What it may say of a task that runs code."""

    accept_weak_sandbox: bool = False  # run code where the kernel grants no namespaces
