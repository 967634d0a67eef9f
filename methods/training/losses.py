"""The losses of a micro-batch, added up as they are computed, and the gradients they pass back.

    losses = Losses(labels, terms, factors, weights, hidden, total)
    gradient = losses.add_heads(student, teacher, states, guide)    # of losses of logits, by chunks
    losses.send_back(states, gradient)                              # through the student's trunk

A chunk of label tokens at a time goes through both heads. Losses known in closed form write their
gradient over the chunk's logits, the others have autograd's, a few tokens at a time; it goes back
to the states through the network's own head.

Not here: the step (`step`), the losses themselves (`objectives`, `known_losses`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from transformers import PreTrainedModel

from harness.models import are_distributions, count_vocabulary
from methods.training.forward import Labels, run_head, split_rows, split_states, widen
from methods.training.known_losses import measure_mixtures
from methods.training.objectives import BlockStates, Seen, Sight, Term, TokenLogits


@dataclass
class Losses:
    """The losses of a micro-batch, added up as they are computed, and the gradients that they pass
    back."""

    labels: Labels
    terms: Sequence[Term]
    factors: Sequence[float]  # of each term
    weights: Sequence[Tensor | None]  # of each term's tokens, (N,); None: 1
    hidden: list[Tensor | None]  # the teacher's states behind each block, (N, D), until used
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

    def add_heads(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        states: Tensor,
        guide: Tensor | None,
    ) -> Tensor:
        """Add the losses of logits, from last states (N, D) of student and teacher (`guide`) at the
        labels: the gradient of the student's states, (N, D). Those of its head are left there."""
        gradient = torch.zeros_like(states)
        if any(term.objective.sees == "logits" for term in self.terms):
            for part in split_states(states, count_vocabulary(student)):
                own, other = states[part], None if guide is None else guide[part]
                gradient[part] = self._add_chunk(student, teacher, own, other, part)
        return gradient

    def _add_chunk(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        states: Tensor,
        guide: Tensor | None,
        part: slice,
    ) -> Tensor:
        """`add_heads` of one chunk, whose logits are gone when it returns."""
        target = None
        if teacher is not None and guide is not None:
            with torch.no_grad():
                target = run_head(teacher, guide)
                # An objective need not show it; without a test, which would stop a GPU.
                self.spoil(~are_distributions(target).all())
        leaf = states.detach().requires_grad_()
        logits = run_head(student, leaf)
        seen = TokenLogits(logits.detach(), target, self.labels.ids[part])
        logits.backward(self.add_logits(seen, part))
        assert leaf.grad is not None
        return leaf.grad

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
        for part in split_rows(len(states), states.shape[1], states.device):
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
        return add_up(self.weights[0], self.labels)


def add_up(weights: Tensor | None, labels: Labels) -> Tensor:
    """Σ weight over label tokens, a scalar, where None are as many ones."""
    if weights is not None:
        return weights.sum()
    return torch.tensor(float(len(labels.ids)), device=labels.ids.device)
