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

Not here: the weights (`masters`), what a loss is (`objectives`), which sequences a step sees
(`batches`), when to take one, to write or to stop (`train`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from harness.models import (
    Model,
    are_distributions,
    blocks,
    count_vocabulary,
    find_first_broken,
)
from methods.training.forward import (
    Labels,
    measure_states,
    recompute_blocks,
    run_head,
    run_watched,
    split_rows,
    split_tokens,
    token_entropy,
    token_nll,
    widen,
)
from methods.training.known_losses import measure_mixtures
from methods.training.masters import Masters
from methods.training.objectives import (
    BlockStates,
    Objective,
    Seen,
    Sight,
    Term,
    TokenLogits,
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
        losses = _Losses(
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
        gradient = torch.zeros_like(states)
        for part in split_tokens(len(states), count_vocabulary(network), states.device):
            if not self._sees("logits"):
                break
            # A leaf of its own for each chunk, so that its logits are freed before the next one's.
            leaf = states[part].detach().requires_grad_()
            target = None
            if self.teacher is not None and guide is not None:
                with torch.no_grad():
                    target = run_head(self.teacher.network, guide[part])
                    # An objective need not show it; without a test, which would stop a GPU.
                    losses.spoil(~are_distributions(target).all())
            logits = run_head(network, leaf)
            seen = TokenLogits(logits.detach(), target, labels.ids[part])
            logits.backward(losses.add_logits(seen, part))
            assert leaf.grad is not None
            gradient[part] = leaf.grad
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
            added = [_add_up(w, labels) for w in self._weigh_tokens(guide, labels)]
            sums += torch.stack([*added, self._add_entropy(guide, labels), _add_up(None, labels)])
        *totals, entropy, count = self.masters.shards.all_reduce(sums).tolist()
        own, first = weigh_terms(self.terms, lambda: entropy / max(count, 1)), totals[0]
        return [f * first / total if total else 0.0 for f, total in zip(own, totals, strict=True)]


@dataclass
class _Losses:
    """The losses of a micro-batch, added up as they are computed, and the gradients that they pass
    back."""

    labels: Labels
    terms: Sequence[Term]
    factors: Sequence[float]  # of each term
    weights: Sequence[Tensor | None]  # of each term's tokens, (N,); None: 1
    hidden: list[
        Tensor | None
    ]  # the teacher's states behind each block, (N, D), until they are used
    total: Tensor  # Σ factor·weight·loss, a scalar
    edges: list[GradientEdge] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)  # for each of the edges

    def add(self, seen: Seen, part: slice, share: float = 1.0) -> None:
        """Add `share` of the losses of the tokens `part`, of the terms that see such things and
        whose gradients are autograd's: those go back to where `seen.student` was made from."""
        sums = []
        for term, factor, weights in self._list_terms(seen.kind, known=False):
            losses = term.compute_losses(seen)
            weighted = losses if weights is None else losses * weights[part]
            sums.append(share * factor * weighted.sum())
        added = torch.stack(sums).sum()
        added.backward()
        self.total = self.total + added.detach()

    def add_logits(self, seen: TokenLogits, part: slice) -> Tensor:
        """Add the losses of the tokens `part`: the gradient of the sum with respect to the
        student's logits, (n, V) in their dtype. It may stand where the teacher's were."""
        others = self._add_others(seen, part)  # which still see the teacher's
        return self._add_known(seen, part, others)

    def _add_others(self, seen: TokenLogits, part: slice) -> Tensor | None:
        """`add_logits` by autograd; None where no term needs it."""
        if not self._list_terms("logits", known=False):
            return None
        gradient = torch.empty_like(seen.student)
        for rows in split_rows(len(seen.labels), seen.student.shape[1], seen.student.device):
            leaf = seen.student[rows].detach().requires_grad_()
            target = None if seen.teacher is None else seen.teacher[rows]
            here = slice(part.start + rows.start, part.start + rows.stop)
            self.add(TokenLogits(leaf, target, seen.labels[rows]), here)
            assert leaf.grad is not None
            gradient[rows] = leaf.grad
        return gradient

    def _add_known(self, seen: TokenLogits, part: slice, others: Tensor | None) -> Tensor:
        """`add_logits` in closed form, upon the gradient of the other terms."""
        student, teacher, terms = seen.student, seen.teacher, self._list_terms("logits", known=True)
        if not terms:
            return torch.zeros_like(student) if others is None else others
        ones = torch.ones_like(seen.labels, dtype=widen(student[:0]).dtype)
        scales = torch.stack([f * (ones if w is None else w[part].to(ones)) for _, f, w in terms])
        if teacher is not None and (teacher.dtype, teacher.shape) == (student.dtype, student.shape):
            place = teacher
        else:
            place = torch.empty_like(student)
        mixtures = [term.find_mixture() or {} for term, _, _ in terms]
        losses = measure_mixtures(student, teacher, seen.labels, mixtures, scales, place)
        self.total = self.total + (scales * losses).sum()
        return place if others is None else place.add_(others)

    def _list_terms(self, sight: Sight, known: bool) -> list[tuple[Term, float, Tensor | None]]:
        """The terms that see such things, whose gradients are `known` in closed form or are not,
        with factor and weights of each."""
        return [
            (term, factor, weights)
            for term, factor, weights in zip(self.terms, self.factors, self.weights, strict=True)
            if term.objective.sees == sight
            and (factor or not term.share)  # 0 · inf is NaN
            and (term.find_mixture() is not None) == known
        ]

    def add_block(self, block: int, states: Tensor) -> None:
        """Add the losses behind one block, of the student's states (N, D)."""
        target, self.hidden[block] = self.hidden[block], None
        if target is not None:
            self.spoil(~target.isfinite().all())  # as of the teacher's logits
        gradient, count = torch.empty_like(states), len(self.hidden)
        for part in split_tokens(len(states), states.shape[1], states.device):
            leaf = states[part].detach().requires_grad_()
            guide = None if target is None else target[part]
            seen = BlockStates(leaf, guide, self.labels.ids[part], None, block, count)
            self.add(seen, part, 1 / count)
            assert leaf.grad is not None
            gradient[part] = leaf.grad
        if states.requires_grad:  # else nothing is trained up to here
            self.edges.append(get_gradient_edge(states))  # which holds no copy of the states
            self.gradients.append(gradient)

    def spoil(self, broken: Tensor) -> None:
        """The total is NaN where `broken` () bool is True."""
        self.total = self.total.masked_fill(broken, math.nan)

    def send_back(self, states: Tensor, gradient: Tensor) -> None:
        """One backward pass through the trunk, from its last states (N, D) and from the blocks."""
        edges = [get_gradient_edge(states), *self.edges]
        torch.autograd.backward(edges, [gradient, *self.gradients])

    def count_tokens(self) -> Tensor:
        """The first term's Σ weight: a scalar."""
        return _add_up(self.weights[0], self.labels)


def _add_up(weights: Tensor | None, labels: Labels) -> Tensor:
    """Σ weight over label tokens, a scalar, where None are as many ones."""
    if weights is not None:
        return weights.sum()
    return torch.tensor(float(len(labels.ids)), device=labels.ids.device)
