"""Integers with a zero point and a trained step: what EfficientQAT trains end to end.

EfficientQAT (Chen et al. 2024, arXiv 2407.11062, section 3.3). Not here: where a step starts when
blocks chose it (`block_ap`), how parameters are trained and stored (`learned`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from methods.quantization.formats import Bits, bounds
from methods.quantization.gradients import pass_gradient
from methods.quantization.learned import Learned
from methods.quantization.scales import store_scale

Change: TypeAlias = Callable[[Tensor, Tensor], Tensor]
_SMALLEST = 2.0**-24  # of a 16-bit float


@dataclass(frozen=True)
class IntStep(Learned):
    """`int-asym` whose step, in 16 bits, is trained: (q - z) s, with q from 0 to 2^bits - 1.

    z is where 0 lies between a group's min and max, which do not change with s: weights that hold
    the format keep their z and q. It is no parameter, and counted as the `bits` that it takes. s
    starts at (max - min) / (2^bits - 1); it has q - z - w/s of a weight whose code was not clamped,
    q - z of others, which get no gradient themselves. Where parameters alone are trained, integers
    stay and s has q - z of all weights.
    """

    name = "int-step"
    bits: Bits = 2

    widths: ClassVar[tuple[float, ...]] = (2, 3, 4)
    keeps_codes: ClassVar[bool] = True

    def overhead(self) -> int:
        return super().overhead() + self.bits

    def start_parameters(self, groups: Tensor) -> dict[str, Tensor]:
        low, high = bounds(groups)
        return {"step": store_scale((high - low) / self._top).half()}

    def quantize_groups(self, groups: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        step, (first, last) = parameters["step"], self._find_ends(groups.detach())
        # A step that a large rate took below 0 still has a gradient, and comes back.
        step = pass_gradient(step.clamp(min=_SMALLEST), step)
        ratios = groups / step
        rounded = ratios.detach().round()
        codes = torch.minimum(torch.maximum(rounded, first), last)
        ratios = torch.where(codes == rounded, ratios, codes)
        return pass_gradient(codes, ratios) * step

    def encode(self, weight: Tensor, *parameters: Tensor) -> Tensor:
        steps = self.store(self.name_parameters(parameters))["step"].float()
        values = self.quantize_with(weight.float(), {"step": steps})
        return self._map(lambda groups, step: (groups / step).round().char(), values, steps)

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        (given,) = parameters
        stored = self.store({"step": given.detach()})["step"].float().clamp(min=_SMALLEST)
        return self._map(torch.mul, codes, pass_gradient(stored, given))

    def _find_ends(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The first and the last code, -z and 2^bits - 1 - z: (..., g) -> (..., 1)."""
        low, high = bounds(groups)
        zero = (-low * self._top / (high - low).clamp(min=1e-38)).round().clamp(0, self._top)
        return -zero, self._top - zero

    @property
    def _top(self) -> int:
        return 2**self.bits - 1

    def _map(self, change: Change, rows: Tensor, steps: Tensor) -> Tensor:
        """`change` of groups (O, G, g) and their steps (O, G, 1), joined to (O, I)."""
        parts, first = [], 0
        for span in self.spans(rows.shape[-1]):
            own = steps[:, first : first + span.groups]
            parts.append(change(span.cut(rows), own).flatten(-2))
            first += span.groups
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)
