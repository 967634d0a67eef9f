"""Three levels: -1, 0 and 1 times a scale a group.

    Ternary(group_size=128).quantize(weight)            # the scale that fits the group best
    Ternary(scale="max")                                # the group's max|w|, which `clip` shrinks

Not here: ternary methods that train their scales.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from harness.core.errors import FormatError
from methods.quantization.formats import Grouped, IntSym, Width
from methods.quantization.scales import store_scale

_LEVELS = IntSym(2)  # those of a range: -1, 0 and 1 times its larger end
PACKED = 8 / 5  # bits: a byte holds five of three, 3^5 <= 2^8
_NO_RANGE = (
    "ternary with scale 'fit' has no range for a gradient to pass through; "
    "gradient: identity, or scale: max"
)


@dataclass(frozen=True)
class Ternary(Grouped):
    """-s, 0 and s: log2(3) = 1.58 bits a weight, which is what rows call it.

    `bits_per_weight` counts what a packed file takes instead: 1.6 bits, five weights a byte, and 16
    bits a group for s. `scale: fit` is the s whose squared error is least (Ternary Weight Networks,
    arXiv 1605.04711, section 2, solved exactly, not by its threshold of 0.7 mean|w|). `max` is the
    group's max|w|, as `int-sym` has it at 2 bits; with that alone ranges are searched and gradients
    pass through the range.
    """

    name = "ternary"
    bits: Width = 1.58
    scale: Literal["fit", "max"] = "fit"  # least squared error, or the largest weight

    widths: ClassVar[tuple[float, ...]] = (1.58,)

    @property
    def unsearchable(self) -> str | None:
        return "takes its scale from all weights of a group: scale: max" if self._fits else None

    @property
    def _fits(self) -> bool:
        return self.scale == "fit"

    def check(self, layer: str, in_features: int) -> None:
        super().check(layer, in_features)
        if self._fits and self.gradient != "identity":
            raise FormatError(_NO_RANGE)

    def overhead(self) -> int:
        return 16

    def bits_per_weight(self, in_features: int) -> float:
        return super().bits_per_weight(in_features) - self.bits + PACKED

    def find_range(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        if not self._fits:
            return super().find_range(groups)
        # With the k largest kept, s is their mean, and the error falls by (their sum)^2 / k.
        sums = groups.float().abs().sort(-1, descending=True).values.cumsum(-1)
        counts = torch.arange(1, sums.shape[-1] + 1, device=sums.device)
        kept = (sums / counts.sqrt()).argmax(-1, keepdim=True)
        scale = store_scale(sums.gather(-1, kept) / (kept + 1))
        return -scale, scale

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return _LEVELS.quantize_dequantize(groups, low, high)

    def pull_range(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self._fits:
            raise FormatError(_NO_RANGE)
        return _LEVELS.pull_range(groups, low, high, gradient)
