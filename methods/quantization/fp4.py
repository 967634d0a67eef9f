"""Four-bit floats in blocks that share a scale: MXFP4 and NVFP4.

    MXFP4().quantize(weight)            # blocks of 32, scales that are powers of two
    NVFP4().quantize(weight)            # blocks of 16, scales in FP8, and one a weight in float32

Both have elements of E2M1 (`round_e2m1`), which saturate at 6 times the scale. Not here: formats
whose scales are 16-bit floats (`formats`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from harness.core.errors import FormatError, SettingError
from methods.quantization.formats import Bits, Grouped, GroupSize
from methods.quantization.gradients import pull_larger

_TOP = 6.0  # the largest E2M1
_LARGEST_E4M3 = 448.0
_SMALLEST = 2.0**-126  # normal float32


def round_e2m1(ratios: Tensor) -> Tensor:
    """The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, halves to the even mantissa;
    6 beyond 6. OCP Microscaling Formats (MX) 1.0, section 5.3.3."""
    sizes = ratios.abs()
    steps = torch.where(sizes < 2, 0.5, torch.where(sizes < 4, 1.0, 2.0))
    return (ratios / steps).round_().mul_(steps).clamp_(-_TOP, _TOP)


@dataclass(frozen=True)
class _FP4(Grouped):
    """E2M1 times the scale of a block, which is an 8-bit number.

    Subclasses say what block they have, and what scale a range has: `_find_scale`.
    """

    bits: Bits = 4

    widths: ClassVar[tuple[float, ...]] = (4,)
    block: ClassVar[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size != self.block:
            raise SettingError(
                f"group_size: {self.group_size} should be {self.block}, the block of {self.name}",
                "group_size",
            )

    def overhead(self) -> int:
        return 8

    def _find_scale(self, low: Tensor, high: Tensor) -> Tensor:
        """The scale of each range: low, high (..., 1) -> (..., 1), float32. May be 0."""
        raise NotImplementedError

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        scale = self._find_scale(low, high)
        clamped = groups.clamp_min(low).clamp_max_(high)
        return round_e2m1(clamped.div_(_never_zero(scale))).mul_(scale)

    def _pull_scale(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Backward, given the scale: gradients of groups (..., g) and of the scale (..., 1).

        A weight beyond the range, or the largest element, is clamped and gets nothing.
        """
        scale = self._find_scale(low, high)
        top = (_TOP * scale).masked_fill(scale == 0, torch.inf)
        clamped = groups.clamp_min(torch.maximum(low, -top)).clamp_max_(torch.minimum(high, top))
        passed = clamped.eq_(groups).mul_(gradient)
        codes = self.quantize_dequantize(groups, low, high).div_(_never_zero(scale))
        slopes = codes.mul_(gradient).addcmul_(groups / _never_zero(scale), passed, value=-1)
        return passed, slopes.sum(-1, keepdim=True)


@dataclass(frozen=True)
class MXFP4(_FP4):
    """OCP Microscaling's MXFP4 (MX 1.0, section 6.3): a scale of E8M0, a power of two, a block.

    Its exponent is floor(log2 max|w|) - 2, so that the largest weight lies between 4 and 8 of it
    and saturates above 6. Through the range no gradient passes: the power of two stands still.
    """

    name = "mxfp4"
    group_size: GroupSize = 32

    block: ClassVar[int] = 32

    def _find_scale(self, low: Tensor, high: Tensor) -> Tensor:
        largest = torch.maximum(high, -low)
        exponents = (torch.frexp(largest).exponent - 3).clamp(-127, 127)  # frexp's mantissa < 1
        return torch.ldexp(torch.ones_like(largest), exponents)

    def pull_range(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        passed, _ = self._pull_scale(groups, low, high, gradient)
        return passed, torch.zeros_like(low), torch.zeros_like(high)


@dataclass(frozen=True)
class NVFP4(_FP4):
    """NVIDIA's NVFP4 (as in arXiv 2509.25149): a scale of E4M3 a block, and one in float32 a
    weight, max|w| of all of it over 6 * 448, so that the largest block's scale is 448.

    That of a block is the nearest to max|w| / 6; a block that is too small for one is 0. Bits do
    not count the float32, 32 bits of a whole weight.
    """

    name = "nvfp4"
    group_size: GroupSize = 16

    by_row = False
    block: ClassVar[int] = 16

    @property
    def unsearchable(self) -> str | None:
        return "has a scale of the whole weight, which moves as its blocks are clipped: init: none"

    def fit(self, weight: Tensor) -> Grouped:
        scale = (weight.abs().amax().float() / (_TOP * _LARGEST_E4M3)).clamp(min=_SMALLEST)
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return _Fitted(**own, held=scale)

    def pull_range(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        passed, slope = self._pull_scale(groups, low, high, gradient)
        # 448 is what the largest block has, down to rounding; from 464 another would be nearer.
        is_stored = (self._find_scale(low, high) > 0) & (self._divide(low, high) < 464)
        return passed, *pull_larger(low, high, torch.where(is_stored, slope / _TOP, 0.0))

    def _find_scale(self, low: Tensor, high: Tensor) -> Tensor:
        scales = self._divide(low, high).clamp(max=_LARGEST_E4M3)
        return scales.to(torch.float8_e4m3fn).float() * self._weight_scale

    def _divide(self, low: Tensor, high: Tensor) -> Tensor:
        """The scale of each range, over the weight's, before it is stored: (..., 1)."""
        return torch.maximum(high, -low) / _TOP / self._weight_scale

    @property
    def _weight_scale(self) -> Tensor:
        raise FormatError("nvfp4 has no scale before `fit` has seen the whole weight")


@dataclass(frozen=True)
class _Fitted(NVFP4):
    """The format of one weight. held: its scale, (), float32."""

    held: Tensor = torch.ones(())

    @property
    def _weight_scale(self) -> Tensor:
        return self.held


def _never_zero(scale: Tensor) -> Tensor:
    """The scale to divide by: of 0, one that leaves nothing of what is divided."""
    return scale.masked_fill(scale == 0, torch.inf)
