"""Losses and gradients in closed form against autograd on log probabilities, masks and all."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import methods.training.forward
from harness.core.errors import BitgridError
from harness.models import Model
from methods.training.known_losses import (
    FORWARD,
    LABEL,
    REVERSE,
    SQUARED,
    Between,
    KnownLoss,
    measure,
    measure_mixtures,
)
from methods.training.objectives import CAKLD, CE, JSD, KL, TSLD, TokenLogits
from methods.training.sums import Sum
from tests.methods.training.test_blocks import gradients
from tests.methods.training.test_train import make_step, make_tokens

INF = math.inf
LOSSES: list[KnownLoss] = [FORWARD, REVERSE, LABEL, SQUARED, Between(0.5), Between(0.1)]


def divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """KL(a‖b), where what a rules out counts nothing."""
    a = log_a.exp()
    return (a * (log_a - log_b).masked_fill(a == 0, 0)).sum(-1)


def reference(known: KnownLoss, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    dead = torch.isneginf(student) & torch.isneginf(teacher)
    match known:
        case Between(beta):
            left, right = (each.masked_fill(dead, 0) for each in (log_p, log_q))
            log_m = torch.logaddexp(left + math.log(beta), right + math.log1p(-beta))
            return beta * divergence(log_p, log_m) + (1 - beta) * divergence(log_q, log_m)
    if known is SQUARED:
        return (student - teacher).masked_fill(dead, 0).square().mean(-1)
    if known is LABEL:
        return -log_q.gather(-1, labels[:, None]).squeeze(-1)
    return divergence(log_p, log_q) if known is FORWARD else divergence(log_q, log_p)


ordinary = st.floats(-40, 40, width=32)
number = st.one_of(ordinary, ordinary, st.sampled_from([-INF, -1e4, -300.0, 300.0, 1e4]))
row = st.lists(number, min_size=5, max_size=5).filter(lambda values: max(values) > -INF)
sides = st.lists(st.tuples(row, row, st.integers(0, 4)), min_size=1, max_size=3)


@given(sides, st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=50, deadline=None)
def test_losses_and_gradients_are_those_of_autograd(
    sides: list[tuple[list[float], list[float], int]], dtype: torch.dtype
) -> None:
    """Each alone, where it is finite also its gradient, which overwrites the teacher's logits."""
    student, teacher = (torch.tensor([each[i] for each in sides], dtype=dtype) for i in (0, 1))
    labels = torch.tensor([each[2] for each in sides])
    finite = torch.cat([student, teacher]).nan_to_num(neginf=0).abs().max().item()
    near = {"rtol": 1e-4, "atol": 1e-5 + 1e-6 * finite}
    scales = torch.linspace(0.5, 2, len(labels), dtype=dtype)[None]
    for known in LOSSES:
        leaf = student.clone().requires_grad_()
        wanted = reference(known, leaf, teacher, labels)
        place = teacher.clone()
        found = measure_mixtures(student, place, labels, [{known: 1.0}], scales, place)
        assert found.dtype == dtype
        torch.testing.assert_close(found[0], wanted.detach(), **near, msg=repr(known))
        which = wanted.isfinite()
        (scales[0] * wanted)[which].sum().backward()
        assert leaf.grad is not None
        torch.testing.assert_close(place[which], leaf.grad[which], **near, msg=repr(known))


def test_mixtures_share_what_they_have_in_common() -> None:
    """Three in one pass, tokens scaled in each by themselves, a few rows at a time, in 16 bits."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 9, 7, generator=generator).bfloat16()
    labels, scales = torch.arange(9) % 7, torch.rand(3, 9, generator=generator)
    mixtures = [
        {FORWARD: 0.7, REVERSE: 0.3},
        {FORWARD: 1.0, LABEL: 2.0, SQUARED: 0.1},
        {Between(0.3): 1.0, Between(0.6): 0.5},
    ]
    leaf = student.double().requires_grad_()
    wanted = torch.stack(
        [
            sum((w * reference(known, leaf, teacher.double(), labels) for known, w in mix.items()))
            for mix in mixtures
        ]
    )
    (scales * wanted).sum().backward()
    assert leaf.grad is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(methods.training.forward._CHUNK, "cpu", 32 * 7 * 2)
        found = measure_mixtures(student, teacher, labels, mixtures, scales, student)
    torch.testing.assert_close(found, wanted.detach().float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student, leaf.grad.bfloat16(), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("side", ["student", "teacher"])
@pytest.mark.parametrize("fault", [math.nan, INF])
def test_what_is_no_distribution_has_no_loss(side: str, fault: float) -> None:
    logits = {name: torch.randn(2, 5) for name in ("student", "teacher")}
    logits[side][0, 3] = fault
    for known in LOSSES:
        losses = measure(logits["student"], logits["teacher"], torch.tensor([1, 1]), {known: 1.0})
        if known is not LABEL or side == "student":
            assert not losses[0].isfinite(), known
        assert losses[1].isfinite(), known


def test_a_gradient_that_nobody_computes_is_refused() -> None:
    student, teacher = torch.randn(2, 3, 5).requires_grad_().unbind()
    with pytest.raises(BitgridError, match="pass no gradient to the teacher"):
        KL().token_losses(TokenLogits(student, teacher, torch.arange(3)))


def test_a_step_takes_losses_of_both_kinds(
    llama: Model, teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An objective with a `token_losses` of its own is autograd's, also one that derives from a
    known one; the sum with others is the same."""
    monkeypatch.setitem(methods.training.forward._CHUNK, "cpu", 97 * 10)
    mixed = Sum((KL(), CE(), TSLD(2.0), JSD(0.3), CAKLD(0.4)), (1, 0.5, 2, 1, 1))
    tokens = make_tokens(6)
    known = gradients(make_step(llama, teacher, mixed, 4), tokens)
    seen = []

    def plain(self: object, logits: TokenLogits) -> Tensor:
        seen.append(len(logits.labels))
        return divergence(logits.log_p, logits.log_q)

    monkeypatch.setattr(KL, "token_losses", plain)
    monkeypatch.setattr(TSLD, "token_losses", plain)
    own = gradients(make_step(llama, teacher, mixed, 4), tokens)
    assert seen
    assert own[0] == pytest.approx(known[0], rel=1e-5)
    for name, gradient in own[2].items():
        torch.testing.assert_close(gradient, known[2][name], rtol=1e-4, atol=1e-6, msg=name)
