"""One optimisation step, as training takes it, as memory is estimated by it and as it is timed.

    step = TrainingStep(training, objective, statistic, masters, teacher)
    loss, norm = step.compute_gradients(micro_batches)
    step.update(rate, norm)

The masters are rounded once; for each micro-batch teacher and student trunks are run, then head and
objective a chunk of label tokens at a time, each chunk's gradient going back to the hidden states
at once, so that logits of a whole batch never exist; one backward through the trunk; then one AdamW
step on the float32 masters. Objectives that see blocks have their losses as the student's block has
run: of the teacher's states behind every block, and then of gradients in their place, the label
positions are held in the computation's dtype, and float32 of a chunk only. Gradients are sums over
label tokens divided by the whole batch's weight, so micro-batches of unequal length add up to the
big batch: down to rounding, which in bfloat16 is of each one's gradients to 8 bits and shows in the
losses.

Not here: the weights (`masters`), what a loss is (`objectives`), how those of a micro-batch are
added up (`losses`), which sequences a step sees (`batches`), when to take one, to write or to stop
(`train`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from harness.models import (
    Model,
    blocks,
    find_first_broken,
)
from methods.training.forward import (
    Labels,
    measure_states,
    recompute_blocks,
    run_watched,
    token_entropy,
    token_nll,
)
from methods.training.losses import Losses, add_up
from methods.training.masters import Masters
from methods.training.objectives import (
    Objective,
    Sight,
    Term,
    weigh_terms,
    weigh_tokens,
)
from methods.training.optimizer import make_adamw, set_rate
from methods.training.settings import Training

MicroBatch: TypeAlias = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""ids (b, T) int64, mask (b, T) bool, and the numbers of the sequences (b,), by which stored states
are read."""


@dataclass
class TrainingStep:
    """What a step works on. `statistic`: the value of the objective's stage; `teacher` lies where
    the student computes, and in the same dtype. `read_states`: of numbers of sequences gives its
    last states at their labels (N, D), stored before; then only its head is run."""

    training: Training
    objective: Objective
    statistic: Any
    masters: Masters
    teacher: Model | None
    read_states: Callable[[Tensor], Tensor] | None = None
    terms: Sequence[Term] = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.terms = self.objective.list_terms(self.statistic)
        if self.training.gradient_checkpointing:
            recompute_blocks(self.masters.network)
        self.optimizer = make_adamw(
            self.training.optimizer,
            self.masters.list_weights(),
            self.training.lr,
            self.training.betas,
            self.training.weight_decay,
            self.masters.list_parameters(),
            (self.training.parameter_lr or self.training.lr) / self.training.lr,
        )

    def compute_gradients(self, micro_batches: Sequence[MicroBatch]) -> tuple[float, float]:
        """Loss and gradient norm of a batch; its gradients stand in the masters.

        Of several processes each gives its own micro-batches, and all get the same two numbers.
        """
        self.masters.requantize()
        factors = self._find_factors(micro_batches)
        sums = torch.zeros(2, device=self.masters.network.device)
        for each in micro_batches:
            sums += self.run_micro_batch(*each, factors=factors)
            self.masters.accumulate_gradients()
        total, weight = self.masters.shards.all_reduce(sums).tolist()
        scale = 1 / weight if weight else 0.0
        return total * scale, float(self.masters.finish_gradients(scale))

    def run_micro_batch(
        self,
        ids: Tensor,
        mask: Tensor,
        rows: Tensor | None = None,
        *,
        factors: Sequence[float] | None = None,
    ) -> Tensor:
        """Forward and backward: Σ factor·weight·loss over tokens and terms, and the first term's
        Σ weight, (2,). The gradients of the first are left in the network.

        ids (B, T), mask (B, T), rows (B,): see `MicroBatch`; factors: of each term, its own weight
        where None.
        """
        network, labels = self.masters.network, Labels.of(ids, mask)
        guide, hidden = self._run_teacher(ids, labels, rows)
        losses = Losses(
            labels,
            self.terms,
            factors or [term.weight for term in self.terms],
            self._weigh_tokens(guide, labels),
            hidden,
            torch.zeros((), device=ids.device),
        )
        states = run_watched(
            network, ids, labels, losses.add_block if self._sees("blocks") else None
        )
        guide_network = None if self.teacher is None else self.teacher.network
        gradient = losses.add_heads(network, guide_network, states, guide)
        losses.send_back(states, gradient)
        return torch.stack([losses.total, losses.count_tokens()])

    def update(self, rate: float, norm: float) -> None:
        """Clip the masters' gradients, of this norm, to the one allowed; move the masters; let the
        gradients go."""
        limit, masters = self.training.clip_norm, self.masters.weights.values()
        if limit and norm > limit:
            grads = [w.grad for w in masters if w.grad is not None]
            torch._foreach_mul_(grads, limit / (norm + 1e-6))
        set_rate(self.optimizer, rate)
        self.optimizer.step()
        for master in masters:
            master.grad = None

    def find_cause(self, micro_batches: Sequence[MicroBatch], loss: float) -> str:
        """What was not finite in a step with this loss, in words: found by running it once more."""
        networks = {"": self.masters.network}
        if self.teacher is not None:
            networks["teacher's "] = self.teacher.network
        self.masters.requantize()
        cause = find_first_broken(
            networks,
            lambda: [self.run_micro_batch(*each) for each in micro_batches],
            gradients=math.isfinite(loss),
        )
        cause = self.masters.shards.find_first(cause)
        return cause or f"the objective {self.objective.title!r} itself, at a loss of {loss}"

    def _sees(self, kind: Sight) -> bool:
        return any(term.objective.sees == kind for term in self.terms)

    @torch.no_grad()
    def _run_teacher(
        self, ids: Tensor, labels: Labels, rows: Tensor | None
    ) -> tuple[Tensor | None, list[Tensor | None]]:
        """The teacher's last states (N, D) at the labels, and those behind each block, where an
        objective sees them; None, or None of each, without a teacher."""
        hidden: list[Tensor | None] = [None] * len(blocks(self.masters.network))
        if self.teacher is None:
            return None, hidden
        if self.read_states is not None:
            assert rows is not None
            return self.read_states(rows).to(ids.device), hidden
        see = hidden.__setitem__ if self._sees("blocks") else None
        return run_watched(self.teacher.network, ids, labels, see), hidden

    def _weigh_tokens(self, guide: Tensor | None, labels: Labels) -> list[Tensor | None]:
        """Of each term how much each label token counts, by the teacher's last states (N, D)."""

        def measure() -> Tensor:
            assert self.teacher is not None and guide is not None
            return measure_states(self.teacher.network, guide, labels, token_nll)

        return weigh_tokens(self.terms, labels, measure)

    def _add_entropy(self, guide: Tensor | None, labels: Labels) -> Tensor:
        """Σ of the teacher's entropy over the label tokens, a scalar; 0 where no term looks."""
        if self.teacher is None or guide is None or not any(term.share for term in self.terms):
            return torch.zeros((), device=labels.ids.device)
        return measure_states(self.teacher.network, guide, labels, token_entropy).sum()

    def _find_factors(self, micro_batches: Sequence[MicroBatch]) -> list[float]:
        """What the sum of each term's weighted losses is multiplied with, so that divided by the
        first term's token weights of the whole batch all of them add up to the objective.

        Where terms weigh tokens differently, how much the batch has of each must be known before
        its first gradient, and where they look at its entropy that: the teacher is run once more.
        """
        ways = {term.objective if term.objective.weighted else None for term in self.terms}
        if len(ways) == 1 and not any(term.share for term in self.terms):
            return [term.weight for term in self.terms]
        sums = torch.zeros(len(self.terms) + 2, device=self.masters.network.device)
        for ids, mask, *rows in micro_batches:
            labels = Labels.of(ids, mask)
            guide, _ = self._run_teacher(ids, labels, rows[0] if rows else None)
            added = [add_up(w, labels) for w in self._weigh_tokens(guide, labels)]
            sums += torch.stack([*added, self._add_entropy(guide, labels), add_up(None, labels)])
        *totals, entropy, count = self.masters.shards.all_reduce(sums).tolist()
        own, first = weigh_terms(self.terms, lambda: entropy / max(count, 1)), totals[0]
        return [f * first / total if total else 0.0 for f, total in zip(own, totals, strict=True)]
