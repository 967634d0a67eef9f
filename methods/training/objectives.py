"""Objectives: what a quantised student is trained to do, as a loss per label token.

    losses = CAKLD(gamma=0.5).tokens(student_logits, teacher_logits, labels)      # (N, V) -> (N,)

An objective sees N label tokens at a time, never a batch: the loop hands it one chunk of logits
after another and adds up `weight × loss`. The loss of a batch is the weighted mean over its label
tokens, which `loss` spells out for whole tensors. What an objective must know of the teacher before
training (CAKLD's confidence) it asks for as a stage, which cells share.

Notation: z student logits, q = softmax z; p = the teacher's probabilities; KL(a‖b) = Σ a (log a −
log b). All in log space and in float32, or float64 where the logits are. A term with a = 0 is 0,
whatever b. Where b = 0 and a > 0 the divergence is infinite and comes back as +inf: a loss that has
no value must stop the training, not be clipped to a number that looks like one.

Not here: the head and the chunks (`forward`), the loop (`train`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from harness.core.component import Component
from harness.core.errors import BitgridError, TextError, nearest
from harness.core.stage import Input, Resources, Stage, report, value
from harness.data import Tokens
from harness.models import Model, host_gib
from methods.training.forward import Labels, each_label

Meaning: TypeAlias = Literal["label", "max"]
_MEANINGS = ("label", "max")
CONFIDENCE_TOKENS = 16_384  # a batch, where the teacher's confidence is measured


@dataclass(frozen=True)
class Objective(Component, family="objective"):
    """A loss per label token, and how much each token counts."""

    teacher: ClassVar[bool] = True  # whether the loss looks at a teacher
    weighted: ClassVar[bool] = (
        False  # whether tokens count unequally, by the teacher's token losses
    )

    @abstractmethod
    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        """The loss of each token: (N,) float32, or float64 for float64 logits.

        student and teacher: logits (N, V), teacher None for objectives without one. labels: (N,)
        int64. statistic: the value of the stage that `statistic` returned.
        """

    def weights(self, nll: Tensor, mask: Tensor) -> Tensor:
        """How much each token counts, where `weighted`: (B, T), zero where the mask is False.

        nll: (B, T) the teacher's loss on each label; mask: (B, T) bool.
        """
        return mask.to(nll.dtype)

    def statistic(self, teacher: Stage[Model], tokens: Stage[Tokens]) -> Stage[float] | None:
        """The number that must be known before training, as a stage; None for most."""
        return None

    def loss(
        self,
        student: Tensor,
        teacher: Tensor | None,
        ids: Tensor,
        mask: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        """The loss of a batch, from whole logits (B, T, V): what chunked training computes.

        ids: (B, T) int64; mask: (B, T) bool, True at labels. A scalar; 0 where nothing is a label.
        """
        labels = Labels.of(ids, mask)
        guide = None if teacher is None else labels.pick(teacher)
        losses = self.tokens(labels.pick(student), guide, labels.ids, statistic)
        weights = torch.ones_like(losses)
        if self.weighted:
            nll = labels.spread(token_nll(_given(guide), labels.ids))
            weights = self.weights(nll, labels.where)[labels.where]
        return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(losses.dtype).tiny)


@dataclass(frozen=True)
class Untrained(Objective):
    """No training: the recipe stops after its initialisation."""

    name = "none"
    teacher = False

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        raise BitgridError("the objective 'none' has no loss; choose one to train")


@dataclass(frozen=True)
class CE(Objective):
    """Cross-entropy with the data's own tokens: −log q(label). Plain QAT, no teacher."""

    name = "ce"
    teacher = False

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        return token_nll(student, labels)


@dataclass(frozen=True)
class KL(Objective):
    """Forward, mode-covering: KL(p‖q). LLM-QAT's, up to the teacher's entropy."""

    name = "kl"

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        return _kl(_log_softmax(_given(teacher)), _log_softmax(student))


@dataclass(frozen=True)
class ReverseKL(Objective):
    """Reverse, mode-seeking: KL(q‖p)."""

    name = "reverse-kl"

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        return _kl(_log_softmax(student), _log_softmax(_given(teacher)))


@dataclass(frozen=True)
class CAKLD(Objective):
    """Confidence-aware: γ·KL(q‖p) + (1 − γ)·KL(p‖q). BitDistiller eq. 6.

    γ is the teacher's confidence on the training data (see `Confidence`), or fixed by `gamma`.
    """

    name = "cakld"
    gamma: float | None = None
    confidence: Meaning = "label"

    def __post_init__(self) -> None:
        if self.gamma is not None and not 0 <= self.gamma <= 1:
            raise BitgridError(f"gamma {self.gamma} is no weight between 0 and 1")
        if self.confidence not in _MEANINGS:
            raise BitgridError(
                f"confidence {self.confidence!r} is unknown; {nearest(self.confidence, _MEANINGS)}"
            )

    def statistic(self, teacher: Stage[Model], tokens: Stage[Tokens]) -> Stage[float] | None:
        return Confidence(teacher, tokens, self.confidence) if self.gamma is None else None

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        gamma = statistic if self.gamma is None else self.gamma
        if gamma is None:
            raise BitgridError("cakld has neither a fixed gamma nor a measured one")
        log_q, log_p = _log_softmax(student), _log_softmax(_given(teacher))
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
    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.beta <= 1:
            raise BitgridError(f"beta {self.beta} is no weight between 0 and 1")

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        beta, log_q, log_p = self.beta, _log_softmax(student), _log_softmax(_given(teacher))
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
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise BitgridError(f"temperature {self.temperature} is not positive")

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        return _kl(_log_softmax(_given(teacher)), _log_softmax(student))

    def weights(self, nll: Tensor, mask: Tensor) -> Tensor:
        # A label that the teacher rules out has an infinite loss; the softmax needs a finite one.
        finite = (nll / self.temperature).nan_to_num(posinf=torch.finfo(nll.dtype).max)
        shares = finite.masked_fill(~mask, -math.inf).softmax(-1)
        return shares.masked_fill(~mask, 0)  # a row without labels was NaN


@dataclass(frozen=True)
class MSE(Objective):
    """Mean over the vocabulary of the squared difference of the logits (LLM-QAT's ablation)."""

    name = "mse"

    def tokens(
        self,
        student: Tensor,
        teacher: Tensor | None,
        labels: Tensor,
        statistic: float | None = None,
    ) -> Tensor:
        left, right = _exact(student), _exact(_given(teacher))
        dead = torch.isneginf(left) & torch.isneginf(right)
        return (left - right).masked_fill(dead, 0).square().mean(-1)


@dataclass(frozen=True)
class Confidence(Stage[float]):
    """The teacher's mean confidence over label tokens: CAKLD's γ.

    `label`: the probability of the label, as in the paper. `max`: of the likeliest token, as in the
    published code. Measured on `sequences` of the data, evenly spread over it.
    """

    teacher: Input[Model]
    tokens: Input[Tokens]
    meaning: Meaning = "label"
    sequences: int = 256

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.teacher, 16.0), hours=1.0)

    def run(self, work: Path) -> float:
        teacher, tokens = value(self.teacher), value(self.tokens)
        rows = sample(tokens, self.sequences)
        batch = max(1, CONFIDENCE_TOKENS // tokens.ids.shape[1])
        total, labels = 0.0, 0
        for start in range(0, len(rows), batch):
            chosen = rows[start : start + batch]
            ids, mask = (t[chosen].to(teacher.device) for t in (tokens.ids, tokens.mask))
            found = each_label(teacher.network, ids, Labels.of(ids, mask), self._measure)
            total, labels = total + float(found.double().sum()), labels + len(found)
            report(start + len(chosen), len(rows))
        if labels == 0:
            raise TextError("the training data have no label tokens to measure confidence on")
        return total / labels

    def _measure(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.meaning == "label":
            return token_nll(logits, labels).neg().exp()
        return _log_softmax(logits).amax(-1).exp()


def sample(tokens: Tokens, count: int) -> Tensor:
    """The rows of `count` sequences (all, where there are fewer), evenly spread over the data."""
    return torch.linspace(0, len(tokens) - 1, min(count, len(tokens))).round().long()


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits)[label]: (N, V), (N,) -> (N,)."""
    return -_log_softmax(logits).gather(-1, labels[:, None]).squeeze(-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b) from log probabilities: (N, V), (N, V) -> (N,)."""
    a = log_a.exp()
    # Both sides of 0·(±inf − …) must go, or the gradient is NaN where the value is not.
    gap = (log_a - log_b).masked_fill(a == 0, 0)
    return (a * gap).sum(-1)


def _exact(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _log_softmax(logits: Tensor) -> Tensor:
    return _exact(logits).log_softmax(-1)


def _given(teacher: Tensor | None) -> Tensor:
    if teacher is None:
        raise BitgridError("this objective needs a teacher's logits")
    return teacher
