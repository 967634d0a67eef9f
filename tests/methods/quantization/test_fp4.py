"""MXFP4 and NVFP4: against every value that they can hold, in float64, and by their laws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.core.errors import FormatError, SettingError
from harness.models import pretrained
from methods.quantization.formats import Grouped
from methods.quantization.fp4 import MXFP4, NVFP4, round_e2m1
from methods.quantization.gptq import GPTQ
from methods.quantization.inits import Clip

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
FORMATS: list[Grouped] = [MXFP4(), NVFP4()]


def _decode_e2m1(code: int) -> float:
    """Sign, two bits of exponent (bias 1), one of mantissa: OCP MX 1.0."""
    exponent, mantissa = code >> 1 & 3, code & 1
    size = (1 + mantissa / 2) * 2.0 ** (exponent - 1) if exponent else mantissa / 2
    return -size if code >> 3 else size


def _decode_e4m3(byte: int) -> float:
    """Four bits of exponent (bias 7), three of mantissa: OCP FP8."""
    exponent, mantissa = byte >> 3, byte & 7
    return (1 + mantissa / 8) * 2.0 ** (exponent - 7) if exponent else mantissa / 8 * 2.0**-6


E2M1 = [(_decode_e2m1(code), code) for code in range(16) if code != 8]  # not -0
E4M3 = [(_decode_e4m3(byte), byte) for byte in range(127)]  # 127 is NaN


def _find_nearest(number: float, values: list[tuple[float, int]]) -> float:
    """Of all values, each with its code: of two that are as near the one of the even code."""
    return min(values, key=lambda each: (abs(each[0] - number), each[1] & 1))[0]


def _round_by_definition(weight: Tensor, format: Grouped) -> np.ndarray:
    """Number by number, from the written definitions: (O, I) -> (O, I).

    Quotients and products are rounded to float32, where formats compute, else a tie is none; what
    is nearest is found in float64.
    """
    weights = weight.numpy()
    whole = np.abs(weights).max() / np.float32(6 * 448)
    values = np.empty_like(weights)
    for row in range(weights.shape[0]):
        for start in range(0, weights.shape[1], format.group_size):
            block = slice(start, start + format.group_size)
            largest = np.abs(weights[row, block]).max()
            if isinstance(format, MXFP4):
                exponent = math.floor(math.log2(largest)) if largest else 0
                scale = np.float32(2.0 ** (exponent - 2))
            else:
                quotient = float(largest / np.float32(6) / whole)
                scale = np.float32(_find_nearest(quotient, E4M3)) * whole
            for column in range(block.start, block.stop):
                ratio = float(weights[row, column] / scale) if scale else 0.0
                values[row, column] = np.float32(_find_nearest(ratio, E2M1)) * scale
    return values


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Bell-shaped rows with outliers; multiples of a power of two are full of ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(3, 64, generator=generator)
    weight[0, draw(st.integers(0, 63))] *= draw(st.sampled_from([1.0, 20.0, 0.0]))
    weight[1, 32:48] = 0
    return (
        (weight * 8).round() / 8 if draw(st.booleans()) else weight * 10 ** draw(st.floats(-3, 3))
    )


@pytest.mark.parametrize("format", FORMATS, ids=str)
@FEW
@given(weight=weights())
def test_each_is_the_nearest_of_all_that_can_be_held(format: Grouped, weight: Tensor) -> None:
    assert (format.quantize(weight).numpy() == _round_by_definition(weight, format)).all()


def test_every_pattern_of_the_element_stays_and_halves_go_to_even() -> None:
    values = sorted(value for value, _ in E2M1)
    assert round_e2m1(torch.tensor(values)).tolist() == values
    halves = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0, 100.0])
    assert round_e2m1(halves).tolist() == [0, 1, 1, 2, 2, 4, 4, 6, 6]
    assert round_e2m1(-halves).tolist() == [0, -1, -1, -2, -2, -4, -4, -6, -6]
    near = torch.linspace(-9, 9, 4001)
    assert round_e2m1(near).tolist() == [_find_nearest(x, E2M1) for x in near.double().tolist()]


def test_scales_of_nvfp4_are_those_of_the_type() -> None:
    stored = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    assert stored.tolist() == [value for value, _ in E4M3]


@pytest.mark.parametrize("format", FORMATS, ids=str)
@FEW
@given(weight=weights(), power=st.integers(-20, 20))
def test_laws(format: Grouped, weight: Tensor, power: int) -> None:
    values = format.quantize(weight)
    torch.testing.assert_close(format.quantize(values), values, rtol=1e-6, atol=0)
    assert torch.equal(format.quantize(-weight), -values)
    assert torch.equal(format.quantize(weight * 2.0**power), values * 2.0**power)
    for group, rounded in zip(
        weight.view(-1, format.group_size), values.view(-1, format.group_size), strict=True
    ):
        assert (rounded[group.argsort()].diff() >= 0).all()  # monotone
        assert len(rounded.unique()) <= 15


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-30, 1e-7, 1.0, 1e30, 3e38])
def test_degenerate_weights_stay_finite(format: Grouped, size: float) -> None:
    weight = torch.tensor([[size] * 16 + [-size, 0.0] * 8 + [0.0] * 16 + [size / 3] * 16])
    found = format.quantize(weight)
    assert found.isfinite().all()
    assert ((found == 0) | (found.sign() == weight.sign())).all()
    if 1e-30 <= size < 1e38:
        assert ((found[:, :16] - size).abs() <= size / 4).all()


def test_bits_and_blocks() -> None:
    assert MXFP4().bits_per_weight(4096) == 4 + 8 / 32
    assert NVFP4().bits_per_weight(4096) == 4 + 8 / 16
    for format, block in ((MXFP4, 32), (NVFP4, 16)):
        with pytest.raises(SettingError, match=f"group_size: 64 should be {block}"):
            format(group_size=64)
        with pytest.raises(FormatError, match="has no 3-bit form; bits: 4"):
            format(bits=3)


@FEW
@given(weight=weights(), low=st.floats(0.2, 1), high=st.floats(0.2, 1))
def test_a_given_range_rounds_as_clamped_weights_do(
    weight: Tensor, low: float, high: float
) -> None:
    groups = weight.view(-1, 32)
    least, most = (
        side * part for side, part in zip(MXFP4().find_range(groups), (low, high), strict=True)
    )
    found = MXFP4().quantize_dequantize(groups, least, most)
    assert torch.equal(found, MXFP4().quantize(groups.clamp(least, most)))


def _differentiate(weight: Tensor, slope: Tensor, format: Grouped) -> Tensor:
    """The weights' gradient by autograd over the definition, in float64, at the values found."""
    leaf = weight.double().requires_grad_()
    groups = leaf.view(-1, format.group_size)
    largest = groups.abs().amax(-1, keepdim=True)
    values = format.quantize(weight).double().view_as(groups)
    if isinstance(format, MXFP4):
        scale = 2.0 ** (largest.detach().log2().floor() - 2)
    else:
        whole = weight.abs().max() / (6 * 448)
        stored = (largest.detach().float() / 6 / whole).to(torch.float8_e4m3fn).double() * whole
        scale = largest / 6 + (stored - largest.detach() / 6)
    codes = values / scale.detach()
    ratios = groups / scale
    moving = torch.where(ratios.detach().abs() <= 6, ratios + (codes - ratios).detach(), codes)
    (moving * scale).backward(slope.double().view_as(groups))
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("family", [MXFP4, NVFP4])
@pytest.mark.parametrize("seed", range(4))
def test_gradients_through_the_range(family: type[Grouped], seed: int) -> None:
    format = family(gradient="through-range")  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(seed)
    weight, slope = (torch.randn(4, 64, generator=generator) for _ in range(2))
    leaf = weight.clone().requires_grad_()
    values = format.quantize_with_gradient(leaf)
    assert torch.equal(values, format.quantize(weight))
    values.backward(slope)
    assert leaf.grad is not None
    expected = _differentiate(weight, slope, format)
    torch.testing.assert_close(leaf.grad.double(), expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(leaf.grad, slope)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_gptq_gives_values_of_the_format(format: Grouped) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, read = torch.randn(6, 64, generator=generator), torch.randn(80, 64, generator=generator)
    rounding = GPTQ()
    gram = read.T @ read
    values = rounding._round_weight("layer", weight, gram, format)
    whole = float(weight.abs().max()) / (6 * 448)
    scales = [2.0**e for e in range(-12, 4)]
    if isinstance(format, NVFP4):
        scales = [scale * whole for scale, _ in E4M3 if scale]
    for group in values.view(-1, format.group_size).double():
        held = torch.tensor([[level * scale for level, _ in E2M1] for scale in scales]).double()
        misses = (group[:, None, None] - held).abs().amin(-1).amax(0)  # of each scale
        assert misses.min() <= 1e-6 * float(group.abs().max())
    errors = [
        (((each - weight) @ gram) * (each - weight)).sum()
        for each in (values, format.quantize(weight))
    ]
    assert errors[0] < errors[1]


def test_what_cannot_work_is_refused_in_the_plan() -> None:
    base = pretrained("testbed-small", dtype="float32")
    with pytest.raises(
        FormatError, match=r"'clip' searches ranges, and 'nvfp4' has a .*init: none"
    ):
        Clip().build(base, NVFP4())
    Clip(text="testbed").build(base, MXFP4())


@pytest.mark.parametrize("size", [1.0, 0.02, 37.0])
def test_values_are_those_of_torchao(size: float) -> None:
    """Without ties: there torchao multiplies by 1 / scale, and a ratio may fall on either side."""
    formats = pytest.importorskip("torchao.prototype.mx_formats", reason="torchao is no dependency")
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    nv = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0)) * size
    weight[0, 3], weight[5, :64], weight[7] = 30 * size, 0, weight[7] / 1000
    floor = formats.config.ScaleCalculationMode.FLOOR
    theirs = mx.MXTensor.to_mx(weight, torch.float4_e2m1fn_x2, 32, floor)
    assert torch.equal(MXFP4().quantize(weight), theirs.dequantize(torch.float32))
    scale = nv.per_tensor_amax_to_scale(weight.abs().amax())
    found = nv.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale).dequantize(torch.float32)
    torch.testing.assert_close(NVFP4().quantize(weight), found, rtol=1e-6, atol=0)
