"""How a gradient passes the rounding: what a format's `gradient` says, as a choice of the format.

    values = Quantize.apply(weight, format)             # format.quantize(weight), differentiable

Rounding has no useful derivative, so the codes are taken to move as their weights do (the
straight-through estimator, Bengio et al. 2013). What is left open is the range:

    identity        it is a constant, and weights beyond it get their gradient too
    through-range   it is the group's max and min: they get what the group's values change by as
                    the scale does, and a weight whose code was clamped gets nothing (the published
                    code of BitDistiller, arXiv 2402.10631)

With s the scale, w a weight and v = q·s its value, dv/ds is q - w/s, of a clamped weight q alone.

In this file: the operation, and the parts of its backward pass that formats share. Not here: the
formats (`formats`), the gradients of a whole model (`methods.training.masters`).
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

Gradient: TypeAlias = Literal["identity", "through-range"]


class Differentiable(Protocol):
    """What the operation needs of a format."""

    def quantize(self, weight: Tensor) -> Tensor:
        """The values: (O, I) -> (O, I)."""

    def pull_back(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """The gradient of the weights, given that of their values: (O, I)."""


class Quantize(torch.autograd.Function):
    """A format's rounding forward, exact; backward what the format says.

    Nothing is kept between the two but a reference to the weights: codes are computed again.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, format: Differentiable) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.format = format
        return format.quantize(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return ctx.format.pull_back(weight, gradients[0]), None


def pull_codes(
    groups: Tensor, scale: Tensor, first: Tensor, last: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor]:
    """Backward through v = clamp(round(w / s), first, last) · s: gradients of w and of s.

    groups, gradient (..., g); scale, first, last (..., 1); returns (..., g) and (..., 1).
    """
    ratios = groups / scale
    rounded = ratios.round()
    codes = rounded.clamp_min(first).clamp_max_(last)
    # Masks are floats: on a CPU comparing into booleans takes seven times as long.
    passed = rounded.eq_(codes).mul_(gradient)
    slopes = codes.mul_(gradient).addcmul_(ratios, passed, value=-1)
    return passed, slopes.sum(-1, keepdim=True)


def pull_larger(low: Tensor, high: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Backward through max(high, -low): the gradients of low and high, halves where they tie."""
    share = (high + low).sign().add_(1).mul_(0.5)
    return gradient * (share - 1), gradient * share


def share_out(total: Tensor, groups: Tensor, bound: Tensor, gradient: Tensor) -> Tensor:
    """Add to the weights' gradient, in place, in equal shares that of the bound that they have.

    total, groups (..., g); bound, gradient (..., 1); returns `total`. A bound that no weight has, 0
    in a group of one sign, is no weight's.
    """
    holders = torch.eq(groups, bound, out=torch.empty_like(groups))
    shared = gradient / holders.sum(-1, keepdim=True).clamp_(min=1)
    return total.addcmul_(holders, shared)


def pass_gradient(value: Tensor, source: Tensor, share: float = 1.0) -> Tensor:
    """`value` exactly, whose gradient, times `share`, is that of `source`; both of one shape.

    pass_gradient(x.round(), x) is rounding with the straight-through estimator.
    """
    result: Tensor = _Pass.apply(value.detach(), source, share)
    return result


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, source: Tensor, share: float) -> Tensor:
        ctx.share = share
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[None, Tensor, None]:
        return None, gradients[0] * ctx.share, None
