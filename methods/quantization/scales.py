"""Scales in the types that files hold them in, and gradients through that.

Not here: what scales are multiplied with (`formats`, `ternary`, `fp4`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_SMALLEST = 2.0**-24  # of a 16-bit float; a scale of 0 would divide by zero
_LARGEST = 65504.0


def store_scale(scale: Tensor) -> Tensor:
    """A scale as 16 bits hold it, in float32; never 0 and never Inf. Gradients pass in float32, as
    `pull_stored` says."""
    if not (scale.requires_grad and torch.is_grad_enabled()):
        return _store(scale)  # an operation of autograd's own takes as long as that of many groups
    stored: Tensor = _Store.apply(scale)
    return stored


def _store(scale: Tensor) -> Tensor:
    return scale.clamp(_SMALLEST, _LARGEST).half().float()


class _Store(torch.autograd.Function):
    """Not left to autograd: behind `half()` a small gradient of a scale would be 0."""

    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return _store(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        return pull_stored(ctx.saved_tensors[0], gradients[0])


def pull_stored(scale: Tensor, gradient: Tensor) -> Tensor:
    """Backward through `store_scale`: nothing where the scale was clamped."""
    return torch.where((scale >= _SMALLEST) & (scale <= _LARGEST), gradient, 0.0)
