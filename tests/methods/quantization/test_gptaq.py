"""GPTAQ against its definition: each column's step is solved anew, in float64, on the inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.core.stage import Stage
from harness.data import Tokens
from harness.models import Model, matrices, pretrained
from methods.quantization.formats import NF, Grouped, IntAsym, IntSym, bounds
from methods.quantization.gptaq import GPTAQ
from methods.quantization.gptq import GPTQ
from methods.quantization.observing import sum_deviations, sum_grams
from methods.quantization.rounding import BlockRounding, RoundBlocks, quantize_model
from methods.quantization.walking import sequentially
from tests.methods.conftest import make_llama
from tests.support import architectures
from tests.support.stages import execute_alone


def _draw(seed: int, rows: int, width: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight (O, I), and what is read of it in the rounded and in the original network (n, I)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    read = torch.randn(tokens, width, generator=generator) @ mixing
    noise = torch.randn(tokens, width, generator=generator) @ mixing
    turn = torch.eye(width) + 0.1 * torch.randn(width, width, generator=generator) / width**0.5
    return weight, read, read @ turn + 0.2 * noise


def _sum(read: Tensor, original: Tensor) -> Tensor:
    return torch.stack([read.T @ read, (original - read).T @ read])


def _round_by_definition(
    weight: Tensor, read: Tensor, original: Tensor, format: Grouped, damping: float
) -> Tensor:
    """Column by column; those that are left solve a least-squares problem: they take on the error
    of the column's rounding on X, and the column's own output on Y - X."""
    left, values = weight.double(), weight.double()
    own, deviation = read.double(), (original - read).double()
    ridge = damping * (own.T @ own).diagonal().mean() * torch.eye(len(weight.T))
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    for column in range(weight.shape[1]):
        (group,) = (g for g in format.groups(weight.shape[1]) if g.start <= column < g.stop)
        if column == group.start:
            ends[group.start] = bounds(left[:, group].float())
        now, later = left[:, column].clone(), slice(column + 1, None)
        chosen = format.quantize_dequantize(now[:, None].float(), *ends[group.start])[:, 0].double()
        error = torch.outer(now - chosen, own[:, column])
        missing = error + torch.outer(now, deviation[:, column])  # (O, n): what outputs lack
        gram = own[:, later].T @ own[:, later] + ridge[later, later]
        left[:, later] += torch.linalg.solve(gram, own[:, later].T @ missing.T).T
        values[:, column] = chosen
    return values


@pytest.mark.parametrize(
    "format", [IntAsym(3, 16), IntAsym(4, 0), NF(3, 8), IntAsym(2, 20, tail=True)]
)
def test_it_is_what_the_paper_defines(format: Grouped) -> None:
    weight, read, original = _draw(0, 12, 48, 200)
    values = GPTAQ(share=1).round_weight(weight, _sum(read, original), format)
    expected = _round_by_definition(weight, read, original, format, 0.01)
    # A value halfway between two levels may go either way in float32.
    same = torch.isclose(values.double(), expected, atol=1e-4)
    assert same.double().mean() > 0.98


def test_over_more_columns_than_are_moved_at_once() -> None:
    weight, read, original = _draw(3, 6, 160, 600)
    values = GPTAQ(share=1).round_weight(weight, _sum(read, original), IntAsym(4, 0))
    expected = _round_by_definition(weight, read, original, IntAsym(4, 0), 0.01)
    assert torch.isclose(values.double(), expected, atol=1e-4).double().mean() > 0.98


@pytest.mark.parametrize("act_order", [False, True])
def test_of_equal_inputs_it_is_gptq(act_order: bool) -> None:
    weight, read, original = _draw(1, 8, 32, 100)
    gram, format = read.T @ read, IntAsym(3, 16)
    expected = GPTQ(act_order=act_order).round_weight(weight, gram, format)
    same = GPTAQ(act_order=act_order, share=1).round_weight(weight, _sum(read, read), format)
    none = GPTAQ(act_order=act_order, share=0).round_weight(weight, _sum(read, original), format)
    assert torch.equal(same, expected) and torch.equal(none, expected)


def _measure(weight: Tensor, values: Tensor, read: Tensor, original: Tensor) -> Tensor:
    """The squared distance of each row's outputs from those of the original network: (O,)."""
    change = values.double() @ read.T.double() - weight.double() @ original.T.double()
    return change.square().sum(-1)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    format=st.sampled_from([IntAsym(2, 8), IntAsym(3, 0), IntSym(3, 16), NF(3, 16), NF(2, 0)]),
    act_order=st.booleans(),
    tokens=st.sampled_from([3, 40, 300]),
)
def test_no_row_is_further_from_the_original_than_with_the_nearest_levels(
    seed: int, format: Grouped, act_order: bool, tokens: int
) -> None:
    weight, read, original = _draw(seed, 4, 32, tokens)
    rounding = GPTAQ(act_order=act_order, share=1)
    values = rounding._round_weight("layer", weight, _sum(read, original), format)
    ours = _measure(weight, values, read, original)
    nearest = _measure(weight, format.quantize(weight), read, original)
    assert bool((ours <= nearest * (1 + 1e-3) + 1e-4).all())
    for group in format.groups(32):
        assert all(len(row.unique()) <= 2**format.bits for row in values[:, group])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("format", [IntAsym(2, 16), IntAsym(3, 16), NF(3, 16)])
def test_outputs_are_nearer_to_the_original_networks_than_gptqs(format: Any, seed: int) -> None:
    weight, read, original = _draw(seed, 64, 64, 2000)
    sums = _sum(read, original)
    ours, theirs = (
        float(_measure(weight, values, read, original).sum())
        for values in (
            GPTAQ(share=1).round_weight(weight, sums, format),
            GPTQ().round_weight(weight, sums[0], format),
        )
    )
    assert ours < theirs


def _tokens() -> Tokens:
    ids = torch.randint(3, 97, (16, 32), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def test_deviations_are_those_of_what_both_networks_read(tmp_path: Path) -> None:
    """Both networks run whole, one with its first block and a layer of the second changed."""
    model, tokens = make_llama(), _tokens()
    changed = model.fork()
    first, second = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.v_proj"
    seen = dict[str, tuple[Tensor, Tensor]]()
    for block in sequentially(changed, tokens, tmp_path, originals=True, at_once=4, pairs=True):
        name = second if block.number else first
        if block.number:
            block.replace(name, block.layers[name].weight * 1.5)
        for reading, (gram, deviation) in sum_deviations(block, list(block.layers)).items():
            seen |= dict.fromkeys(reading.layers, (gram, deviation))
        if not block.number:
            for reading, gram in sum_grams(block, list(block.layers)).items():
                assert torch.equal(seen[reading.layers[0]][1], torch.zeros_like(gram))
                torch.testing.assert_close(seen[reading.layers[0]][0], gram)
            block.replace(name, block.layers[name].weight * 1.5)
    reads = [_watch(network, tokens.ids) for network in (changed, model)]
    assert set(seen) == set(matrices(model.network)) == set(reads[0])
    for name in (n for n in seen if n.startswith("model.layers.1.")):
        here, there = (each[name].double() for each in reads)
        expected = _sum(here, there).float()
        for ours, theirs in zip(seen[name], expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
        assert float(expected[1].abs().max()) > 0.01


@torch.no_grad()
def _watch(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """What each layer reads, (n, I)."""
    reads = dict[str, Tensor]()
    hooks = [
        matrix.module.register_forward_pre_hook(
            lambda module, inputs, name=name: reads.update({name: inputs[0].flatten(0, -2)})
        )
        for name, matrix in matrices(model.network).items()
    ]
    model.network(ids)
    for hook in hooks:
        hook.remove()
    return reads


class _Base(Stage[Any]):
    kind = "test-gptaq-base"


class _Tokens(Stage[Any]):
    kind = "test-gptaq-tokens"


def _run(model: Model, rounding: BlockRounding, format: Grouped) -> Model:
    stage = RoundBlocks(_Base(), _Base(), _Tokens(), format, rounding)
    result: Model = execute_alone(stage, {_Base().key: model, _Tokens().key: _tokens()})
    return result


def _gap(model: Model, reference: Model) -> float:
    with torch.no_grad():
        gap = model.network(_tokens().ids).logits - reference.network(_tokens().ids).logits
    return float(gap.square().mean())


def test_a_model_is_nearer_to_itself_than_rounded_by_gptq() -> None:
    model, format = make_llama(), IntAsym(3, 32)
    rounded = _run(model, GPTAQ(share=1), format)
    rounded.check()
    assert _gap(rounded, model) < _gap(_run(model, GPTQ(true_sequential=True), format), model)


def test_experts_are_rounded_as_by_gptq(tmp_path: Path) -> None:
    base = pretrained(str(architectures.build("mixtral", tmp_path / "model")), "float32")
    model, format = base.run(tmp_path), IntAsym(2, 32)
    rounded = _run(model, GPTAQ(), format)
    rounded.check()
    assert _gap(rounded, model) < _gap(quantize_model(model, format), model)
