"""Learned step size: integers whose step is trained as the weights are.

Learned Step Size Quantization (Esser et al. 2020, arXiv 1902.08153), with a step a group where the
paper has one a layer. Not here: how parameters are trained and stored (`learned`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.quantization.formats import Bits
from methods.quantization.gradients import pass_gradient
from methods.quantization.learned import Learned

_SMALLEST = 2.0**-24  # of a 16-bit float


@dataclass(frozen=True)
class IntLSQ(Learned):
    """Integers from -2^(bits-1) to 2^(bits-1) - 1, times a trained step a group, in 16 bits.

    The step starts at 2 mean|w| / sqrt(Qp), Qp the largest code; its gradient is equation 3 times
    1 / sqrt(N Qp), N the weights of its group (section 2.2), and a weight has its own between the
    outer levels only (equation 5).
    """

    name = "int-lsq"
    bits: Bits = 2

    def start_parameters(self, groups: Tensor) -> dict[str, Tensor]:
        step = 2 * groups.abs().mean(-1, keepdim=True) / self._top**0.5
        return {"step": step.clamp(_SMALLEST, 65504).half()}

    def quantize_groups(self, groups: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        least, top = -self._top - 1, self._top
        step = parameters["step"]
        # A step that a large rate took below 0 still has a gradient, and comes back.
        step = pass_gradient(step.clamp(min=_SMALLEST), step, (groups.shape[-1] * top) ** -0.5)
        ratios = groups / step
        inside = (ratios > least) & (ratios < top)
        codes = torch.where(inside, ratios, ratios.detach().clamp(least, top))
        return pass_gradient(codes.round(), codes) * step

    @property
    def _top(self) -> int:
        return int(2 ** (self.bits - 1) - 1)
