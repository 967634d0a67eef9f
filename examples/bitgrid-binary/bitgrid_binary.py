"""Binary weights: signs times the mean magnitude of a group, which is the scale of least error.

Rastegari et al. 2016, "XNOR-Net", arXiv 1603.05279, equation 6, there of a filter, here of a group.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from harness.api import FormatError, Method, Model, Quantized, Tokens, matrices, register


@dataclass(frozen=True)
class Binary(Method):
    """Each weight is its sign times the mean magnitude of its group."""

    group_size: Annotated[int, Field(ge=1)] = 128  # weights that share a scale of 16 bits

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        result = model.fork()  # shares every tensor until `replace` gives a new one
        for name, matrix in matrices(result.network).items():
            if matrix.in_features % self.group_size:
                raise FormatError(f"layer {name}: no groups of {self.group_size} in its rows")
            groups = matrix.weight.float().unflatten(-1, (-1, self.group_size))
            scale = groups.abs().mean(-1, keepdim=True).half().float()
            matrix.replace(scale.where(groups >= 0, -scale).flatten(-2))
            bits = 1 + 16 / self.group_size  # the scale is counted
            result.quantized[name] = Quantized("binary", 1, self.group_size, bits)
        return result


register("binary", Binary(), title="Binary", about="signs times a group's mean magnitude")
