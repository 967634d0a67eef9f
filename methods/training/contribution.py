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
from harness.models import Model, host_gib, run_finite
from methods.training.confidence import CONFIDENCE_TOKENS, sample_rows
from methods.training.forward import (
    Labels,
    run_head,
    run_watched,
    split_rows,
    split_states,
    token_entropy,
    token_nll,
)
from methods.training.objectives import (
    BlockStates,
    Objective,
    Seen,
    Term,
    TokenLogits,
    weigh_terms,
    weigh_tokens,
)

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
    statistic: Input[Any] | None
    sequences: int = 64
    step: str = incidental("")  # what the method did before, as a figure calls it

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.student), hours=0.2)

    def run(self, work: Path) -> dict[str, Any]:
        tokens, terms = value(self.tokens), self._list_terms()
        rows = sample_rows(tokens, self.sequences)
        counts = torch.zeros(BINS, dtype=torch.int64)
        sums = torch.zeros(len(terms), BINS, dtype=torch.float64)
        totals, unbounded, entropy = torch.zeros(len(terms), 1, dtype=torch.float64), 0, 0.0
        for row_chunk in rows.split(max(1, CONFIDENCE_TOKENS // tokens.ids.shape[1])):
            measure = partial(self._measure, tokens.ids[row_chunk], tokens.mask[row_chunk])
            sure, losses, weights, unsure = run_finite(
                value(self.teacher), partial(run_finite, value(self.student), measure)
            )
            finite = losses.isfinite().all(0)
            unbounded += int((~finite).sum())
            bins = (sure[finite] * BINS).long().clamp(max=BINS - 1)
            counts += torch.bincount(bins, minlength=BINS)
            sums.index_add_(1, bins, (losses * weights)[:, finite].double())
            totals += weights[:, finite].double().sum(1, keepdim=True)
            entropy += float(unsure.double().sum())
            report(int(row_chunk[-1]) + 1, len(tokens))
        mean = entropy / max(1, int(counts.sum()) + unbounded)
        own = weigh_terms(terms, lambda: mean)  # of all that was measured, as of one batch
        shares = torch.tensor(own, dtype=torch.float64)[:, None] * sums / totals.clamp(min=1e-300)
        return {
            "diagnostic": "confidence",
            "objective": self.objective.title,
            "tokens": counts.tolist(),
            "loss": [float(f"{part:.6g}") for part in shares.sum(0).tolist()],
            "unbounded": unbounded,
        }

    def _list_terms(self) -> tuple[Term, ...]:
        return self.objective.list_terms(None if self.statistic is None else value(self.statistic))

    @torch.no_grad()
    def _measure(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The teacher's probability of the label, (N,); each term's loss of the token, and the
        token's weight in it, (terms, N); the teacher's entropy, (N,)."""
        teacher, student = value(self.teacher), value(self.student)
        ids, mask, terms = ids.to(student.device), mask.to(student.device), self._list_terms()
        labels = Labels.of(ids, mask)
        losses = torch.zeros(len(terms), len(labels.ids), device=ids.device)
        hidden: list[Tensor] = []

        def add(seen: Seen, part: slice, share: float = 1.0) -> None:
            for own, term in zip(losses, terms, strict=True):
                if term.objective.sees == seen.kind:
                    own[part] += share * term.compute_losses(seen).float()

        def see(block: int, states: Tensor) -> None:
            for part in split_rows(len(states), states.shape[1], states.device):
                target, count = hidden[block][part], len(hidden)
                seen = BlockStates(states[part], target, labels.ids[part], None, block, count)
                add(seen, part, 1 / count)

        by_block = any(term.objective.sees == "blocks" for term in terms)
        keep = (lambda _, states: hidden.append(states)) if by_block else None
        teacher_states = run_watched(teacher.network, ids, labels, keep)
        states = run_watched(student.network, ids, labels, see if by_block else None)
        nll, entropy = torch.zeros(2, len(states), device=states.device)
        for part in split_states(states, student.vocabulary):
            target = run_head(teacher.network, teacher_states[part])
            nll[part] = token_nll(target, labels.ids[part])
            entropy[part] = token_entropy(target, labels.ids[part])
            logits = run_head(student.network, states[part])
            add(TokenLogits(logits, target, labels.ids[part]), part)
        weights = [
            torch.ones_like(nll) if each is None else each
            for each in weigh_tokens(terms, labels, lambda: nll)
        ]
        sure = nll.neg().exp()
        return sure.cpu(), losses.cpu(), torch.stack(weights).cpu(), entropy.cpu()
