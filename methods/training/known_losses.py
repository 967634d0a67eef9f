"""Losses of a token whose gradients are known in closed form, over a few rows of logits at a time.

    losses = measure(student, teacher, labels, {FORWARD: 0.5, REVERSE: 0.5})              # (N,)

An objective that is a weighted sum of these (`objectives.Mixed`) needs no autograd over logits: one
softmax of each side gives all its losses, and a step has their gradient written over logits that
nobody needs any more (`measure_mixtures`). Rows are taken so few at a time that what is computed of
them stays in a CPU's cache, and nothing of the size of logits is kept.

Notation: z student logits, q = softmax z; t teacher logits, p = softmax t; KL(a‖b) = Σ a (log a −
log b). All in float32, or float64 where logits are. A term with a = 0 is 0, whatever b; where b = 0
and a > 0 the divergence is +inf. Sides are centred at their largest logit: log q = u + log max q
with u = z − max z, so that log q − log p is u − w and a number that a row has in common.

Not here: objectives, and how they weigh these (`objectives`); the head (`forward`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from harness.core.errors import BitgridError
from methods.training.forward import split_rows, widen


@dataclass
class _Measured:
    """A loss of n tokens, (n, 1), and its gradient: own·q + factor·beside, and −1 at the label
    where `at_label`."""

    loss: Tensor
    own: Tensor | float = 0.0  # (n, 1)
    beside: Tensor | None = None  # (n, V)
    factor: float = 1.0
    at_label: bool = False


class KnownLoss(ABC):
    """A loss of a token as a function of z and t."""

    @abstractmethod
    def measure(self, rows: _Rows) -> _Measured:
        """The loss of each of the rows, and its gradient with respect to z."""


Mixture: TypeAlias = Mapping[KnownLoss, float]
"""The weight of each loss in a sum of them. What is not in it does not count, even if infinite."""


@dataclass(frozen=True)
class Forward(KnownLoss):
    """KL(p‖q); its gradient is q − p."""

    def measure(self, rows: _Rows) -> _Measured:
        q, p = rows.student, rows.teacher
        gap = _drop_nan(torch.mul(p.chances, rows.gap, out=rows.make("product")))
        return _Measured(p.log_top - q.log_top - _add(gap), 1.0, p.chances, -1.0)


@dataclass(frozen=True)
class Reverse(KnownLoss):
    """KL(q‖p); its gradient is q (log q − log p − KL(q‖p))."""

    def measure(self, rows: _Rows) -> _Measured:
        q, p = rows.student, rows.teacher
        gap = _drop_nan(torch.mul(q.chances, rows.gap, out=rows.make("reverse")))
        mean = _add(gap)
        return _Measured(mean + q.log_top - p.log_top, -mean, gap)


@dataclass(frozen=True)
class Label(KnownLoss):
    """−log q(label); its gradient is q, less 1 at the label."""

    def measure(self, rows: _Rows) -> _Measured:
        q = rows.student
        own = rows.logits.gather(-1, rows.labels[:, None]).to(q.top.dtype)
        return _Measured(q.top - own - q.log_top, 1.0, at_label=True)


@dataclass(frozen=True)
class Squared(KnownLoss):
    """The mean over the vocabulary of (z − t)², 0 where both are −inf."""

    def measure(self, rows: _Rows) -> _Measured:
        gap = _drop_nan(rows.make("square").copy_(rows.logits).sub_(rows.target))
        loss = _add(torch.mul(gap, gap, out=rows.make("product"))) / gap.shape[-1]
        # What was NaN for another reason stays it.
        tops = torch.stack([each.amax(-1, keepdim=True) for each in (rows.logits, rows.target)])
        loss = loss.masked_fill(~(tops < math.inf).all(0), math.nan)
        return _Measured(loss, 0.0, gap, 2 / gap.shape[-1])


@dataclass(frozen=True)
class Between(KnownLoss):
    """β·KL(p‖m) + (1 − β)·KL(q‖m), m = βp + (1 − β)q, 0 < β < 1; its gradient is
    (1 − β) q (log q − log m − KL(q‖m))."""

    beta: float

    def measure(self, rows: _Rows) -> _Measured:
        q, p, beta = rows.student, rows.teacher, self.beta
        middle = torch.mul(p.chances, beta, out=rows.make("middle"))
        middle.add_(q.chances, alpha=1 - beta)
        # It is 0 only where p and q are, which then count nothing.
        middle.clamp_(min=torch.finfo(middle.dtype).tiny).log_()
        gap = torch.add(p.centred, p.log_top, out=rows.make("product")).sub_(middle)
        left = _add(_drop_nan(gap.mul_(p.chances)))
        gap = torch.add(q.centred, q.log_top, out=rows.make(f"between {beta}")).sub_(middle)
        right = _add(_drop_nan(gap.mul_(q.chances)))
        loss = beta * left + (1 - beta) * right
        loss = loss + 0 * (q.log_top + p.log_top)  # NaN where a side is
        return _Measured(loss, -(1 - beta) * right, gap, 1 - beta)


FORWARD, REVERSE, LABEL, SQUARED = Forward(), Reverse(), Label(), Squared()


@torch.no_grad()
def measure_mixtures(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    mixtures: Sequence[Mixture],
    scales: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """The losses of N tokens in each of K mixtures: (K, N), float32, or float64 where logits are.

    student, teacher: logits (N, V); labels: (N,) int64. Where `gradient` (N, V) is given, with
    `scales` (K, N), it becomes that of Σ scales × losses with respect to the student's logits. It
    may be the memory of the student's logits, or of the teacher's.
    """
    sides = (student,) if teacher is None else (student, teacher)
    dtype = torch.float64 if any(s.dtype == torch.float64 for s in sides) else torch.float32
    losses = student.new_zeros(len(mixtures), len(labels), dtype=dtype)
    known = list(dict.fromkeys(each for mixture in mixtures for each in mixture))
    weights = losses.new_tensor([[mix.get(each, 0.0) for mix in mixtures] for each in known])
    made: dict[str, Tensor] = {}
    for part in split_rows(len(labels), student.shape[1], student.device):
        rows = _Rows(
            student[part], None if teacher is None else teacher[part], labels[part], dtype, made
        )
        measured = {each: each.measure(rows) for each in known}
        for own, mixture in zip(losses, mixtures, strict=True):
            for each, weight in mixture.items():
                own[part].add_(measured[each].loss.squeeze(-1), alpha=weight)
        if gradient is not None and scales is not None:
            shares = (weights @ scales[:, part].to(dtype))[..., None]
            rows.write_gradient(list(measured.values()), shares, gradient[part])
    return losses


def measure(student: Tensor, teacher: Tensor | None, labels: Tensor, mixture: Mixture) -> Tensor:
    """The losses of one mixture, for autograd with respect to the student's logits: (N,).

    student, teacher: logits (N, V); labels: (N,) int64. Raises BitgridError where the teacher's
    want a gradient, or there is none and one is needed.
    """
    losses: Tensor = _Losses.apply(student, teacher, labels, mixture)
    return losses


class _Losses(torch.autograd.Function):
    """Its gradient is kept from the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor | None, labels: Tensor, mixture: Mixture
    ) -> Tensor:
        gradient = scales = None
        if ctx.needs_input_grad[0]:
            gradient = torch.empty_like(widen(student))
            scales = gradient.new_ones(1, len(labels))
        if ctx.needs_input_grad[1]:
            raise BitgridError("these losses pass no gradient to the teacher: detach it")
        losses = measure_mixtures(student, teacher, labels, [mixture], scales, gradient)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return losses[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradients[0][:, None] * gradient).to(ctx.dtype), None, None, None


class _Side:
    """Softmax of one side of n rows, computed from centred logits."""

    def __init__(self, logits: Tensor, centred: Tensor, chances: Tensor) -> None:
        centred.copy_(logits)
        self.top = centred.amax(-1, keepdim=True)  # the largest logit, (n, 1)
        self.centred = centred.sub_(self.top)
        self.chances = torch.softmax(centred, -1, out=chances)
        self.log_top = chances.amax(-1, keepdim=True).log()  # of the largest probability


class _Rows:
    """A few rows, and what several losses need of them, computed once."""

    def __init__(
        self,
        logits: Tensor,
        target: Tensor | None,
        labels: Tensor,
        dtype: torch.dtype,
        made: dict[str, Tensor],
    ) -> None:
        self.logits, self.labels, self._target = logits, labels, target
        self._dtype, self._made = dtype, made

    def make(self, name: str) -> Tensor:
        """Memory (n, V), the same for one name from rows to rows."""
        if name not in self._made:
            self._made[name] = torch.empty_like(self.logits, dtype=self._dtype)
        return self._made[name][: len(self.logits)]

    @property
    def target(self) -> Tensor:
        """The teacher's logits: (n, V). Raises BitgridError where there is no teacher."""
        if self._target is None:
            raise BitgridError("this objective needs a teacher")
        return self._target

    @cached_property
    def student(self) -> _Side:
        return _Side(self.logits, self.make("u"), self.make("q"))

    @cached_property
    def teacher(self) -> _Side:
        return _Side(self.target, self.make("w"), self.make("p"))

    @cached_property
    def gap(self) -> Tensor:
        """u − w, which is log q − log p but for a number a row: (n, V)."""
        return torch.sub(self.student.centred, self.teacher.centred, out=self.make("gap"))

    def write_gradient(
        self, measured: Sequence[_Measured], shares: Tensor, gradient: Tensor
    ) -> None:
        """Write Σ share × gradient of each loss; shares: of each, (n, 1). `q` is used up."""
        own = sum(share * each.own for each, share in zip(measured, shares, strict=True))
        if any(isinstance(each.own, Tensor) or each.own for each in measured):
            total = self.student.chances.mul_(own)
        else:
            total = self.make("q").zero_()
        for each, share in zip(measured, shares, strict=True):
            if each.beside is not None:
                total.addcmul_(each.beside, share * each.factor)
            if each.at_label:
                total.scatter_add_(-1, self.labels[:, None], -share)
        gradient.copy_(total)


def _drop_nan(products: Tensor) -> Tensor:
    """Products 0·inf count nothing, in place: cheaper by far than a mask."""
    return products.nan_to_num_(nan=0.0, posinf=math.inf, neginf=-math.inf)


def _add(products: Tensor) -> Tensor:
    return products.sum(-1, keepdim=True)
