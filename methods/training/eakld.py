"""EAKLD, the entropy-aware divergence of EdgeRazor (arXiv 2605.04062).

Not here: how a step knows the teacher's entropy before its first gradient (`step`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field
from torch import Tensor

from harness.core.errors import BitgridError
from methods.training.objectives import KL, Objective, ReverseKL, Seen, Term


@dataclass(frozen=True)
class EAKLD(Objective):
    """Entropy-aware: γ·KL(q‖p) + (1 − γ)·KL(p‖q), γ = 1 − H / log k between 0 and 1, where H is the
    teacher's mean entropy over the label tokens of a batch.

    As the paper's published code has it, at its temperature 1 and with the k of its language
    models. There γ is that of the sequences that a GPU holds at once, and each sequence counts
    once; here it is that of the step's whole batch, whatever `micro_batch` is, and each token does.
    """

    name = "eakld"
    k: Annotated[int, Field(ge=2, le=2**20)] = 16  # entropy log k is no confidence at all

    def list_terms(self, statistic: object = None) -> tuple[Term, ...]:
        return (
            Term(ReverseKL(), share=self.find_confidence),
            Term(KL(), share=lambda entropy: 1 - self.find_confidence(entropy)),
        )

    def find_confidence(self, entropy: float) -> float:
        """γ, given H in nats."""
        return min(1.0, max(0.0, 1 - entropy / math.log(self.k)))

    def token_losses(self, seen: Seen) -> Tensor:
        raise BitgridError("eakld has no loss of a token: how it weighs its two is of a batch")
