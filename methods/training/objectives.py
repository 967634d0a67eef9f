"""Objectives: what a quantised student is trained to do, as a loss per label token.

    losses = CAKLD(gamma=0.5).token_losses(TokenLogits(student, teacher, labels))    # (N,)

An objective sees N label tokens at a time, never a batch: the training step hands it one chunk of
logits after another, or of one block's hidden states (`sees`), and adds up `weight × loss`. The
loss of a batch is the weighted mean over its label tokens, which `batch_loss` spells out for whole
logits. What an objective must know of the teacher before training (CAKLD's confidence) it asks for
as a stage, which cells share.

Notation: z student logits, q = softmax z; p = the teacher's probabilities; KL(a‖b) = Σ a (log a −
log b). All in float32, or float64 where the logits are. A term with a = 0 is 0, whatever b. Where
b = 0 and a > 0 the divergence is infinite and comes back as +inf: a loss that has no value must
stop the training, not be clipped to a number that looks like one.

Not here: losses and gradients in closed form (`known_losses`), the head and the chunks (`forward`),
the step (`step`), the confidence (`confidence`).
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
from methods.training import known_losses as known
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
class Mixed(Objective):
    """An objective whose loss of a token is a weighted sum of known ones: their gradients are known
    too, and a step needs no autograd over logits."""

    @abstractmethod
    def mix(self, statistic: Any) -> known.Mixture:
        """The weight of each known loss. statistic: as in `Seen`."""

    def token_losses(self, logits: TokenLogits) -> Tensor:
        return known.measure(
            logits.student, logits.teacher, logits.labels, self.mix(logits.statistic)
        )


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

    def find_mixture(self) -> known.Mixture | None:
        """The known losses whose sum the objective's is; None where it computes its own."""
        own = self.objective
        if isinstance(own, Mixed) and type(own).token_losses is Mixed.token_losses:
            return own.mix(self.statistic)
        return None


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
class CE(Mixed):
    """Cross-entropy with the data's own tokens: −log q(label). Plain QAT, no teacher."""

    name = "ce"
    needs_teacher = False

    def mix(self, statistic: Any) -> known.Mixture:
        return {known.LABEL: 1.0}


@dataclass(frozen=True)
class KL(Mixed):
    """Forward, mode-covering: KL(p‖q). LLM-QAT's, up to the teacher's entropy."""

    name = "kl"

    def mix(self, statistic: Any) -> known.Mixture:
        return {known.FORWARD: 1.0}


@dataclass(frozen=True)
class ReverseKL(Mixed):
    """Reverse, mode-seeking: KL(q‖p)."""

    name = "reverse-kl"

    def mix(self, statistic: Any) -> known.Mixture:
        return {known.REVERSE: 1.0}


@dataclass(frozen=True)
class CAKLD(Mixed):
    """Confidence-aware: γ·KL(q‖p) + (1 − γ)·KL(p‖q). BitDistiller eq. 6.

    γ is the teacher's confidence on the training data (see `Confidence`), or fixed by `gamma`.
    """

    name = "cakld"
    gamma: Weight | None = None  # weight of KL(q‖p); null: the teacher's confidence
    confidence: Meaning = "label"  # its probability of the label, or its largest

    def build_statistic(self, teacher: Stage[Model], tokens: Stage[Tokens]) -> Stage[float] | None:
        return Confidence(teacher, tokens, self.confidence) if self.gamma is None else None

    def mix(self, statistic: Any) -> known.Mixture:
        gamma = statistic if self.gamma is None else self.gamma
        if gamma is None:
            raise BitgridError("cakld has neither a fixed gamma nor a measured one")
        # A side of weight 0 is left out, because 0 times an infinite divergence would be NaN.
        sides = {known.REVERSE: gamma, known.FORWARD: 1 - gamma}
        return {side: weight for side, weight in sides.items() if weight}


@dataclass(frozen=True)
class JSD(Mixed):
    """Generalised Jensen-Shannon: β·KL(p‖m) + (1 − β)·KL(q‖m), m = βp + (1 − β)q. Always finite.

    At the ends this is 0 for all q, so there we give the limits of JSD/β(1 − β), as GKD does:
    KL(p‖q) for β = 0, KL(q‖p) for β = 1.
    """

    name = "jsd"
    beta: Weight = 0.5  # weight of KL(p‖m)

    def mix(self, statistic: Any) -> known.Mixture:
        if self.beta in (0, 1):
            return {known.REVERSE if self.beta else known.FORWARD: 1.0}
        return {known.Between(self.beta): 1.0}


@dataclass(frozen=True)
class TSLD(Mixed):
    """Token-scaled logit distillation: each token's KL(p‖q), weighted within its sequence by
    softmax(teacher's loss / temperature), so that tokens the teacher is unsure of count more.

    Every sequence counts once; padding counts nothing. BitDistiller's code has temperature 10.
    """

    name = "tsld"
    weighted = True
    # Of the softmax over the teacher's losses.
    temperature: Annotated[float, Field(gt=0, le=1000)] = 1.0

    def mix(self, statistic: Any) -> known.Mixture:
        return {known.FORWARD: 1.0}

    def token_weights(self, nll: Tensor, mask: Tensor) -> Tensor:
        # A label that the teacher rules out has an infinite loss; the softmax needs a finite one.
        finite = (nll / self.temperature).nan_to_num(posinf=torch.finfo(nll.dtype).max)
        shares = finite.masked_fill(~mask, -math.inf).softmax(-1)
        return shares.masked_fill(~mask, 0)  # a row without labels was NaN


@dataclass(frozen=True)
class MSE(Mixed):
    """Mean over the vocabulary of the squared difference of the logits (LLM-QAT's ablation)."""

    name = "mse"

    def mix(self, statistic: Any) -> known.Mixture:
        return {known.SQUARED: 1.0}


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
