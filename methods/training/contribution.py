"""Which tokens a loss comes from: the objective by the teacher's confidence, `diagnose:
[confidence]`.

CAKLD is built on the claim that divergence should be sought otherwise where the teacher is sure;
this shows where it is found. Not here: the figure (`reports`), the mean confidence (`confidence`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from harness.core.stage import Input, Resources, Stage, incidental, report, value
from harness.data import Tokens
from harness.models import Model, host_gib, run_finite, run_trunk
from methods.training.confidence import CONFIDENCE_TOKENS, sample_rows
from methods.training.forward import Labels, run_head, split_tokens, token_nll
from methods.training.objectives import Objective, TokenLogits

BINS = 20  # of equal width, from probability 0 to 1


@dataclass(frozen=True)
class Contribution(Stage[dict[str, Any]]):
    """The objective on `sequences` of the training data, by the teacher's probability of the label.

    tokens: labels a bin; loss: the sum of their losses, each times its weight, over the total
    weight, so that the bins add up to the mean loss; unbounded: labels whose loss is not finite,
    left out. `student` is a rounded model: what training starts from, or what it ends with.
    """

    kind: ClassVar[str] = "contribution"
    teacher: Input[Model]
    student: Input[Model]
    tokens: Input[Tokens]
    objective: Objective
    statistic: Input[float] | None
    sequences: int = 64
    step: str = incidental("")  # what the method did before, as a figure calls it

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.student), hours=0.2)

    def run(self, work: Path) -> dict[str, Any]:
        tokens = value(self.tokens)
        rows = sample_rows(tokens, self.sequences)
        counts, sums = torch.zeros(BINS, dtype=torch.int64), torch.zeros(BINS, dtype=torch.float64)
        total, unbounded = 0.0, 0
        for row_chunk in rows.split(max(1, CONFIDENCE_TOKENS // tokens.ids.shape[1])):
            measure = partial(self._measure, tokens.ids[row_chunk], tokens.mask[row_chunk])
            sure, losses, weights = run_finite(
                value(self.teacher), partial(run_finite, value(self.student), measure)
            )
            finite = losses.isfinite()
            unbounded += int((~finite).sum())
            bins = (sure[finite] * BINS).long().clamp(max=BINS - 1)
            counts += torch.bincount(bins, minlength=BINS)
            part = (losses * weights)[finite].double()
            sums += torch.bincount(bins, weights=part, minlength=BINS)
            total += float(weights[finite].double().sum())
            report(int(row_chunk[-1]) + 1, len(tokens))
        return {
            "diagnostic": "confidence",
            "objective": self.objective.name,
            "tokens": counts.tolist(),
            "loss": [float(f"{part:.6g}") for part in (sums / max(total, 1e-300)).tolist()],
            "unbounded": unbounded,
        }

    @torch.no_grad()
    def _measure(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) each: the teacher's probability of the label, the token's loss, and its weight."""
        teacher, student = value(self.teacher), value(self.student)
        statistic = None if self.statistic is None else value(self.statistic)
        ids, mask = ids.to(student.device), mask.to(student.device)
        labels = Labels.of(ids, mask)
        teacher_states = labels.pick(run_trunk(teacher.network, ids))
        states = labels.pick(run_trunk(student.network, ids))
        nll = torch.zeros(len(states), device=states.device)
        losses = torch.zeros_like(nll)
        for part in split_tokens(len(states), student.vocabulary, states.device):
            target = run_head(teacher.network, teacher_states[part])
            nll[part] = token_nll(target, labels.ids[part])
            logits = TokenLogits(
                run_head(student.network, states[part]),
                target if self.objective.needs_teacher else None,
                labels.ids[part],
                statistic,
            )
            losses[part] = self.objective.compute_losses(logits).float()
        weights = torch.ones_like(losses)
        if self.objective.weighted:
            weights = self.objective.compute_weights(labels.spread(nll), labels.where)[labels.where]
        return nll.neg().exp().cpu(), losses.cpu(), weights.cpu()
