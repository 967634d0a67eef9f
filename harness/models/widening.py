"""Products in 16 bits, on processors that have no instructions for them.

There (AVX2 alone, as in laptops without AVX-512) torch 2.13 multiplies bfloat16 and float16 by a
loop of its own (`benchmarks.widened_products` has what it takes). Here operands are widened to
float32, which holds them exactly, multiplied, and the result is rounded once: what instructions
for bfloat16 do, which add up in float32 too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# Those with a kernel of their own on the CPU; linear, matmul and einsum end in them. Not here, as
# they gain nothing in bfloat16: attention's forward pass, grouped convolutions. Nor torch's product
# of groups, by which transformers runs experts: it has no kernel that could be another.
_PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addmv",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)
_widened: frozenset[torch.dtype] = frozenset()  # whose products are float32's now


def widen_products() -> None:
    """From now on this process's CPU multiplies in float32 what it has no instructions for.

    Where it has them, as oneDNN says, torch's kernels stay. Values and gradients differ from
    torch's own as a sum in another order does.
    """
    global _widened
    _widened = find_slow()
    if _widened:
        _replace_kernels()


def find_slow() -> frozenset[torch.dtype]:
    """The dtypes of 16 bits that this processor has no instructions for."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported(),
    }
    return frozenset(dtype for dtype, is_supported in supported.items() if not is_supported)


@contextmanager
def widening(*dtypes: torch.dtype) -> Iterator[None]:
    """Inside, products of these dtypes are float32's and all others torch's own, whatever the
    processor has: for tests and benchmarks, which compare the two."""
    global _widened
    before, _widened = _widened, frozenset(dtypes)
    _replace_kernels()
    try:
        yield
    finally:
        _widened = before


@cache  # once a process: what it returns must stay alive
def _replace_kernels() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        for name in _PRODUCTS:
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, _widen(kernel), "CPU", with_keyset=True)
    return library


def _widen(kernel: Any) -> Callable[..., Any]:
    """A kernel that runs this one in float32 where its arguments are of a widened dtype."""

    def compute(keys: Any, first: Tensor, *others: Any, **options: Any) -> Any:
        narrow = first.dtype
        if narrow not in _widened:
            return kernel.call_boxed(keys, first, *others, **options)

        def widen(tensor: Tensor) -> Tensor:  # attention's mask may be an option, and of this dtype
            return tensor.float() if tensor.dtype == narrow else tensor

        arguments, named = tree_map_only(Tensor, widen, ((first, *others), options))
        result = kernel.call_boxed(keys, *arguments, **named)
        return tree_map_only(Tensor, lambda tensor: tensor.to(narrow), result)

    return compute
