"""GPTQ against its definition, and rounding block by block: what is kept, what is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.core.errors import BitgridError, FormatError, ModelError
from harness.core.stage import Stage
from harness.data import Tokens
from harness.models import Model, matrices, pretrained
from methods.quantization.formats import NF, Format, FullPrecision, Grouped, IntAsym, IntSym, bounds
from methods.quantization.gptq import GPTQ
from methods.quantization.rounding import Nearest, RoundBlocks, quantize_model
from methods.recipe import Recipe
from tests.methods.conftest import make_llama
from tests.support import architectures
from tests.support.stages import execute_alone


def _draw(seed: int, rows: int, width: int, tokens: int) -> tuple[Tensor, Tensor]:
    """A weight (O, I) and X'X of correlated inputs, as layers of a model read them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    read = torch.randn(tokens, width, generator=generator) @ mixing
    return weight, read.T @ read


def _round_by_definition(weight: Tensor, gram: Tensor, format: Grouped, damping: float) -> Tensor:
    """Optimal Brain Quantisation in a fixed order, in float64: the inverse is made anew for the
    columns that are left after each one (GPTQ eq. 2 and 3)."""
    left, values = weight.double(), weight.double()
    damped = gram.double() + damping * gram.double().diagonal().mean() * torch.eye(len(gram))
    ends: dict[int, tuple[Tensor, Tensor]] = {}
    for column in range(weight.shape[1]):
        (group,) = (g for g in format.groups(weight.shape[1]) if g.start <= column < g.stop)
        if column == group.start:
            ends[group.start] = bounds(left[:, group].float())
        inverse = torch.linalg.inv(damped[column:, column:])
        now = left[:, column].clone()
        chosen = format.quantize_dequantize(now[:, None].float(), *ends[group.start])[:, 0].double()
        step = (now - chosen) / inverse[0, 0]
        left[:, column:] -= step[:, None] * inverse[0]
        values[:, column] = chosen
    return values


@pytest.mark.parametrize(
    "format", [IntAsym(3, 16), IntAsym(4, 0), NF(3, 8), IntAsym(2, 20, tail=True)]
)
def test_it_is_what_the_paper_defines(format: Grouped) -> None:
    weight, gram = _draw(0, 12, 48, 200)
    values = GPTQ().round_weight(weight, gram, format)
    expected = _round_by_definition(weight, gram, format, 0.01)
    # A value halfway between two levels may go either way in float32.
    same = torch.isclose(values.double(), expected, atol=1e-4)
    assert same.double().mean() > 0.98


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    format=st.sampled_from([IntAsym(2, 8), IntAsym(3, 0), IntSym(3, 16), NF(3, 16), NF(2, 0)]),
    act_order=st.booleans(),
    tokens=st.sampled_from([3, 40, 300]),
)
def test_each_row_moves_its_output_no_more_than_the_nearest_levels_do(
    seed: int, format: Grouped, act_order: bool, tokens: int
) -> None:
    weight, gram = _draw(seed, 4, 32, tokens)
    rounding = GPTQ(act_order=act_order)
    values = rounding._round_weight("layer", weight, gram, format)

    def measure(rounded: Tensor) -> Tensor:
        change = (rounded - weight).double()
        return ((change @ gram.double()) * change).sum(-1)

    assert bool((measure(values) <= measure(format.quantize(weight)) * (1 + 1e-4) + 1e-6).all())
    for group in format.groups(32):
        assert all(len(row.unique()) <= 2**format.bits for row in values[:, group])


@pytest.mark.parametrize("act_order", [False, True])
def test_without_correlation_it_is_rounding_to_nearest(act_order: bool) -> None:
    weight, _ = _draw(1, 8, 32, 1)
    gram = torch.diag(torch.rand(32) + 0.5)
    values = GPTQ(act_order=act_order).round_weight(weight, gram, IntAsym(3, 8))
    assert torch.equal(values, IntAsym(3, 8).quantize(weight))


def test_it_is_better_than_the_nearest_by_far_on_what_is_correlated() -> None:
    weight, gram = _draw(2, 64, 64, 4000)
    format = IntAsym(3, 16)

    def measure(rounded: Tensor) -> float:
        change = rounded - weight
        return float(((change @ gram) * change).sum())

    nearest = measure(format.quantize(weight))
    plain, ordered = (
        measure(GPTQ(act_order=order).round_weight(weight, gram, format)) for order in (False, True)
    )
    assert plain < 0.7 * nearest and ordered < 0.7 * nearest


class _Base(Stage[Any]):
    kind = "test-gptq-base"


def _tokens(seed: int = 0) -> Tokens:
    ids = torch.randint(3, 97, (16, 32), generator=torch.Generator().manual_seed(seed))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


class _Tokens(Stage[Any]):
    kind = "test-gptq-tokens"


def _run(model: Model, rounding: GPTQ, format: Grouped, base: Model | None = None) -> Model:
    stage = RoundBlocks(_Base(), _Base(), _Tokens(), format, rounding)
    result: Model = execute_alone(stage, {_Base().key: model, _Tokens().key: _tokens()})
    return result


def _nll(model: Model, reference: Model) -> float:
    """Cross-entropy with a reference's predictions on its calibration text."""
    ids = _tokens().ids
    with torch.no_grad():
        target = reference.network(ids).logits.float().softmax(-1)
        return -float((target * model.network(ids).logits.float().log_softmax(-1)).sum(-1).mean())


@pytest.mark.parametrize("change", [{}, {"act_order": True}, {"true_sequential": True}])
def test_a_model_is_nearer_to_itself_than_rounded_to_nearest(change: dict[str, bool]) -> None:
    model, format = make_llama(), IntAsym(3, 32)
    rounded = _run(model, GPTQ(**change), format)
    assert _nll(rounded, model) < _nll(quantize_model(model, format), model)
    assert set(rounded.quantized) == set(matrices(model.network)) and not rounded.latent
    rounded.check()


def test_rounded_again_it_stays_as_it_is() -> None:
    """Its values are levels of ranges that they need not span: the nearest of theirs are others."""
    model, format = make_llama(), IntAsym(2, 32)
    rounded = _run(model, GPTQ(), format)
    again = quantize_model(rounded, format)
    other = quantize_model(rounded, IntAsym(3, 32))
    weights = rounded.network.state_dict()
    assert all(torch.equal(weights[n], w) for n, w in again.network.state_dict().items())
    assert other.quantized["model.layers.0.mlp.up_proj"].bits == 3
    moved = quantize_model(rounded.fork(quantized={}), format).network.state_dict()
    assert any(not torch.equal(weights[n], w) for n, w in moved.items())


def test_experts_are_rounded_on_what_they_read(tmp_path: Path) -> None:
    base = pretrained(str(architectures.build("mixtral", tmp_path / "model")), "float32")
    model, format = base.run(tmp_path), IntAsym(2, 32)
    rounded, nearest = _run(model, GPTQ(), format), quantize_model(model, format)
    assert set(rounded.quantized) == set(nearest.quantized)
    rounded.check()
    assert _nll(rounded, model) < _nll(nearest, model)


def test_bad_inputs_are_told_by_layer() -> None:
    model = make_llama()
    model.network.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"layer model\.layers\.1\.mlp\.up_proj: its weight has"):
        _run(model, GPTQ(), IntAsym(2, 32))
    with pytest.raises(FormatError, match="groups of 48"):
        _run(make_llama(), GPTQ(), IntAsym(2, 48))


@pytest.mark.parametrize("format", [FullPrecision()])
def test_a_format_without_levels_is_refused_in_the_plan(format: Format) -> None:
    recipe = Recipe(format=format, rounding=GPTQ())
    with pytest.raises(FormatError, match="'gptq' needs a format with levels, and format 'none'"):
        recipe.check({"layer": (64, 64)})
    Recipe(format=format, rounding=Nearest()).check({"layer": (64, 64)})
    with pytest.raises(BitgridError, match="should be"):
        GPTQ(damping=0)
