"""lm-eval's tasks that run what a model wrote: the one stage that has the sandbox.

A stage of its own, so that a change of the sandbox makes the scores of these tasks stale and no
others. Not here: the sandbox itself (`harness.evaluation.sandbox`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from harness.core.errors import GridError
from harness.core.stage import incidental
from harness.evaluation import sandbox
from harness.evaluation.lm_eval import LmEval
from harness.evaluation.scores import Scores


@dataclass(frozen=True)
class LmEvalCode(LmEval):
    """One lm-eval task whose answers are programs."""

    kind: ClassVar[str] = "lm-eval-code"
    version: ClassVar[int] = 6
    accept_weak_sandbox: bool = incidental(False)

    @property
    def run_tests(self) -> Callable[..., Any]:
        return sandbox.pass_at_k

    def preflight(self) -> None:
        self._check_sandbox()
        super().preflight()

    def run(self, work: Path) -> Scores:
        missing = self._check_sandbox()
        scores = super().run(work)
        if not missing:
            return scores
        told = f"; sandbox without {', '.join(missing)}"
        return replace(
            scores, rows=[replace(row, protocol=f"{row.protocol}{told}") for row in scores.rows]
        )

    def _check_sandbox(self) -> tuple[str, ...]:
        """The layers that this machine lacks. Raises GridError unless the grid accepts that."""
        missing = sandbox.find_missing_layers()
        if missing and not self.accept_weak_sandbox:
            raise GridError(
                f"task {self.task!r} runs code that a model wrote, and this machine's kernel "
                f"grants no namespaces for {', '.join(missing)}: files that everybody may read and "
                "unix sockets would be open; run it elsewhere, or accept that: "
                f"'evaluate: [{{{self.task}: {{accept_weak_sandbox: true}}}}]'"
            )
        return missing
