"""Objectives: what a quantised student is trained to do, as a loss per label token.

    losses = CAKLD(gamma=0.5).token_losses(TokenLogits(student, teacher, labels))    # (N,)

An objective sees N label tokens at a time, never a batch: the training step hands it one chunk of
logits after another, or of one block's hidden states (`sees`), and adds up `weight × loss`. The
loss of a batch is the weighted mean over its label tokens, which `batch_loss` spells out for whole
logits. What an objective must know of the teacher before training (CAKLD's confidence) it asks for
as a stage, which cells share.

Notation: z student logits, q = softmax z; p = the teacher's probabilities; KL(a‖b) = Σ a (log a −
log b). All in log space and in float32, or float64 where the logits are. A term with a = 0 is 0,
whatever b. Where b = 0 and a > 0 the divergence is infinite and comes back as +inf: a loss that has
no value must stop the training, not be clipped to a number that looks like one.

Not here: the head and the chunks (`forward`), the step (`step`), the confidence (`confidence`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from harness.core.component import Component
from harness.core.errors import BitgridError
from harness.core.stage import Stage
from harness.data import Tokens
from harness.models import Model
from methods.training.confidence import Confidence, Meaning
from methods.training.forward import Labels, log_probabilities, token_entropy, token_nll, widen

Weight: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Sight: TypeAlias = Literal["logits", "blocks"]


@dataclass(frozen=True)
class Seen:
    """What an objective sees of N label tokens.

    student, teacher: (N, ...), teacher None for objectives without one; labels: (N,) int64;
    statistic: the value of the stage that `Objective.build_statistic` returned.
    """

    kind: ClassVar[Sight]
    student: Tensor
    teacher: Tensor | None
    labels: Tensor
    statistic: Any = None

    def require_teacher(self) -> Tensor:
        """The teacher's side, shaped as the student's. Raises BitgridError where there is none."""
        if self.teacher is None:
            raise BitgridError("this objective needs a teacher")
        return self.teacher


@dataclass(frozen=True)
class TokenLogits(Seen):
    """Of objectives that see logits: student and teacher are logits (N, V)."""

    kind = "logits"

    @property
    def log_q(self) -> Tensor:
        """The student's log probabilities: (N, V)."""
        return log_probabilities(self.student)

    @property
    def log_p(self) -> Tensor:
        """The teacher's log probabilities: (N, V). Raises BitgridError where there is no
        teacher."""
        return log_probabilities(self.require_teacher())


@dataclass(frozen=True)
class BlockStates(Seen):
    """Of objectives that see blocks: student and teacher are hidden states (N, D), as they leave
    block `block` of `blocks`, at the positions that predict the labels.

    They come in the dtype of the computation: `widen` them first. Behind the last block the last
    norm is still to come.
    """

    kind = "blocks"
    block: int = 0
    blocks: int = 1


@dataclass(frozen=True)
class Objective(Component, family="objective"):
    """A loss per label token, and how much each token counts.

    What it `sees` decides with what, and how often, `token_losses` is called: once with
    `TokenLogits`, or once a block with `BlockStates`; then a token's loss is the mean over blocks.
    """

    sees: ClassVar[Sight] = "logits"
    needs_teacher: ClassVar[bool] = True
    weighted: ClassVar[bool] = False  # whether tokens count unequally, by the teacher's losses

    @abstractmethod
    def token_losses(self, seen: Any) -> Tensor:
        """The loss of each token: (N,) float32, or float64 where what is seen is float64.

        seen: `TokenLogits` or `BlockStates`, as the objective `sees`.
        """

    def compute_losses(self, seen: Seen) -> Tensor:
        """`token_losses`, if they are one number a token that gradients can pass, and no 16-bit
        one.

        Raises BitgridError where they are not: a mean over tokens would train without a word.
        """
        if seen.kind != self.sees:
            raise BitgridError(f"objective {self.name!r} sees {self.sees}, not {seen.kind}")
        losses, count = self.token_losses(seen), len(seen.labels)
        given = f"{type(losses).__name__}"
        if isinstance(losses, Tensor):
            if losses.shape == (count,) and losses.dtype in (torch.float32, torch.float64):
                if losses.requires_grad or not seen.student.requires_grad:
                    return losses
                raise BitgridError(
                    f"objective {self.name!r}: no gradient passes its losses; are they detached?"
                )
            given = f"shape {tuple(losses.shape)} in {losses.dtype}"
        raise BitgridError(
            f"objective {self.name!r}: `token_losses` should give one loss a token, shape "
            f"({count},) in float32 or float64, and gave {given}"
        )

    @property
    def title(self) -> str:
        """What figures call it."""
        return self.name

    def list_terms(self, statistic: Any = None) -> tuple[Term, ...]:
        """The losses that add up to this one: itself alone, but for a sum.

        statistic: the value of the stage that `build_statistic` returned.
        """
        return (Term(self, 1.0, statistic),)

    def token_weights(self, nll: Tensor, mask: Tensor) -> Tensor:
        """How much each token counts, where `weighted`: (B, T), zero where the mask is False.

        nll: (B, T) the teacher's loss on each label; mask: (B, T) bool.
        """
        return mask.to(nll.dtype)

    def compute_weights(self, nll: Tensor, mask: Tensor) -> Tensor:
        """`token_weights`, if they are one a token. Raises BitgridError where they are not."""
        weights = self.token_weights(nll, mask)
        if not isinstance(weights, Tensor) or weights.shape != mask.shape:
            shape = tuple(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
            raise BitgridError(
                f"objective {self.name!r}: `token_weights` should give one weight a token, shape "
                f"{tuple(mask.shape)}, and gave {shape}"
            )
        return weights

    def build_statistic(self, teacher: Stage[Model], tokens: Stage[Tokens]) -> Stage[Any] | None:
        """What must be known before training, as a stage whose value is JSON; None for most."""
        return None

    def batch_loss(
        self,
        student: Tensor,
        teacher: Tensor | None,
        ids: Tensor,
        mask: Tensor,
        statistic: Any = None,
    ) -> Tensor:
        """The loss of a batch, from whole logits (B, T, V): what chunked training computes of an
        objective that sees logits.

        ids: (B, T) int64; mask: (B, T) bool, True at labels. A scalar; 0 where nothing is a label.
        """
        labels = Labels.of(ids, mask)
        target = None if teacher is None else labels.pick(teacher)
        terms = self.list_terms(statistic)
        logits = TokenLogits(labels.pick(student), target, labels.ids)
        weighed = weigh_tokens(
            terms, labels, lambda: token_nll(logits.require_teacher(), labels.ids)
        )
        total = logits.student.new_zeros(())
        factors = weigh_terms(
            terms, lambda: float(token_entropy(logits.require_teacher(), labels.ids).mean())
        )
        for term, factor, counts in zip(terms, factors, weighed, strict=True):
            if term.share and not factor:
                continue  # 0 times an infinite loss would be NaN
            losses = term.compute_losses(logits)
            weights = torch.ones_like(losses) if counts is None else counts
            least = torch.finfo(losses.dtype).tiny
            total = total + factor * (losses * weights).sum() / weights.sum().clamp(min=least)
        return total


@dataclass(frozen=True)
class Term:
    """One of the losses that add up to an objective: `weight` times the mean of its own.

    share: of a batch, what its weight is multiplied with, given the teacher's mean entropy there.
    """

    objective: Objective
    weight: float = 1.0
    statistic: Any = None
    share: Callable[[float], float] | None = None

    def compute_losses(self, seen: Seen) -> Tensor:
        """The objective's loss of each token, (N,), its statistic known. Raises BitgridError."""
        return self.objective.compute_losses(replace(seen, statistic=self.statistic))


def weigh_tokens(
    terms: Sequence[Term], labels: Labels, measure_teacher: Callable[[], Tensor]
) -> list[Tensor | None]:
    """How much each label token counts in each of the terms: (N,); None where all count alike.

    measure_teacher: gives the teacher's loss on every label, (N,); called where a term asks for it.
    """
    if not any(term.objective.weighted for term in terms):
        return [None] * len(terms)
    nll = labels.spread(measure_teacher())
    return [
        term.objective.compute_weights(nll, labels.where)[labels.where]
        if term.objective.weighted
        else None
        for term in terms
    ]


def weigh_terms(terms: Sequence[Term], measure: Callable[[], float]) -> list[float]:
    """Each term's weight in a batch; `measure` gives the teacher's mean entropy there, in nats."""
    entropy = measure() if any(term.share for term in terms) else 0.0
    return [term.weight * (term.share(entropy) if term.share else 1.0) for term in terms]


@dataclass(frozen=True)
class Untrained(Objective):
    """No training: the recipe stops after its initialisation."""

    name = "none"
    needs_teacher = False

    def token_losses(self, logits: TokenLogits) -> Tensor:
        raise BitgridError("the objective 'none' has no loss; choose one to train")


@dataclass(frozen=True)
class CE(Objective):
    """Cross-entropy with the data's own tokens: −log q(label). Plain QAT, no teacher."""

    name = "ce"
    needs_teacher = False

    def token_losses(self, logits: TokenLogits) -> Tensor:
        return token_nll(logits.student, logits.labels)


@dataclass(frozen=True)
class KL(Objective):
    """Forward, mode-covering: KL(p‖q). LLM-QAT's, up to the teacher's entropy."""

    name = "kl"

    def token_losses(self, logits: TokenLogits) -> Tensor:
        return _kl(logits.log_p, logits.log_q)


@dataclass(frozen=True)
class ReverseKL(Objective):
    """Reverse, mode-seeking: KL(q‖p)."""

    name = "reverse-kl"

    def token_losses(self, logits: TokenLogits) -> Tensor:
        return _kl(logits.log_q, logits.log_p)


@dataclass(frozen=True)
class CAKLD(Objective):
    """Confidence-aware: γ·KL(q‖p) + (1 − γ)·KL(p‖q). BitDistiller eq. 6.

    γ is the teacher's confidence on the training data (see `Confidence`), or fixed by `gamma`.
    """

    name = "cakld"
    gamma: Weight | None = None  # weight of KL(q‖p); null: the teacher's confidence
    confidence: Meaning = "label"  # its probability of the label, or its largest

    def build_statistic(self, teacher: Stage[Model], tokens: Stage[Tokens]) -> Stage[float] | None:
        return Confidence(teacher, tokens, self.confidence) if self.gamma is None else None

    def token_losses(self, logits: TokenLogits) -> Tensor:
        gamma = logits.statistic if self.gamma is None else self.gamma
        if gamma is None:
            raise BitgridError("cakld has neither a fixed gamma nor a measured one")
        log_q, log_p = logits.log_q, logits.log_p
        # A side of weight 0 is left out, because 0 times an infinite divergence would be NaN.
        if gamma == 0:
            return _kl(log_p, log_q)
        if gamma == 1:
            return _kl(log_q, log_p)
        return gamma * _kl(log_q, log_p) + (1 - gamma) * _kl(log_p, log_q)


@dataclass(frozen=True)
class JSD(Objective):
    """Generalised Jensen-Shannon: β·KL(p‖m) + (1 − β)·KL(q‖m), m = βp + (1 − β)q. Always finite.

    At the ends this is 0 for all q, so there we give the limits of JSD/β(1 − β), as GKD does:
    KL(p‖q) for β = 0, KL(q‖p) for β = 1.
    """

    name = "jsd"
    beta: Weight = 0.5  # weight of KL(p‖m)

    def token_losses(self, logits: TokenLogits) -> Tensor:
        beta, log_q, log_p = self.beta, logits.log_q, logits.log_p
        if beta == 0:
            return _kl(log_p, log_q)
        if beta == 1:
            return _kl(log_q, log_p)
        # Where both are 0 so is m, and the gradient of its logarithm would be NaN.
        dead = torch.isneginf(log_p) & torch.isneginf(log_q)
        log_m = torch.logaddexp(
            log_p.masked_fill(dead, 0) + math.log(beta),
            log_q.masked_fill(dead, 0) + math.log1p(-beta),
        )
        return beta * _kl(log_p, log_m) + (1 - beta) * _kl(log_q, log_m)


@dataclass(frozen=True)
class TSLD(Objective):
    """Token-scaled logit distillation: each token's KL(p‖q), weighted within its sequence by
    softmax(teacher's loss / temperature), so that tokens the teacher is unsure of count more.

    Every sequence counts once; padding counts nothing. BitDistiller's code has temperature 10.
    """

    name = "tsld"
    weighted = True
    # Of the softmax over the teacher's losses.
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0

    def token_losses(self, logits: TokenLogits) -> Tensor:
        return _kl(logits.log_p, logits.log_q)

    def token_weights(self, nll: Tensor, mask: Tensor) -> Tensor:
        # A label that the teacher rules out has an infinite loss; the softmax needs a finite one.
        finite = (nll / self.temperature).nan_to_num(posinf=torch.finfo(nll.dtype).max)
        shares = finite.masked_fill(~mask, -math.inf).softmax(-1)
        return shares.masked_fill(~mask, 0)  # a row without labels was NaN


@dataclass(frozen=True)
class MSE(Objective):
    """Mean over the vocabulary of the squared difference of the logits (LLM-QAT's ablation)."""

    name = "mse"

    def token_losses(self, logits: TokenLogits) -> Tensor:
        student, teacher = widen(logits.student), widen(logits.require_teacher())
        dead = torch.isneginf(student) & torch.isneginf(teacher)
        return (student - teacher).masked_fill(dead, 0).square().mean(-1)


@dataclass(frozen=True)
class BlockMSE(Objective):
    """Squared difference of the hidden states behind each block, over the teacher's squared norm.

    TinyBERT's loss on hidden states (arXiv 1909.10351, section 3), without its projection, since
    here both are equally wide. Relative, because some tokens' states are a hundred times larger.
    """

    name = "block-mse"
    sees = "blocks"

    def token_losses(self, states: BlockStates) -> Tensor:
        student, teacher = widen(states.student), widen(states.require_teacher())
        return (student - teacher).square().sum(-1) / teacher.square().sum(-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) from log probabilities: (N, V), (N, V) -> (N,)."""
    a = log_a.exp()
    # Both sides of 0·(±inf − …) must go, or the gradient is NaN where the value is not.
    gap = (log_a - log_b).masked_fill(a == 0, 0)
    return (a * gap).sum(-1)
