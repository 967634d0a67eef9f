"""torchao's weight-only rounding to integers: `quantize_` with `IntxWeightOnlyConfig`.

An adapter: torchao (0.18 was run) chooses scales, zero points and codes, and what it gives back
dequantised is stored and evaluated as any other model. It holds codes in int8, whose range is that
of `bits`, and counted are `bits`; scales, in the model's dtype, and zero points, int8 in both
mappings, are counted as it stores them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from harness.api import Method, Model, Quantized, Tokens, matrices, register
from methods.parts import check_groups


@dataclass(frozen=True)
class TorchAO(Method):
    """Integers of torchao, a scale and a zero point a group; per row with group_size 0."""

    needs = ("torchao",)
    bits: Annotated[int, Field(ge=2, le=8)] = 4  # of each weight's code
    group_size: Annotated[int, Field(ge=0, le=2**24)] = 128  # weights that share a scale; 0: a row
    symmetric: bool = True  # codes from -2^(bits-1), one more below 0 than above

    def check(self, layers: Any) -> None:
        check_groups(layers, self.group_size)

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        from torchao.quantization import quantize_

        result = model.fork()
        for name, matrix in matrices(result.network).items():
            rows = matrix.weight.flatten(0, -2)  # of experts, those of all
            linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(rows.contiguous(), requires_grad=False)
            quantize_(nn.Sequential(linear), self.make_config())
            stored: Any = linear.weight
            matrix.replace(stored.dequantize().view(matrix.weight.shape))
            beside = 8 * (stored.scale.nbytes + stored.zero_point.nbytes) / rows.numel()
            record = Quantized("torchao-intx", self.bits, self.group_size, self.bits + beside)
            result.quantized[name] = record
        return result

    def make_config(self) -> Any:
        """What `quantize_` is called with."""
        import torch
        from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup

        mapping = MappingType.SYMMETRIC if self.symmetric else MappingType.ASYMMETRIC
        groups = PerGroup(self.group_size) if self.group_size else PerAxis(0)
        return IntxWeightOnlyConfig(getattr(torch, f"int{self.bits}"), groups, mapping)


register("torchao", TorchAO(), title="torchao", about="weight-only integers of the library torchao")
