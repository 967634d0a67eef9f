"""Products in 16 bits, on processors that have no instructions for them.

There (AVX2 alone: most laptops) torch 2.13 multiplies bfloat16 and float16 by a loop of its own, 5
to 160 times as slow as float32. Here operands are widened to float32, which holds them exactly,
multiplied, and the result is rounded once: what instructions for bfloat16 do, which add up in
float32 too.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

# Those with a kernel of their own on the CPU; linear, matmul and einsum end in them. Not here, as
# none of it is slow: attention's forward pass, grouped convolutions. Nor torch's product of groups,
# by which transformers runs experts: it has no kernel that could be another.
_PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "addmv",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)


@cache  # once a process; what it registers must stay alive
def widen_products() -> torch.library.Library | None:
    """From now on this process's CPU multiplies in float32 what it has no instructions for.

    None where it has them, as oneDNN says. Values and gradients differ from torch's own as a sum in
    another order does.
    """
    dtypes = frozenset(
        dtype
        for dtype, is_supported in (
            (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
            (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
        )
        if not is_supported()
    )
    return register_widened(dtypes) if dtypes else None


def register_widened(dtypes: frozenset[torch.dtype]) -> torch.library.Library:
    """Products of these dtypes are computed in float32 while what is returned lives."""
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
        for name in _PRODUCTS:
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU")
            library.impl(name, _widen(kernel, dtypes), "CPU", with_keyset=True)
    return library


def _widen(kernel: Any, dtypes: frozenset[torch.dtype]) -> Callable[..., Any]:
    """A kernel for arguments of these dtypes by one of float32."""

    def compute(keys: Any, first: Tensor, *others: Any, **options: Any) -> Any:
        if first.dtype not in dtypes:
            return kernel.call_boxed(keys, first, *others, **options)
        narrow = first.dtype
        wide = tree_map_only(Tensor, Tensor.float, (first, *others))
        result = kernel.call_boxed(keys, *wide, **options)
        return tree_map_only(Tensor, lambda tensor: tensor.to(narrow), result)

    return compute
