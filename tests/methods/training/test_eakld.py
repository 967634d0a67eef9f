"""EAKLD against its definition, in whole tensors and in a step."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import entr, rel_entr, softmax
from torch import Tensor

import methods.training.forward
from harness.core.errors import BitgridError
from harness.data import Tokens
from harness.models import Model
from methods.training.contribution import Contribution
from methods.training.eakld import EAKLD
from methods.training.masters import Masters
from methods.training.objectives import CE, KL, TSLD, ReverseKL, TokenLogits
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep
from methods.training.sums import Sum
from tests.methods.training.test_blocks import gradients
from tests.methods.training.test_train import FORMAT, make_tokens


def _draw(seed: int, scale: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits of student and teacher (2, 6, 11) in float64, ids, and a mask."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = scale * torch.randn(2, 2, 6, 11, generator=generator, dtype=torch.float64)
    ids = torch.randint(11, (2, 6), generator=generator)
    return student, teacher, ids, torch.rand(2, 6, generator=generator) < 0.7


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.0, 8.0), k=st.sampled_from([2, 5, 16]))
def test_a_batch_has_one_balance_by_the_teachers_entropy(seed: int, scale: float, k: int) -> None:
    student, teacher, ids, mask = _draw(seed, scale)
    if not mask[:, 1:].any():
        return
    where = mask[:, 1:].numpy()
    q, p = (softmax(each[:, :-1].numpy(), -1)[where] for each in (student, teacher))
    gamma = np.clip(1 - entr(p).sum(-1).mean() / math.log(k), 0, 1)
    expected = gamma * rel_entr(q, p).sum(-1).mean() + (1 - gamma) * rel_entr(p, q).sum(-1).mean()
    found = EAKLD(k).batch_loss(student, teacher, ids, mask)
    assert float(found) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_side_without_weight_is_left_out() -> None:
    """An unsure teacher's is KL(p‖q), a sure one's KL(q‖p), also where the other is infinite."""
    student, _, ids, mask = _draw(0, 2.0)
    mask[:] = True
    unsure, sure = torch.zeros_like(student), torch.zeros_like(student)
    sure[..., 0] = 200.0
    ruled_out = student.clone()
    ruled_out[..., 3] = -math.inf
    for objective, one, two in ((KL(), student, unsure), (ReverseKL(), ruled_out, sure)):
        found = EAKLD(2).batch_loss(one, two, ids, mask)
        assert found == objective.batch_loss(one, two, ids, mask) and found.isfinite()
    with pytest.raises(BitgridError, match="of a batch"):
        EAKLD().token_losses(TokenLogits(student[0], unsure[0], ids[0]))


@pytest.mark.parametrize("micro", [2, 6])
def test_a_step_is_that_of_the_whole_batch(
    llama: Model, teacher: Model, micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, three tokens a chunk, beside a part that weighs tokens otherwise."""
    monkeypatch.setitem(methods.training.forward._CHUNK, "cpu", 97 * 12)
    tokens = make_tokens(6)
    tokens.mask[1] = False
    student, guide = (ALONE.split(each, torch.float64) for each in (llama, teacher))
    both = Sum((TSLD(2.0), EAKLD(97), CE()), (1.0, 0.5, 0.25))
    training = Training(batch_size=6, micro_batch=micro, dtype="float32", clip_norm=0.0)
    masters = Masters.of(student, FORMAT, "all", torch.float64)
    loss, _, found = gradients(TrainingStep(training, both, None, masters, guide), tokens)
    masters.requantize()
    whole = _compute_whole(replace(student, network=masters.network), guide, tokens)
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    masters.accumulate_gradients()
    masters.finish_gradients(1.0)
    for name, weight in masters.weights.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-7, msg=name)


def _compute_whole(student: Model, teacher: Model, tokens: Tokens) -> Tensor:
    """TSLD + 0.5 EAKLD + 0.25 CE by plain autograd, written out."""
    ids, where = tokens.ids, tokens.mask[:, 1:]
    log_q = student.network(ids).logits[:, :-1].log_softmax(-1)
    with torch.no_grad():
        log_p = teacher.network(ids).logits[:, :-1].log_softmax(-1)
    forward = (log_p.exp() * (log_p - log_q)).sum(-1)
    reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)[where].mean()
    gamma = float(1 - entropy / math.log(97))
    assert 0.01 < gamma < 0.99  # else one of the two would not be seen
    nll = -log_p.gather(-1, ids[:, 1:, None])[..., 0]
    rows = [
        ((nll[row][where[row]] / 2).softmax(-1) * forward[row][where[row]]).sum()
        for row in range(len(ids))
        if where[row].any()
    ]
    ce = -log_q.gather(-1, ids[:, 1:, None])[..., 0][where].mean()
    both = gamma * reverse[where].mean() + (1 - gamma) * forward[where].mean()
    return torch.stack(rows).mean() + 0.5 * both + 0.25 * ce


def test_the_loss_by_confidence_adds_up(llama: Model, teacher: Model) -> None:
    tokens = make_tokens(8)
    shown = Contribution(teacher, llama, tokens, EAKLD(97), None).run(Path())
    with torch.no_grad():
        logits = [each.network(tokens.ids).logits for each in (llama, teacher)]
        wanted = EAKLD(97).batch_loss(*logits, tokens.ids, tokens.mask)
    assert sum(shown["loss"]) == pytest.approx(float(wanted), rel=1e-4)
    assert shown["objective"] == "eakld"
