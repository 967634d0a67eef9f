"""Normal floats in few operations, against the comparisons written down one by one: bit for bit."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from methods.quantization.formats import NF, bounds
from methods.quantization.levels import normal_levels
from methods.quantization.scales import store_scale

BITS = st.sampled_from([2, 3, 4])


def _count_up(ratios: Tensor, levels: list[float]) -> Tensor:
    """The nearest of `levels`, ascending from 0: as far as there are halves below a ratio."""
    values = torch.zeros_like(ratios)
    for lower, upper in pairwise(levels):
        values.add_((ratios > (lower + upper) / 2).to(ratios.dtype), alpha=upper - lower)
    return values


def _round(groups: Tensor, low: Tensor, high: Tensor, format: NF) -> Tensor:
    """`NF.quantize_dequantize`, plainly."""
    most = torch.maximum(high, -low)
    below, above = map(store_scale, (-low, high) if format.asymmetric else (most, most))
    levels: list[float] = torch.tensor(normal_levels(format.bits)).tolist()
    up = (groups / above).clamp_max(high / above)
    down = (groups / -below).clamp_max(-low / below)
    values = _count_up(up, [level for level in levels if level >= 0]) * above
    return values - _count_up(down, [-level for level in levels[::-1] if level <= 0]) * below


@st.composite
def weights(draw: st.DrawFn, bits: int) -> Tensor:
    """Groups of all sizes, or on levels, halfway between them, and on the floats beside these."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    size = 10 ** draw(st.floats(-9, 6))
    if draw(st.booleans()):
        return torch.randn(32, 16, generator=generator) * size
    levels = torch.tensor(normal_levels(bits))
    middles = ((levels[1:].double() + levels[:-1].double()) / 2).float()
    places = torch.cat([levels, middles, torch.zeros(1), -torch.zeros(1)])
    scale = store_scale(torch.rand(32, 1, generator=generator) * size)
    groups = places[torch.randint(len(places), (32, 16), generator=generator)] * scale
    beside = torch.randint(-1, 2, groups.shape, generator=generator)
    groups = torch.where(beside == 0, groups, torch.nextafter(groups, beside * torch.inf))
    return torch.cat([groups, scale, -scale], -1)


@settings(max_examples=60, deadline=None)
@given(st.data(), BITS, st.booleans(), st.floats(0, 1), st.floats(0, 1))
def test_values_are_those_of_the_plain_form(
    data: st.DataObject, bits: int, asymmetric: bool, down: float, up: float
) -> None:
    groups, format = data.draw(weights(bits)), NF(bits, 0, asymmetric=asymmetric)
    low, high = bounds(groups)
    for least, most in ((low, high), (low * down, high * up)):
        found = format.quantize_dequantize(groups, least, most)
        expected = _round(groups, least, most, format)
        # As integers, so that 0 is not -0.
        assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    half = groups.bfloat16()
    expected = _round(half.float(), *bounds(half.float()), format).bfloat16()
    assert torch.equal(format.quantize(half).view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_what_is_not_finite_is_as_in_the_plain_form(bits: int) -> None:
    groups = torch.tensor([[torch.inf, 1, -2, 0], [-torch.inf, 1, -2, 3e38], [0, 1, torch.nan, 2]])
    found = NF(bits, 4).quantize_dequantize(groups, *bounds(groups))
    assert torch.equal(found[:2], _round(groups[:2], *bounds(groups[:2]), NF(bits, 4)))
    assert found[2].isnan().any()


def test_values_are_written_where_they_belong() -> None:
    """Into a place of another dtype, of rows that lie apart, some rows at a time."""
    weight = torch.randn(600, 1000, generator=torch.Generator().manual_seed(0))  # two pieces
    for format in (NF(3, 500), NF(3, 300, tail=True)):
        whole = torch.cat([format.quantize(row) for row in weight.split(100)])
        place = torch.zeros(1000, 600, dtype=torch.bfloat16)
        format.quantize_into(weight, place.T)
        assert torch.equal(place.T, whole.bfloat16())
        assert torch.equal(format.quantize(weight.T.contiguous().T), whole)
