"""Stretched elastic quantisation, and which quantiser ParetoQ has at which width.

ParetoQ (Liu et al. 2025, arXiv 2502.02631), section 3, with a range a group where the paper has one
a row (`group_size: 0`). Its published code differs from the formulas, and from here, in three
numbers: a weight counts as clipped from 0.99 of the range on, of three levels the range's gradient
from those is 1 instead of 2/3, and N below are the weights of the layer, not of what shares a
range. Not here: LSQ (`lsq`), how parameters are trained and stored (`learned`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from harness.models import Quantized
from methods.quantization.formats import Width
from methods.quantization.gradients import pass_gradient
from methods.quantization.learned import Learned
from methods.quantization.lsq import IntLSQ
from methods.quantization.ternary import PACKED

_SMALLEST = 2.0**-24  # of a 16-bit float


@dataclass(frozen=True)
class IntSEQ(Learned):
    """k levels of even steps that fill a trained range a, in 16 bits, without 0 where k is even.

    a 2/k (round(clip(w/a, -1, 1) k/2 - 1/2) + 1/2), k = 2^bits, on the k levels alone; of three,
    1.58 bits, there is no 1/2, so that 0 is a level (as in the published code: the paper's formula
    has a fourth at its end). With 1 bit a sign(w). A weight has its gradient where |w| < a; a has
    value/a - w/a of those and value/a of the others, with 1 bit sign(w) of all, times
    1 / sqrt(N Qp) as `int-lsq` has it, N the weights of a group and Qp = 2^(bits-1) - 1, at least
    1. It starts at max|w|, with 1 bit at mean|w|.
    """

    name = "int-seq"
    bits: Width = 2  # of each weight's code; 1.58: three levels

    widths: ClassVar[tuple[float, ...]] = (1, 1.58, 2, 3, 4)

    def bits_per_weight(self, in_features: int) -> float:
        packed = PACKED - self.bits if self._levels == 3 else 0
        return super().bits_per_weight(in_features) + packed

    def start_parameters(self, groups: Tensor) -> dict[str, Tensor]:
        sizes = groups.abs()
        binary = self._levels == 2
        reach = sizes.mean(-1, keepdim=True) if binary else sizes.amax(-1, keepdim=True)
        return {"range": reach.clamp(_SMALLEST, 65504).half()}

    def quantize_groups(self, groups: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        levels, reach = self._levels, parameters["range"]
        share = (groups.shape[-1] * max(1, levels // 2 - 1)) ** -0.5
        # A range that a large rate took below 0 still has a gradient, and comes back.
        reach = pass_gradient(reach.clamp(min=_SMALLEST), reach, share)
        ratios = groups / (reach.detach() if levels == 2 else reach)
        inside = ratios.abs() < 1
        ratios = torch.where(inside, ratios, ratios.detach().sign())
        shift, top = (0.0 if levels == 3 else 0.5), (levels - 1) / 2
        codes = ((ratios * (levels / 2) - shift).round() + shift).clamp(-top, top)
        step = 2.0 if levels == 2 else 2 / levels  # of two levels, ends are -a and a
        return pass_gradient(codes * step, ratios) * reach

    @property
    def revision(self) -> int:
        return 2 if self.bits == 1 else 1  # 2: the range's gradient is sign(w)

    @property
    def _levels(self) -> int:
        return round(2**self.bits)


@dataclass(frozen=True)
class ParetoQ(Learned):
    """The quantiser that ParetoQ chose for each width: `int-seq` to 2 bits, `int-lsq` above.

    The step of the latter starts at max|w| / Qp, as in the published code.
    """

    name = "paretoq"
    bits: Width = 2  # of each weight's code; 1.58: three levels

    widths: ClassVar[tuple[float, ...]] = (1, 1.58, 2, 3, 4)

    def bits_per_weight(self, in_features: int) -> float:
        return self._kind.bits_per_weight(in_features)

    def describe(self, in_features: int) -> Quantized:
        return self._kind.describe(in_features)

    @property
    def revision(self) -> int:
        return 1 if self.bits in (1.58, 2) else 2  # 2: where LSQ's step starts; `int-seq`'s, 1 bit

    def start_parameters(self, groups: Tensor) -> dict[str, Tensor]:
        if self.bits <= 2:
            return self._kind.start_parameters(groups)
        step = groups.abs().amax(-1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        return {"step": step.clamp(_SMALLEST, 65504).half()}

    def quantize_groups(self, groups: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return self._kind.quantize_groups(groups, parameters)

    @property
    def _kind(self) -> Learned:
        if self.bits > 2:
            return IntLSQ(int(self.bits), self.group_size, self.tail)
        return IntSEQ(self.bits, self.group_size, self.tail)
