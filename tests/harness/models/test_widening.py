"""Products in 16 bits by float32: to float64, to torch's own kernels, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from harness.models import widening

HALF_STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative; of the last place


def _attend(x: Tensor, y: Tensor) -> Tensor:
    return scaled_dot_product_attention(x[:, None], y[:, None], x[:, None], is_causal=True)


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": lambda x, y: x[0] @ y[0].T,
    "linear": lambda x, y: linear(x, y[0]),
    "addmm": lambda x, y: linear(x[0], y[0], y[0, :, 0]),
    "scaled addmm": lambda x, y: torch.addmm(y[0, :, 0], x[0], y[0].T, beta=0.5, alpha=2),
    "bmm": lambda x, y: x @ y.mT,
    "baddbmm": lambda x, y: torch.baddbmm(y[..., :1], x, y.mT, beta=0.5, alpha=2),
    "addmv": lambda x, y: torch.addmv(y[0, :, 0], x[0], y[0, 0]),
    "attention": _attend,
}


@pytest.fixture(params=HALF_STEP, ids=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


@contextmanager
def _widening(dtype: torch.dtype) -> Iterator[None]:
    """Also on a processor that has instructions; as it was afterwards."""
    library = widening.register_widened(frozenset({dtype}))
    yield
    library._destroy()  # type: ignore[no-untyped-call]


def _inputs() -> tuple[Tensor, Tensor]:
    """Numbers that every dtype holds exactly, (3, 16, 40) each."""
    torch.manual_seed(0)
    x, y = (torch.randint(-32, 32, (3, 16, 40)) / 16 for _ in range(2))
    return x, y


def _run(product: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The product in this dtype, and the gradients of its inputs for given slopes."""
    x, y = (each.to(dtype).requires_grad_() for each in _inputs())
    result = product(x, y)
    assert result.dtype == dtype
    slopes = torch.arange(result.numel()).remainder(7).sub(3).view(result.shape)
    result.backward(slopes.to(dtype))
    gradients = [each.grad for each in (x, y) if each.grad is not None]
    assert len(gradients) == 2
    return [result.detach(), *gradients]


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name != "attention"])
def test_it_is_the_exact_product_rounded_once(name: str, dtype: torch.dtype) -> None:
    exact = _run(PRODUCTS[name], torch.float64)
    with _widening(dtype):
        ours = _run(PRODUCTS[name], dtype)
    for got, wanted in zip(ours, exact, strict=True):
        # A gradient that two products reach is a sum of two rounded ones.
        bound = 3 * HALF_STEP[dtype] * wanted.abs().max()
        assert (got.double() - wanted).abs().max() <= bound
    assert torch.equal(ours[0], exact[0].to(dtype))  # inputs are such that float32 sums are exact


@pytest.mark.parametrize("name", PRODUCTS)
def test_it_is_what_torch_computes_but_for_the_last_place(name: str, dtype: torch.dtype) -> None:
    plain = _run(PRODUCTS[name], dtype)
    with _widening(dtype):
        widened = _run(PRODUCTS[name], dtype)
    for ours, theirs in zip(widened, plain, strict=True):
        most = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=8 * HALF_STEP[dtype] * most)


def test_float32_keeps_its_bits(dtype: torch.dtype) -> None:
    x, y = (torch.randn(64, 64) for _ in range(2))
    plain = x @ y
    with _widening(dtype):
        assert torch.equal(x @ y, plain)


def test_a_processor_with_instructions_keeps_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_mkldnn_bf16_supported", "_is_mkldnn_fp16_supported"):
        monkeypatch.setattr(torch.ops.mkldnn, name, lambda: True)
    assert widening.widen_products.__wrapped__() is None
