"""Gradients through the rounding, against plain autograd over the formulas, written down anew."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from harness.config.settings import configure
from harness.core.errors import FormatError
from harness.core.stage import closure
from harness.method import METHODS
from harness.models import Matrix, pretrained
from harness.models.layers import Layout
from methods.quantization import spans
from methods.quantization.formats import NF, Grouped, IntAsym, IntSym, bounds
from methods.quantization.levels import normal_levels
from methods.recipe import Recipe

TRAINED = ("bitdistiller", "llm-qat")
FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
THROUGH: list[Grouped] = [
    *(IntAsym(bits, 16, gradient="through-range") for bits in (2, 3, 4)),
    *(IntSym(bits, 16, gradient="through-range") for bits in (2, 3, 4)),
    *(NF(bits, 16, gradient="through-range") for bits in (2, 3)),
    NF(3, 16, asymmetric=False, gradient="through-range"),
]


def _moving(exact: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, which moves as `exact` does."""
    return exact + (rounded - exact).detach()


def _stored(scale: Tensor) -> Tensor:
    """As 16 bits hold it; rounded from float32, where formats compute."""
    kept = scale.clamp(2.0**-24, 65504.0)
    return _moving(kept, kept.float().half().to(kept.dtype))


def _multiply_codes(groups: Tensor, scale: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Codes move as their weights do; those that are clamped do not move."""
    ratios = groups / scale
    rounded = ratios.detach().round()
    codes = torch.minimum(torch.maximum(rounded, first), last)
    return torch.where(codes == rounded, _moving(ratios, rounded), codes) * scale


def _quantize(groups: Tensor, low: Tensor, high: Tensor, format: Grouped) -> Tensor:
    """The formulas of the published quantisers, for autograd: (..., g), ranges (..., 1)."""
    if isinstance(format, IntAsym):
        top = 2**format.bits - 1
        scale = _stored((high - low) / top)
        zero = (-low / scale).detach().round().clamp(0, top)
        first = torch.maximum((low / scale).detach().round(), -zero)
        last = torch.minimum((high / scale).detach().round(), top - zero)
        return _multiply_codes(groups, scale, first, last)
    largest = torch.maximum(high, -low)
    if isinstance(format, IntSym):
        top = 2 ** (format.bits - 1) - 1
        scale = _stored(largest / top)
        ends = ((end / scale).detach().round().clamp(-top, top) for end in (low, high))
        return _multiply_codes(groups, scale, *ends)
    assert isinstance(format, NF)
    above, below = (high, -low) if format.asymmetric else (largest, largest)
    scale = torch.where(groups >= 0, _stored(above), _stored(below))
    levels = torch.tensor(normal_levels(format.bits)).to(groups.dtype)
    clamped = torch.minimum(torch.maximum(groups, low), high).detach()
    far = ((clamped / scale.detach())[..., None] - levels).abs()
    nearest = levels[(far + 1e-6 * levels.abs()).argmin(-1)]  # halves to the one nearer 0
    return torch.where(clamped == groups, _moving(groups / scale, nearest), nearest) * scale


def _differentiate(
    weight: Tensor, slope: Tensor, format: Grouped, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    """Values and the weights' gradient, (O, I), by autograd; amin and amax share among equals."""
    leaf = weight.to(dtype, copy=True).requires_grad_()
    parts = []
    for span in format.spans(weight.shape[-1]):
        groups = span.cut(leaf)
        low = groups.amin(-1, keepdim=True).clamp(max=0)
        high = groups.amax(-1, keepdim=True).clamp(min=0)
        parts.append(_quantize(groups, low, high, format).flatten(-2))
    values = torch.cat(parts, -1)
    values.backward(slope.to(dtype))
    assert leaf.grad is not None
    return values.detach(), leaf.grad


def _pass(weight: Tensor, slope: Tensor, format: Grouped) -> tuple[Tensor, Tensor]:
    leaf = weight.clone().requires_grad_()
    values = format.quantize_with_gradient(leaf)
    values.backward(slope)
    assert leaf.grad is not None and leaf.grad.dtype == weight.dtype
    return values.detach(), leaf.grad


def _assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """To 1e-5 of the largest of each row: sums over a group cancel."""
    far = (found.double() - expected.double()).abs().amax(-1)
    assert (far <= tolerance * expected.double().abs().amax(-1)).all(), far.max()


@st.composite
def weights(draw: st.DrawFn, width: int = 32) -> Tensor:
    """Bell-shaped rows with outliers, of one sign, with ties, or constant; 0 among them."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    weight = torch.randn(3, width, generator=generator)
    kind = draw(st.sampled_from(["bell", "positive", "negative", "ties", "zero", "constant"]))
    weight = {
        "bell": weight,
        "positive": weight.abs(),
        "negative": -weight.abs(),
        "ties": (weight * 2).round() / 4,
        "zero": weight * (torch.arange(width) >= 16),
        "constant": weight[:, :1].expand(3, width).clone(),
    }[kind]
    weight[0, draw(st.integers(0, width - 1))] *= draw(st.sampled_from([1.0, 10.0, 0.0]))
    return weight * 10 ** draw(st.floats(-2, 2))


def _draw_slope(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("format", THROUGH, ids=str)
@FEW
@given(weight=weights())
def test_the_gradient_is_that_of_the_published_quantisers(format: Grouped, weight: Tensor) -> None:
    slope = _draw_slope(weight)
    values, gradient = _pass(weight, slope, format)
    assert torch.equal(values, format.quantize(weight))
    for dtype in (torch.float32, torch.float64):
        expected_values, expected = _differentiate(weight, slope, format, dtype)
        _assert_close(values, expected_values)
        _assert_close(gradient, expected)


@pytest.mark.parametrize("format", THROUGH, ids=str)
@FEW
@given(weight=weights(), shrink=st.tuples(st.floats(0.3, 1), st.floats(0.3, 1)))
def test_a_given_range_gets_its_gradient(
    format: Grouped, weight: Tensor, shrink: tuple[float, float]
) -> None:
    groups = weight.view(-1, 16)
    slope = _draw_slope(groups)
    low, high = (side * part for side, part in zip(bounds(groups), shrink, strict=True))
    # In float32: weights halfway between levels would go elsewhere in float64.
    leaves = [each.clone().requires_grad_() for each in (groups, low, high)]
    _quantize(*leaves, format).backward(slope)
    size = slope.abs().sum(-1, keepdim=True).double()  # of what is summed for a range
    for found, leaf in zip(format.pull_range(groups, low, high, slope), leaves, strict=True):
        assert leaf.grad is not None
        assert ((found - leaf.grad).abs() <= 1e-5 * size).all()


@pytest.mark.parametrize("format", [THROUGH[0], THROUGH[7]], ids=str)
def test_max_and_min_get_the_rounding_error_of_their_group(format: Grouped) -> None:
    """Every other weight of a group gets its own gradient: the sum of both differs by that."""
    weight = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    slope = _draw_slope(weight)
    _, gradient = _pass(weight, slope, format)
    changed = (gradient != slope).sum(-1)
    assert ((changed >= 1) & (changed <= 3)).all()  # clamped ones are ends themselves


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_gradient_has_its_weights_dtype(dtype: torch.dtype) -> None:
    weight = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).to(dtype)
    slope = _draw_slope(weight).to(dtype)
    for format in THROUGH:
        _, gradient = _pass(weight, slope, format)
        _, expected = _differentiate(weight.float(), slope, format)
        _assert_close(gradient, expected, 1e-5 if dtype == torch.float64 else 5e-3)


@pytest.mark.parametrize("family", [IntAsym, IntSym, NF])
def test_a_tail_and_groups_of_a_row(family: type[Grouped]) -> None:
    weight = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    slope = _draw_slope(weight)
    for width in (0, 16):
        format = family(3, width, tail=True, gradient="through-range")
        _assert_close(_pass(weight, slope, format)[1], _differentiate(weight, slope, format)[1])


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(transposed=True), Layout(experts=2), Layout(True, 2)], ids=str
)
def test_every_layout_and_each_expert(layout: Layout) -> None:
    rows = torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(0))
    rows = rows if layout.experts else rows[:1]
    slope = _draw_slope(rows)
    matrix, format = Matrix("m", nn.Module(), layout=layout), THROUGH[0]
    leaf = layout.store(rows if layout.experts else rows[0]).clone().requires_grad_()
    given_slope = layout.store(slope if layout.experts else slope[0])
    matrix.map(format.quantize_with_gradient, leaf).backward(given_slope)
    assert leaf.grad is not None
    expected = [_pass(*pair, format)[1] for pair in zip(rows, slope, strict=True)]
    _assert_close(layout.view(leaf.grad).reshape(rows.shape), torch.stack(expected), 1e-6)


def test_rows_at_once_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    slope = _draw_slope(weight)
    whole = [each for format in THROUGH for each in _pass(weight, slope, format)]
    monkeypatch.setitem(spans._AT_ONCE, "cpu", 100)
    apart = [each for format in THROUGH for each in _pass(weight, slope, format)]
    assert all(map(torch.equal, whole, apart))


@pytest.mark.parametrize("format", [IntAsym(2, 16), *THROUGH[::3]], ids=str)
def test_a_gradient_may_be_written_over_that_of_the_values(format: Grouped) -> None:
    weight = torch.randn(7, 48, generator=torch.Generator().manual_seed(0))
    slope = _draw_slope(weight)
    expected = format.pull_back(weight, slope)
    assert torch.equal(slope, _draw_slope(weight))
    place = torch.empty_like(weight)
    for out in (place, slope):
        assert format.pull_back(weight, slope, out) is out and torch.equal(out, expected)


@pytest.mark.parametrize("format", THROUGH, ids=str)
def test_scales_that_16_bits_do_not_hold_take_no_gradient(format: Grouped) -> None:
    for size in (0.0, 1e-30, 1e-9, 1e30, 3e38):
        weight = torch.linspace(-size, size, 16)[None]
        slope = _draw_slope(weight)
        _, gradient = _pass(weight, slope, format)
        assert ((gradient == slope) | (gradient == 0)).all(), size


def test_one_weight_that_is_a_group() -> None:
    """It is its own max: where 16 bits hold it, it is its value, so that it gets its gradient."""
    weight, slope = torch.tensor([[1.5, -0.75, 0.0]]), torch.tensor([[1.0, 2.0, 3.0]])
    for family in (IntAsym, IntSym, NF):
        format = family(2, 1, gradient="through-range")
        torch.testing.assert_close(_pass(weight, slope, format)[1], slope)


@dataclasses.dataclass(frozen=True)
class _Plain(Grouped):
    """A format that says nothing of gradients; not one that a grid could choose."""

    def overhead(self) -> int:
        return 0

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return groups


_Plain.name = "plain"


def test_a_format_that_cannot_is_refused() -> None:
    with pytest.raises(
        FormatError, match=r"plain does not say how .* its range; gradient: identity"
    ):
        _Plain(2, gradient="through-range")
    assert _Plain(2).for_rounding() == _Plain(2)


@pytest.mark.usefixtures("known_commits")
@pytest.mark.parametrize("name", ["bitdistiller", "llm-qat", "awq", "awq-clip"])
def test_only_what_trains_has_the_gradient_in_its_key(name: str) -> None:
    base = pretrained("testbed", dtype="float32")
    method = configure(METHODS.find(name).method, {"data.length": 128} if name in TRAINED else {})
    assert isinstance(method, Recipe) and isinstance(method.format, Grouped)
    assert (method.format.gradient == "through-range") == (name == "bitdistiller")

    def keys(gradient: str) -> set[str]:
        format = dataclasses.replace(method.format, gradient=gradient)
        model = dataclasses.replace(method, format=format).build(base, 0)
        return {stage.key for stage in closure([model])}

    differing = keys("identity") ^ keys("through-range")
    # Twice the training, and the model that it ends in.
    assert len(differing) == (4 if name in TRAINED else 0)
