"""Objectives against closed forms in float64, by gradient and by property."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp, rel_entr, softmax
from torch import Tensor

import methods.training.eakld
import methods.training.sums  # noqa: F401 (each defines one)
from harness.core.errors import BitgridError, TextError
from harness.core.execution import execute
from harness.data import Documents, Tokens
from harness.models import Model
from methods.training.confidence import Confidence
from methods.training.forward import Labels
from methods.training.objectives import (
    CAKLD,
    CE,
    JSD,
    KL,
    MSE,
    TSLD,
    Objective,
    ReverseKL,
    TokenLogits,
    Untrained,
)

INF = math.inf
DISTILLING = [KL(), ReverseKL(), CAKLD(0.3), JSD(0.5), JSD(0.1), TSLD(), MSE()]
DIVERGENCES = [objective for objective in DISTILLING if not isinstance(objective, MSE)]
ALL = [CE(), *DISTILLING]


def name(objective: Objective) -> str:
    return repr(objective)


def pair(seed: int, n: int = 5, v: int = 7, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, n, v, generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(v, (n,), generator=generator)


def token_losses(
    objective: Objective, student: Tensor, teacher: Tensor | None, labels: Tensor
) -> Tensor:
    return objective.token_losses(TokenLogits(student, teacher, labels))


def reference(objective: Objective, z: np.ndarray, t: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The definitions, by scipy, in probability space."""
    q, p = softmax(z, -1), softmax(t, -1)
    forward, reverse = rel_entr(p, q).sum(-1), rel_entr(q, p).sum(-1)
    match objective:
        case CE():
            return logsumexp(z, -1) - z[np.arange(len(y)), y]
        case KL() | TSLD():
            return forward
        case ReverseKL():
            return reverse
        case CAKLD():
            return objective.gamma * reverse + (1 - objective.gamma) * forward
        case JSD():
            m = objective.beta * p + (1 - objective.beta) * q
            left, right = rel_entr(p, m).sum(-1), rel_entr(q, m).sum(-1)
            return objective.beta * left + (1 - objective.beta) * right
        case MSE():
            return ((z - t) ** 2).mean(-1)
    raise AssertionError(objective)


@pytest.mark.parametrize("objective", ALL, ids=name)
def test_closed_form(objective: Objective) -> None:
    for seed in range(5):
        student, teacher, labels = pair(seed)
        expected = reference(objective, *(t.numpy() for t in (student, teacher, labels)))
        exact = token_losses(objective, student, teacher, labels)
        assert exact.dtype == torch.float64
        np.testing.assert_allclose(exact.numpy(), expected, rtol=1e-10)
        single = token_losses(objective, student.float(), teacher.float(), labels)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_half_precision_logits_are_computed_in_float32() -> None:
    student, teacher, labels = (t.bfloat16() if t.is_floating_point() else t for t in pair(0))
    expected = token_losses(KL(), student.double(), teacher.double(), labels)
    found = token_losses(KL(), student, teacher, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("objective", ALL, ids=name)
def test_gradient(objective: Objective) -> None:
    student, teacher, labels = pair(1, n=3, v=5)
    student.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z: token_losses(objective, z, teacher, labels), (student,)
    )


def test_gradient_of_divergences_in_closed_form() -> None:
    student, teacher, labels = pair(2)
    q, p = student.softmax(-1), teacher.softmax(-1)
    reverse = (q * (q.log() - p.log())).sum(-1, keepdim=True)
    for objective, expected in [
        (KL(), q - p),
        (ReverseKL(), q * (q.log() - p.log() - reverse)),
        (CE(), q - torch.nn.functional.one_hot(labels, q.shape[-1])),
    ]:
        z = student.clone().requires_grad_()
        token_losses(objective, z, teacher, labels).sum().backward()
        torch.testing.assert_close(z.grad, expected)


logits = st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4)


@given(logits, logits)
@settings(max_examples=100, deadline=None)
def test_divergences_are_nonnegative_zero_at_equality_and_blind_to_shifts(
    left: list[float], right: list[float]
) -> None:
    student, teacher, labels = torch.tensor([left]), torch.tensor([right]), torch.tensor([1])
    for objective in DIVERGENCES:
        loss = token_losses(objective, student, teacher, labels)
        assert loss >= -1e-5
        assert token_losses(objective, student, student, labels).abs() < 1e-6
        shifted = token_losses(objective, student.double() + 3.5, teacher.double() - 1.25, labels)
        exact = token_losses(objective, student.double(), teacher.double(), labels)
        torch.testing.assert_close(shifted, exact, rtol=1e-9, atol=1e-9)


@given(logits, logits)
@settings(max_examples=50, deadline=None)
def test_limits(left: list[float], right: list[float]) -> None:
    student = torch.tensor([left], dtype=torch.float64)
    teacher = torch.tensor([right], dtype=torch.float64)
    labels = torch.tensor([0])
    forward = token_losses(KL(), student, teacher, labels)
    reverse = token_losses(ReverseKL(), student, teacher, labels)
    for objective, expected in [
        (CAKLD(0.0), forward),
        (CAKLD(1.0), reverse),
        (JSD(0.0), forward),
        (JSD(1.0), reverse),
    ]:
        assert torch.equal(token_losses(objective, student, teacher, labels), expected)
    there, back = (
        token_losses(JSD(0.5), *logits, labels)
        for logits in [(student, teacher), (teacher, student)]
    )
    torch.testing.assert_close(there, back, rtol=1e-9, atol=1e-12)
    assert there <= math.log(2) + 1e-9


def test_jsd_tends_to_its_limit() -> None:
    student, teacher, labels = pair(3, scale=1.0)
    beta = 1e-6
    near = token_losses(JSD(beta), student, teacher, labels) / (beta * (1 - beta))
    torch.testing.assert_close(
        near, token_losses(JSD(0.0), student, teacher, labels), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("objective", DISTILLING, ids=name)
def test_a_token_ruled_out_by_both_counts_nothing(objective: Objective) -> None:
    student, teacher, labels = pair(4, v=6)
    cut = torch.tensor([-INF], dtype=torch.float64).expand(5, 1)
    with_cut = [torch.cat([t, cut], -1).float() for t in (student, teacher)]
    z = with_cut[0].requires_grad_()
    losses = token_losses(objective, z, with_cut[1], labels)
    expected = token_losses(objective, student, teacher, labels).float()
    scale = 6 / 7 if isinstance(objective, MSE) else 1.0
    torch.testing.assert_close(losses, expected * scale, rtol=1e-4, atol=1e-5)
    losses.sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()
    assert (z.grad[:, -1] == 0).all()


def test_a_token_ruled_out_by_one_side() -> None:
    """0·(−inf) is 0; a divergence that is infinite is +inf; jsd is never infinite."""
    labels = torch.tensor([0])
    whole, cut = torch.zeros(1, 3), torch.tensor([[0.0, 0.0, -INF]])
    log = math.log
    for objective, student, teacher, expected in [
        (KL(), whole, cut, log(3 / 2)),
        (KL(), cut, whole, INF),
        (ReverseKL(), cut, whole, log(3 / 2)),
        (ReverseKL(), whole, cut, INF),
        (CAKLD(0.5), whole, cut, INF),
        (CAKLD(0.0), whole, cut, log(3 / 2)),
        (CAKLD(1.0), cut, whole, log(3 / 2)),
        (
            JSD(0.5),
            whole,
            cut,
            float(
                rel_entr([1 / 2, 1 / 2, 0], [5 / 12, 5 / 12, 1 / 6]).sum()
                + rel_entr([1 / 3] * 3, [5 / 12, 5 / 12, 1 / 6]).sum()
            )
            / 2,
        ),
        (CE(), cut, None, log(2)),
        (MSE(), whole, cut, INF),
    ]:
        z = student.clone().requires_grad_()
        loss = token_losses(objective, z, teacher, labels)
        assert loss.item() == pytest.approx(expected, rel=1e-6), objective
        if math.isfinite(expected):
            loss.sum().backward()
            assert z.grad is not None
            assert z.grad.isfinite().all(), objective


@pytest.mark.parametrize("objective", ALL, ids=name)
def test_masked_positions_do_not_count_even_if_nan(objective: Objective) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 6, 7, generator=generator, dtype=torch.float64)
    ids = torch.randint(7, (3, 6), generator=generator)
    mask = torch.rand(3, 6, generator=generator) < 0.5
    mask[2] = False
    where = mask[:, 1:]
    before = objective.batch_loss(student, teacher, ids, mask)
    spoilt = student.clone()
    spoilt[:, :-1][~where] = math.nan
    spoilt[:, -1] = math.nan
    spoilt.requires_grad_()
    loss = objective.batch_loss(spoilt, teacher, ids, mask)
    torch.testing.assert_close(loss, before)
    loss.backward()
    assert spoilt.grad is not None
    assert spoilt.grad.isfinite().all()
    if not objective.weighted:
        losses = token_losses(
            objective, student[:, :-1][where], teacher[:, :-1][where], ids[:, 1:][where]
        )
        torch.testing.assert_close(loss, losses.mean())


@pytest.mark.parametrize("objective", ALL, ids=name)
def test_nothing_to_learn_is_zero_with_zero_gradient(objective: Objective) -> None:
    student = torch.randn(2, 4, 5, requires_grad=True)
    teacher, ids = torch.randn(2, 4, 5), torch.zeros(2, 4, dtype=torch.int64)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    mask[:, 0] = True  # nothing predicts a first token
    loss = objective.batch_loss(student, teacher, ids, mask)
    loss.backward()
    assert loss == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_tsld_weights_each_sequence_by_the_teachers_losses() -> None:
    nll = torch.tensor([[1.0, 2.0, 3.0], [5.0, INF, 9.0], [1.0, 1.0, 1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True], [False, False, False]])
    weights = TSLD(temperature=2.0).token_weights(nll, mask)
    expected = np.zeros((3, 3))
    expected[0, :2] = softmax([0.5, 1.0])
    expected[1] = [0, 1, 0]
    np.testing.assert_allclose(weights.numpy(), expected, atol=1e-6)


def test_tsld_loss_is_the_mean_over_sequences_of_weighted_kl() -> None:
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 2, 5, 6, generator=generator, dtype=torch.float64)
    ids = torch.randint(6, (2, 5), generator=generator)
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    expected = []
    for b, n in ((0, 4), (1, 2)):
        p, q = (softmax(t[b, :n].numpy(), -1) for t in (teacher, student))
        nll = -np.log(p[np.arange(n), ids[b, 1 : n + 1].numpy()])
        expected.append((softmax(nll) * rel_entr(p, q).sum(-1)).sum())
    assert TSLD().batch_loss(student, teacher, ids, mask).item() == pytest.approx(np.mean(expected))


def test_settings_are_checked() -> None:
    for make in (
        lambda: CAKLD(1.5),
        lambda: CAKLD(confidence="mean"),  # type: ignore[arg-type]
        lambda: JSD(-0.1),
        lambda: TSLD(0.0),
        lambda: token_losses(Untrained(), *pair(0)),
        lambda: token_losses(CAKLD(), *pair(0)),
        lambda: token_losses(KL(), pair(0)[0], None, pair(0)[2]),
    ):
        with pytest.raises(BitgridError):
            make()


def test_every_objective_is_chosen_by_name() -> None:
    assert set(Objective.choices()) == {
        "none", "ce", "kl", "reverse-kl", "cakld", "jsd", "tsld", "mse", "block-mse", "sum",
        "eakld",
    }  # fmt: skip


def test_labels_pick_what_predicts_them() -> None:
    ids, mask = torch.tensor([[3, 4, 5]]), torch.tensor([[True, False, True]])
    labels = Labels.of(ids, mask)
    assert labels.ids.tolist() == [5]
    assert labels.pick(torch.arange(3.0).view(1, 3, 1)).tolist() == [[1.0]]
    assert labels.spread(torch.tensor([7.0])).tolist() == [[0.0, 7.0]]


def test_confidence_is_the_mean_over_labels_only(llama: Model) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(97, (70, 12), generator=generator)
    mask = torch.rand(70, 12, generator=generator) < 0.6
    probabilities = llama.network(ids).logits.double().softmax(-1)[:, :-1]
    label = probabilities.gather(-1, ids[:, 1:, None]).squeeze(-1)[mask[:, 1:]].mean()
    likeliest = probabilities.amax(-1)[mask[:, 1:]].mean()
    for meaning, expected in (("label", label), ("max", likeliest)):
        stage = Confidence(llama, Tokens(ids, mask), meaning)  # type: ignore[arg-type]
        assert stage.run(Path()) == pytest.approx(float(expected), rel=1e-5)
    few = Confidence(llama, Tokens(ids, mask), sequences=2).run(Path())
    ends = [0, 69]
    expected = probabilities.gather(-1, ids[:, 1:, None]).squeeze(-1)[ends][mask[ends, 1:]].mean()
    assert few == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(TextError, match="no label"):
        Confidence(llama, Tokens(ids, torch.zeros_like(mask))).run(Path())


def test_only_an_open_gamma_asks_for_a_statistic(llama: Model, tmp_path: Path) -> None:
    tokens, teacher = Documents("x", "train"), Documents("y", "train")
    assert CAKLD(0.5).build_statistic(teacher, tokens) is None  # type: ignore[arg-type]
    assert KL().build_statistic(teacher, tokens) is None  # type: ignore[arg-type]
    stages = {
        CAKLD(confidence=c).build_statistic(teacher, tokens).key  # type: ignore[arg-type, union-attr]
        for c, _ in itertools.product(("label", "max"), range(2))
    }
    assert len(stages) == 2
    stage = CAKLD().build_statistic(teacher, tokens)  # type: ignore[arg-type]
    assert stage is not None
    ids = torch.randint(97, (4, 8))
    values = {teacher.key: llama, tokens.key: Tokens(ids, torch.ones_like(ids, dtype=torch.bool))}
    assert 0 < execute(stage, values, tmp_path) < 1


WRONG: dict[str, Callable[[Tensor], Any]] = {
    "a mean": lambda losses: losses.mean(),
    "a sum in a row": lambda losses: losses.sum()[None],
    "a column": lambda losses: losses[:, None],
    "one too few": lambda losses: losses[1:],
    "whole numbers": lambda losses: losses.long(),
    "detached": lambda losses: losses.detach(),
    "a number": lambda losses: float(losses.detach().mean()),
    "nothing": lambda losses: None,
}


@pytest.mark.parametrize("fault", WRONG)
def test_an_objective_gives_one_loss_a_token(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    student = torch.randn(5, 7, requires_grad=True)
    logits = TokenLogits(student, torch.randn(5, 7), torch.arange(5))
    assert KL().compute_losses(logits).shape == (5,)
    right = KL.token_losses
    monkeypatch.setattr(KL, "token_losses", lambda self, seen: WRONG[fault](right(self, seen)))
    said = "no gradient passes" if fault == "detached" else r"one loss a token, shape \(5,\)"
    with pytest.raises(BitgridError, match=rf"objective 'kl': .*{said}"):
        KL().compute_losses(logits)
