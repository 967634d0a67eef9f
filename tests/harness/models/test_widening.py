"""Products in 16 bits by float32: to float64, to torch's own kernels, and what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from harness.models import devices
from harness.models import widening as module
from harness.models.widening import widening

HALF_STEP = {torch.bfloat16: 2**-8, torch.float16: 2**-11}  # relative; of the last place


def _attend(x: Tensor, y: Tensor, **options: Any) -> Tensor:
    return scaled_dot_product_attention(x[:, None], y[:, None], x[:, None], **options)


def _attend_masked(x: Tensor, y: Tensor) -> Tensor:
    """As with padding: nobody sees tokens 1 to 3, nor what comes later."""
    seen = torch.ones(16, 16, dtype=torch.bool).tril()
    seen[:, 1:4] = False
    return _attend(x, y, attn_mask=torch.zeros(16, 16, dtype=x.dtype).masked_fill(~seen, -1e4))


PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": lambda x, y: x[0] @ y[0].T,
    "linear": lambda x, y: linear(x, y[0]),
    "addmm": lambda x, y: linear(x[0], y[0], y[0, :, 0]),
    "scaled addmm": lambda x, y: torch.addmm(y[0, :, 0], x[0], y[0].T, beta=0.5, alpha=2),
    "bmm": lambda x, y: x @ y.mT,
    "baddbmm": lambda x, y: torch.baddbmm(y[..., :1], x, y.mT, beta=0.5, alpha=2),
    "addmv": lambda x, y: torch.addmv(y[0, :, 0], x[0], y[0, 0]),
    "attention": lambda x, y: _attend(x, y, is_causal=True),
    "masked attention": _attend_masked,
}
FUSED = ("attention", "masked attention")  # forward in steps that round


@pytest.fixture(params=HALF_STEP, ids=["bfloat16", "float16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    chosen: torch.dtype = request.param
    return chosen


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


@pytest.mark.parametrize("name", [name for name in PRODUCTS if name not in FUSED])
def test_it_is_the_exact_product_rounded_once(name: str, dtype: torch.dtype) -> None:
    exact = _run(PRODUCTS[name], torch.float64)
    with widening(dtype):
        ours = _run(PRODUCTS[name], dtype)
    for got, wanted in zip(ours, exact, strict=True):
        # A gradient that two products reach is a sum of two rounded ones.
        bound = 3 * HALF_STEP[dtype] * wanted.abs().max()
        assert (got.double() - wanted).abs().max() <= bound
    assert torch.equal(ours[0], exact[0].to(dtype))  # inputs are such that float32 sums are exact


@pytest.mark.parametrize("name", PRODUCTS)
def test_it_is_what_torch_computes_but_for_the_last_place(name: str, dtype: torch.dtype) -> None:
    with widening():
        plain = _run(PRODUCTS[name], dtype)
    with widening(dtype):
        widened = _run(PRODUCTS[name], dtype)
    for ours, theirs in zip(widened, plain, strict=True):
        most = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=0, atol=8 * HALF_STEP[dtype] * most)


@pytest.mark.parametrize("name", FUSED)
def test_gradients_of_attention_are_the_exact_ones(name: str, dtype: torch.dtype) -> None:
    _, *exact = _run(PRODUCTS[name], torch.float64)
    with widening(dtype):
        _, *ours = _run(PRODUCTS[name], dtype)
    for got, wanted in zip(ours, exact, strict=True):
        bound = 8 * HALF_STEP[dtype] * wanted.abs().max()
        assert (got.double() - wanted).abs().max() <= bound


def test_a_kernel_of_float32_does_it_and_the_mask_is_widened_too(dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []

    class Kernel:
        def call_boxed(self, keys: object, *tensors: Tensor, mask: Tensor) -> Tensor:
            seen.extend(each.dtype for each in (*tensors, mask))
            return tensors[0] + 2**-20

    compute = module._widen(Kernel())
    narrow, kept = torch.ones(1, dtype=dtype), torch.ones(1, dtype=torch.int64)
    with widening(dtype):
        result = compute(None, narrow, kept, mask=narrow)
    assert seen == [torch.float32, torch.int64, torch.float32]
    assert torch.equal(result, narrow) and result.dtype == dtype
    seen.clear()
    with widening():
        compute(None, narrow, kept, mask=narrow)
    assert seen == [dtype, torch.int64, dtype]


def test_float32_keeps_its_bits(dtype: torch.dtype) -> None:
    x, y = (torch.randn(64, 64) for _ in range(2))
    with widening():
        plain = x @ y
    with widening(dtype):
        assert torch.equal(x @ y, plain)


@pytest.mark.parametrize("has_bfloat16", [True, False])
@pytest.mark.parametrize("has_float16", [True, False])
def test_a_process_that_computes_on_the_cpu_widens_what_it_has_no_instructions_for(
    has_bfloat16: bool, has_float16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_widened", frozenset())
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: has_float16)
    devices._usable.__wrapped__("meta")
    assert module._widened == frozenset()
    devices._usable.__wrapped__("cpu")
    assert (torch.bfloat16 in module._widened) is not has_bfloat16
    assert (torch.float16 in module._widened) is not has_float16
