"""lm-eval's tasks that run what a model wrote: the one stage that has the sandbox.

A stage of its own, so that a change of the sandbox makes the scores of these tasks stale and no
others. Not here: the sandbox itself (`harness.evaluation.sandbox`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from harness.evaluation import sandbox
from harness.evaluation.lm_eval import LmEval


@dataclass(frozen=True)
class LmEvalCode(LmEval):
    """One lm-eval task whose answers are programs."""

    kind: ClassVar[str] = "lm-eval-code"
    version: ClassVar[int] = 4

    @property
    def run_tests(self) -> Callable[..., Any]:
        return sandbox.pass_at_k
