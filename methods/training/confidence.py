"""The teacher's confidence on the training data: CAKLD's γ, a stage that cells share.

Not here: the objective that it weighs (`objectives`), where its divergence is found
(`contribution`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from harness.core.errors import TextError
from harness.core.stage import Input, Resources, Stage, report, value
from harness.data import Tokens, count_asked
from harness.models import Model, Pass, host_gib, list_passes, run_finite
from methods.training.forward import Labels, log_probabilities, measure_labels, token_nll

Meaning: TypeAlias = Literal["label", "max"]
CONFIDENCE_TOKENS = 16_384  # a batch, where the teacher's confidence is measured


@dataclass(frozen=True)
class Confidence(Stage[float]):
    """The teacher's mean confidence over label tokens: CAKLD's γ.

    `label`: the probability of the label, as in the paper. `max`: of the likeliest token, as in the
    published code. Measured on `sequences` of the data, evenly spread over it.
    """

    kind: ClassVar[str] = "confidence"
    teacher: Input[Model]
    tokens: Input[Tokens]
    meaning: Meaning = "label"
    sequences: int = 256

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.teacher, 16.0), hours=1.0)

    def run(self, work: Path) -> float:
        teacher, tokens = value(self.teacher), value(self.tokens)
        rows = sample_rows(tokens, self.sequences)
        batch = max(1, CONFIDENCE_TOKENS // tokens.ids.shape[1])
        total, labels = 0.0, 0
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            ids, mask = (t[chosen].to(teacher.device) for t in (tokens.ids, tokens.mask))
            measured = run_finite(
                teacher,
                partial(measure_labels, teacher.network, ids, Labels.of(ids, mask), self._measure),
            )
            total, labels = total + float(measured.double().sum()), labels + len(measured)
            report(start + len(chosen), len(rows))
        if labels == 0:
            raise TextError("the training data have no label tokens to measure confidence on")
        return total / labels

    def _measure(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.meaning == "label":
            return token_nll(logits, labels).neg().exp()
        return log_probabilities(logits).amax(-1).exp()


@list_passes.register
def _of_confidence(stage: Confidence) -> tuple[Pass, ...]:
    assert isinstance(stage.teacher, Stage)
    count, length = count_asked(stage.tokens) or (0, 0)
    return (Pass(stage.teacher, min(stage.sequences, count) * length, "read"),)


def sample_rows(tokens: Tokens, count: int) -> Tensor:
    """The rows of `count` sequences (all, where there are fewer), evenly spread over the data."""
    return torch.linspace(0, len(tokens) - 1, min(count, len(tokens))).round().long()
