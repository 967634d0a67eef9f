"""Formats: against float64 references and published constants, by property, in degenerate
groups."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.errors import FormatError, ModelError
from harness.models import Model, matrices
from methods.quantization.formats import (
    NF,
    Format,
    FullPrecision,
    Grouped,
    IntAsym,
    IntSym,
    bounds,
)
from methods.quantization.levels import normal_levels
from methods.quantization.rounding import quantize_model
from methods.training.shards import ALONE

# On a busy machine drawing takes long for no fault of the strategy.
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FORMATS: list[Grouped] = [
    *(IntAsym(bits, 16) for bits in (2, 3, 4, 8)),
    *(IntSym(bits, 16) for bits in (2, 3, 4, 8)),
    *(NF(bits, 16, asymmetric=two) for bits in (2, 3, 4) for two in (True, False)),
]
DEGENERATE = {
    "zeros": torch.zeros(1, 16),
    "no negative": torch.linspace(0.1, 1, 16)[None],
    "no positive": -torch.linspace(0.1, 1, 16)[None],
    "one value": torch.full((1, 16), 0.37),
    "one negative value": torch.full((1, 16), -0.37),
    "one weight of zeros": torch.eye(1, 16),
    "vanishing": torch.linspace(-1e-30, 1e-30, 16)[None],
    "below a 16-bit scale": torch.linspace(-1e-9, 2e-8, 16)[None],
    "beyond a 16-bit scale": torch.linspace(-1e30, 3e30, 16)[None],
    "the largest": torch.tensor([[-3e38] * 8 + [3e38] * 8]),
}


@st.composite
def weights(draw: st.DrawFn, width: int = 32) -> Tensor:
    """Bell-shaped rows with outliers, of any magnitude that 16-bit scales can follow."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(3, width, generator=generator) * 10 ** draw(st.floats(-2, 2))
    shift = draw(st.sampled_from([0.0, 0.0, 1.0, -3.0])) * float(weight.std())
    weight = weight + shift
    weight[0, draw(st.integers(0, width - 1))] *= draw(st.sampled_from([1.0, 10.0, 0.0]))
    return weight


def _float16(scale: np.floating | float) -> float:
    """A stored scale. Its quotient is a float32, where formats compute: a float64 one lies at times
    on the other side of the middle between two 16-bit numbers."""
    return float(np.float16(min(max(np.float32(scale), 2.0**-24), 65504.0)))


def _levels(group: np.ndarray, format: Grouped) -> list[float]:
    """Every value that a group may take, written down from the formats' definitions."""
    low, high = min(np.float32(0), group.min()), max(np.float32(0), group.max())
    if isinstance(format, IntAsym):
        top = 2**format.bits - 1
        scale = _float16((high - low) / np.float32(top))
        zero = min(max(round(-np.float32(low / np.float32(scale))), 0), top)
        return [(code - zero) * scale for code in range(top + 1)]
    if isinstance(format, IntSym):
        top = 2 ** (format.bits - 1) - 1
        scale = _float16(max(high, -low) / np.float32(top))
        return [code * scale for code in range(-top, top + 1)]
    assert isinstance(format, NF)
    most = max(high, -low)
    up, down = (high, -low) if format.asymmetric else (most, most)
    return [x * _float16(up if x > 0 else down) for x in normal_levels(format.bits)]


def _groups(weight: Tensor, format: Grouped) -> Iterator[tuple[Tensor, Tensor]]:
    """Each group of a weight and what it is quantised to."""
    both = weight, format.quantize(weight)
    for span in format.spans(weight.shape[1]):
        yield from zip(*(span.cut(tensor).flatten(0, 1) for tensor in both), strict=True)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@FEW
@given(weight=weights())
def test_every_weight_goes_to_the_nearest_level(format: Grouped, weight: Tensor) -> None:
    for group, found in _groups(weight, format):
        given_weights = group.double().numpy()[:, None]
        levels = np.array(_levels(group.numpy(), format))[None]
        size = np.abs(levels).max()
        from_level = np.abs(found.double().numpy()[:, None] - levels).min(1)
        assert (from_level <= 1e-6 * size).all()
        nearest = np.abs(given_weights - levels).min(1)
        assert (np.abs(group - found).double().numpy() <= nearest + 1e-6 * size).all()


@pytest.mark.parametrize("format", FORMATS, ids=str)
@FEW
@given(weight=weights(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_a_group_has_no_more_values_than_codes(
    format: Grouped, weight: Tensor, dtype: torch.dtype
) -> None:
    found = format.quantize(weight.to(dtype))
    assert found.dtype == dtype
    assert found.shape == weight.shape
    for tensor in (found, found.bfloat16()):
        for group in tensor.view(-1, 16):
            assert len(group.float().unique()) <= 2**format.bits


@pytest.mark.parametrize("format", [f for f in FORMATS if not isinstance(f, NF)], ids=str)
@FEW
@given(weight=weights())
def test_inside_the_range_the_error_is_half_a_step(format: Grouped, weight: Tensor) -> None:
    for group, found in _groups(weight, format):
        levels = torch.tensor(_levels(group.numpy(), format), dtype=torch.float64)
        inside = (group >= levels.min()) & (group <= levels.max())
        step = float(levels[1] - levels[0])
        assert ((group - found).abs()[inside] <= step / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("family", [IntAsym, IntSym, NF])
@FEW
@given(seed=st.integers(0, 2**31))
def test_more_bits_err_less(family: type[Grouped], seed: int) -> None:
    weight = torch.randn(4, 256, generator=torch.Generator().manual_seed(seed))
    errors = [
        float((family(bits, 64).quantize(weight) - weight).square().mean())
        for bits in family.widths
    ]
    assert all(more > less for more, less in itertools.pairwise(errors))


@pytest.mark.parametrize("format", FORMATS, ids=str)
@FEW
@given(weight=weights(), power=st.integers(-3, 4))
def test_a_power_of_two_passes_through(format: Grouped, weight: Tensor, power: int) -> None:
    # Where scales are normal 16-bit numbers; among subnormal ones a scale loses digits.
    weight = weight.clamp(-1000, 1000)
    weight[:, 0], weight[:, 16], weight[:, 1], weight[:, 17] = 1.0, 1.0, -1.0, -1.0
    assert torch.equal(format.quantize(weight * 2.0**power), format.quantize(weight) * 2.0**power)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@FEW
@given(weight=weights())
def test_symmetric_integers_know_no_sign(bits: int, weight: Tensor) -> None:
    format = IntSym(bits, 16)
    assert torch.equal(format.quantize(-weight), -format.quantize(weight))


def test_halves_go_to_even() -> None:
    # Steps of 1: 0.5 -> 0, 1.5 -> 2, 2.5 -> 2.
    weight = torch.tensor([[0.0, 0.5, 1.5, 2.5, 3.0]])
    assert IntAsym(2, 0).quantize(weight).tolist() == [[0, 0, 2, 2, 3]]
    assert IntSym(3, 0).quantize(-weight).abs().tolist() == [[0, 0, 2, 2, 3]]


@pytest.mark.parametrize("format", [*FORMATS, FullPrecision()], ids=str)
def test_straight_through_rounds_forward_and_not_backward(format: Format) -> None:
    weight = torch.randn(4, 32, requires_grad=True)
    slope = torch.randn(4, 32)
    forward = format.quantize_with_gradient(weight)
    assert torch.equal(forward, format.quantize(weight))
    (forward * slope).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, slope)


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("kind", DEGENERATE)
def test_degenerate_groups_stay_finite(format: Grouped, kind: str) -> None:
    weight = DEGENERATE[kind]
    found = format.quantize(weight)
    assert found.isfinite().all()
    assert len(found.unique()) <= 2**format.bits
    assert ((found == 0) | (found.sign() == weight.sign())).all()
    if kind in ("one value", "one negative value", "one weight of zeros"):
        torch.testing.assert_close(found, weight, rtol=2**-9, atol=0)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_an_empty_range_is_zero(format: Grouped) -> None:
    nothing = torch.zeros(1, 1)
    found = format.quantize_dequantize(torch.linspace(-2, 2, 16)[None], nothing, nothing)
    assert (found == 0).all()


@pytest.mark.parametrize("family", [IntAsym, IntSym, NF])
def test_groups_of_one_weight(family: type[Grouped]) -> None:
    weight = torch.tensor([[0.0, 1.0, -1.0, 0.3, -2.5]])
    found = family(2, 1).quantize(weight)
    torch.testing.assert_close(found, weight, rtol=2**-10, atol=0)


@pytest.mark.parametrize("family", [IntAsym, IntSym, NF])
@FEW
@given(weight=weights(width=50))
def test_a_tail_is_a_group_of_its_own(family: type[Grouped], weight: Tensor) -> None:
    whole = family(3, 16, tail=True).quantize(weight)
    apart = [family(3, 16).quantize(weight[:, :48]), family(3, 0).quantize(weight[:, 48:])]
    assert torch.equal(whole, torch.cat(apart, 1))


@FEW
@given(weight=weights(), low=st.floats(0.2, 1), high=st.floats(0.2, 1))
def test_a_given_range_rounds_as_clamped_weights_do(
    weight: Tensor, low: float, high: float
) -> None:
    for format in FORMATS:
        groups = weight.view(-1, 16)
        least, most = bounds(groups)
        least, most = least * low, most * high
        clamped = groups.clamp(least, most)
        found = format.quantize_dequantize(groups, least, most)
        assert torch.equal(found, format.quantize_dequantize(clamped, least, most))
        assert torch.equal(found, format.quantize(clamped))


def test_layout_does_not_matter() -> None:
    weight = torch.randn(32, 48).T
    for format in FORMATS:
        assert torch.equal(format.quantize(weight), format.quantize(weight.contiguous()))


@pytest.mark.parametrize(
    ("format", "inputs", "bits"),
    [
        (IntAsym(2, 128), 4096, 2 + 18 / 128),
        (IntAsym(3, 64), 4096, 3 + 19 / 64),
        (IntSym(4, 128), 4096, 4 + 16 / 128),
        (NF(3, 128), 4096, 3 + 32 / 128),
        (NF(4, 64, asymmetric=False), 4096, 4 + 16 / 64),
        (IntAsym(2, 0), 4096, 2 + 18 / 4096),
        (IntAsym(2, 128, tail=True), 344, 2 + 3 * 18 / 344),
        (IntAsym(2, 128, tail=True), 100, 2 + 18 / 100),
        (FullPrecision(), 100, 16.0),
    ],
    ids=str,
)
def test_scales_and_zero_points_are_counted(format: Format, inputs: int, bits: float) -> None:
    assert format.bits_per_weight(inputs) == pytest.approx(bits)
    described = format.describe(inputs)
    assert described.bits_per_weight == pytest.approx(bits)
    assert described.format == format.name


def test_normal_levels_are_the_published_ones() -> None:
    # QLoRA appendix E (NF4); BitDistiller's NF3.
    nf4 = (
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
        0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    )  # fmt: skip
    nf3 = (-1, -0.5350227355957031, -0.2469314038753510, 0, 0.1833375245332718, 0.3819939494132996,
           0.6229856610298157, 1)  # fmt: skip
    assert normal_levels(4) == pytest.approx(nf4, abs=2e-7)
    assert normal_levels(3) == pytest.approx(nf3, abs=2e-7)
    assert sum(level >= 0 for level in normal_levels(3)) == 5
    for bits in (2, 3, 4):
        levels = torch.tensor(normal_levels(bits))
        assert len(levels) == 2**bits
        assert torch.equal(NF(bits, 0).quantize(levels[None])[0], levels)


def test_two_scales_are_one_for_each_side() -> None:
    weight = torch.tensor([[-0.5, -0.26, 0.0, 1.1, 2.0, 4.0]])
    found = NF(3, 0).quantize(weight)[0]
    levels = normal_levels(3)
    expected = [-0.5, levels[1] * 0.5, 0.0, levels[4] * 4, levels[5] * 4, 4.0]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: IntAsym(5), "int-asym has no 5-bit form; bits: 2, 3, 4, 8"),
        (lambda: NF(8), "nf has no 8-bit form; bits: 2, 3, 4"),
    ],
)
def test_senseless_parameters_are_refused(make: object, said: str) -> None:
    with pytest.raises(FormatError, match=said):
        make()  # type: ignore[operator]


def test_a_misfit_names_the_layer_and_what_fits() -> None:
    said = "layer a.b: groups of 128 do not divide its 320 inputs; .* do: 16, 20, 32, 40, 64, 80, "
    with pytest.raises(FormatError, match=said):
        IntAsym(2, 128).check("a.b", 320)
    with pytest.raises(FormatError, match="groups of 128"):
        IntAsym(2, 128).quantize(torch.zeros(2, 320))
    IntAsym(2, 128, tail=True).check("a.b", 320)
    IntAsym(2, 0).check("a.b", 320)


def test_formats_are_chosen_by_name() -> None:
    named = {"none": FullPrecision, "int-asym": IntAsym, "int-sym": IntSym, "nf": NF}
    assert named.items() <= Format.choices().items()


@pytest.fixture
def model() -> Model:
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    network = LlamaForCausalLM(config).requires_grad_(False).eval()
    return Model(network, None)  # type: ignore[arg-type]


def test_a_model_is_quantised_and_its_source_is_not(model: Model) -> None:
    format = IntAsym(2, 16)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    model.latent = True
    found = quantize_model(model, format)
    assert not found.latent
    assert model.latent
    assert model.quantized == {}
    assert set(found.quantized) == set(matrices(model.network))
    assert found.bits_per_weight() == pytest.approx(2 + 18 / 16)
    inside = {f"{name}.weight" for name in found.quantized}
    for name, tensor in found.network.state_dict().items():
        expected = before[name]
        if name in inside:
            # What training computed with is what is evaluated.
            expected = format.quantize_with_gradient(expected.requires_grad_()).detach()
        assert torch.equal(tensor, expected), name
        assert torch.equal(model.network.state_dict()[name], before[name].detach()), name


def test_full_precision_changes_nothing(model: Model) -> None:
    model.latent = True
    found = quantize_model(model, FullPrecision())
    assert not found.latent and not found.quantized
    before = {name: tensor.data_ptr() for name, tensor in model.network.state_dict().items()}
    after = {name: tensor.data_ptr() for name, tensor in found.network.state_dict().items()}
    assert after == before  # not even a copy


@pytest.mark.parametrize("format", [IntAsym(2, 16), NF(3, 16), FullPrecision()])
def test_rounding_a_tensor_at_a_time_gives_the_same_bits(model: Model, format: Format) -> None:
    """As rounding all of it in float32, and then taking the 16-bit model's dtype."""
    like = ALONE.split(model, torch.bfloat16)
    whole = ALONE.split(quantize_model(model, format), torch.bfloat16)
    found = quantize_model(model, format, like)
    assert found.quantized == whole.quantized
    expected = whole.network.state_dict()
    for name, tensor in found.network.state_dict().items():
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, expected[name]), name
    assert {p.dtype for p in model.network.parameters()} == {torch.float32}


def test_a_model_that_does_not_fit_is_refused(model: Model) -> None:
    with pytest.raises(FormatError, match=r"layer model\.layers\.0\.mlp\.down_proj"):
        quantize_model(model, IntAsym(2, 32))
    model.network.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"layer model\.layers\.1\.mlp\.up_proj: .* NaN"):
        quantize_model(model, IntAsym(2, 16))
