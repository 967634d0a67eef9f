"""Sums of objectives against their parts, each computed from whole tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax
from torch import Tensor

import methods.training.forward
from harness.core.errors import BitgridError, SettingError
from harness.core.execution import execute
from harness.core.stage import closure
from harness.data import Documents, Tokens
from harness.models import Model
from methods.training.contribution import Contribution
from methods.training.masters import Masters
from methods.training.objectives import (
    CAKLD,
    CE,
    KL,
    TSLD,
    BlockMSE,
    Objective,
    ReverseKL,
    TokenLogits,
    Untrained,
)
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep
from methods.training.sums import Statistics, Sum
from tests.methods.training.test_blocks import compute_whole, gradients
from tests.methods.training.test_train import FORMAT, make_step, make_tokens

EVERYTHING = Sum((CAKLD(0.3), TSLD(2.0), CE(), BlockMSE()), (0.5, 2.0, 0.25, 3.0))


def compute_parts(student: Model, teacher: Model, tokens: Tokens) -> Tensor:
    """EVERYTHING by plain autograd on whole tensors, written out."""
    ids, where = tokens.ids, tokens.mask[:, 1:]
    log_q = student.network(ids).logits[:, :-1].log_softmax(-1)
    with torch.no_grad():
        log_p = teacher.network(ids).logits[:, :-1].log_softmax(-1)
    labels = ids[:, 1:, None]
    forward = (log_p.exp() * (log_p - log_q)).sum(-1)
    reverse = (log_q.exp() * (log_q - log_p)).sum(-1)
    cakld = (0.3 * reverse + 0.7 * forward)[where].mean()
    nll, rows = -log_p.gather(-1, labels)[..., 0], []
    for row in range(len(ids)):
        if where[row].any():
            share = (nll[row][where[row]] / 2).softmax(-1)
            rows.append((share * forward[row][where[row]]).sum())
    tsld = torch.stack(rows).mean()
    ce = -log_q.gather(-1, labels)[..., 0][where].mean()
    blocks = compute_whole(student, teacher, ids, tokens.mask)
    return 0.5 * cakld + 2 * tsld + 0.25 * ce + 3 * blocks


@pytest.mark.parametrize("micro", [2, 6])
def test_loss_and_gradients_are_those_of_the_parts_on_whole_tensors(
    llama: Model, teacher: Model, micro: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, three tokens a chunk, a sequence without labels, tokens weighed in two ways."""
    monkeypatch.setitem(methods.training.forward._CHUNK, "cpu", 97 * 12)
    tokens = make_tokens(6)
    tokens.mask[1] = False
    student, guide = (ALONE.split(each, torch.float64) for each in (llama, teacher))
    masters = Masters.of(student, FORMAT, "all", torch.float64)
    training = Training(batch_size=6, micro_batch=micro, dtype="float32", clip_norm=0.0)
    step = TrainingStep(training, EVERYTHING, None, masters, guide)
    loss, _, found = gradients(step, tokens)
    masters.requantize()
    whole = compute_parts(replace(student, network=masters.network), guide, tokens)
    whole.backward()
    assert loss == pytest.approx(whole.item(), rel=1e-6)
    masters.accumulate_gradients()
    masters.finish_gradients(1.0)
    for name, weight in masters.weights.items():
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("first", [KL(), TSLD(), BlockMSE(), CE()], ids=repr)
def test_a_part_of_weight_0_changes_no_bit(llama: Model, teacher: Model, first: Objective) -> None:
    tokens = make_tokens(6)
    alone = gradients(make_step(llama, teacher, first, 4), tokens)
    other = TSLD() if not isinstance(first, TSLD) else BlockMSE()
    summed = gradients(make_step(llama, teacher, Sum((first, other), (1, 0)), 4), tokens)
    assert summed[:2] == alone[:2]
    assert summed[2].keys() == alone[2].keys()
    assert all(torch.equal(summed[2][name], alone[2][name]) for name in alone[2])


def test_equal_parts_add_up_and_sums_may_be_parts(llama: Model, teacher: Model) -> None:
    tokens = make_tokens(6)
    alone = gradients(make_step(llama, teacher, TSLD(), 4), tokens)
    nested = Sum((Sum((TSLD(), TSLD()), (1, 3)), TSLD()), (0.5, 1))
    loss, norm, found = gradients(make_step(llama, teacher, nested, 4), tokens)
    assert (loss, norm) == pytest.approx((3 * alone[0], 3 * alone[1]), rel=1e-5)
    for name in found:
        torch.testing.assert_close(found[name], 3 * alone[2][name], rtol=1e-4, atol=1e-6)


weight = st.floats(0, 100)


@given(weight, weight, st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_the_loss_of_a_batch_is_linear_in_the_weights(a: float, b: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 2, 4, 5, generator=generator, dtype=torch.float64)
    ids = torch.randint(5, (2, 4), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    q, p = (softmax(t[:, :-1].numpy(), -1) for t in (student, teacher))
    wanted = a * rel_entr(p, q).sum(-1).mean() + b * rel_entr(q, p).sum(-1).mean()
    if a or b:
        found = Sum((KL(), ReverseKL()), (a, b)).batch_loss(student, teacher, ids, mask)
        assert float(found) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_each_part_gets_the_statistic_that_it_asked_for(
    llama: Model, teacher: Model, tmp_path: Path
) -> None:
    tokens = make_tokens(8)
    text, guide = Documents("x", "train"), Documents("y", "train")
    both = Sum((CAKLD(), CE(), CAKLD(confidence="max"), CAKLD(0.5)), (1, 2, 3, 4))
    stage: Any = both.build_statistic(guide, text)  # type: ignore[arg-type]
    assert isinstance(stage, Statistics)
    asked = closure([stage])
    assert {each.kind for each in asked if each.inputs} == {"confidence", "statistics"}
    values: dict[str, Any] = {guide.key: teacher, text.key: tokens}
    for each in asked:
        values.setdefault(each.key, None)
        if each.inputs:
            values[each.key] = execute(each, values, tmp_path)
    label, other = values[stage.parts[0].key], values[stage.parts[2].key]
    assert label != other
    known = values[stage.key]
    assert known == [label, None, other, None]
    assert [term.statistic for term in both.list_terms(known)] == known
    assert Sum((CAKLD(), KL()), (0, 1)).build_statistic(guide, text) is None  # type: ignore[arg-type]


def test_the_loss_by_confidence_adds_up_to_the_sum(llama: Model, teacher: Model) -> None:
    tokens = make_tokens(8)
    shown = Contribution(teacher, llama, tokens, EVERYTHING, None).run(Path())
    with torch.no_grad():
        wanted = compute_parts(llama, teacher, tokens)
    assert sum(shown["loss"]) == pytest.approx(float(wanted), rel=1e-4)
    assert shown["objective"] == "0.5 cakld + 2 tsld + 0.25 ce + 3 block-mse"


def test_a_teacher_is_needed_where_a_part_counts_that_needs_one() -> None:
    assert Sum((CE(), KL()), (1, 1)).needs_teacher
    assert not Sum((CE(), KL()), (1, 0)).needs_teacher


def test_what_cannot_be_added_is_refused() -> None:
    for parts, weights, why in (
        ((CE(), KL()), (1,), "2 parts need as many weights, not 1"),
        ((CE(), KL()), (0, 0), "all weights are 0"),
        ((), (), "all weights are 0"),
        ((CE(), Untrained()), (1, 1), "'none' has no loss"),
        ((CE(),), (-1,), "-1 should be at least 0"),
    ):
        with pytest.raises(SettingError, match=why):
            Sum(parts, weights)  # type: ignore[arg-type]
    logits = torch.zeros(1, 2, 3)
    ids = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(BitgridError, match="'block-mse' sees blocks, not logits"):
        Sum((BlockMSE(),), (1,)).batch_loss(logits, logits, ids, ids == 0)
    with pytest.raises(BitgridError, match="a sum has no loss of a token"):
        Sum((CE(),), (1,)).compute_losses(TokenLogits(logits[0], None, ids[0]))
