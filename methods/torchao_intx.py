"""torchao's weight-only rounding to integers: `quantize_` with `IntxWeightOnlyConfig`.

An adapter: torchao (0.18 was run) chooses scales, zero points and codes, and what it gives back
dequantised is stored and evaluated as any other model. It holds codes in int8, whose range is that
of `bits`, and counted are `bits`; scales, in the model's dtype, and zero points, int8 in both
mappings, are counted as it stores them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from harness.api import Model, Tokens, matrices, register
from methods.parts import GroupedIntegers


@dataclass(frozen=True)
class TorchAO(GroupedIntegers):
    """Integers of torchao, a scale and a zero point a group; per row with group_size 0."""

    needs = ("torchao",)
    symmetric: bool = True  # codes from -2^(bits-1), one more below 0 than above

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        from torchao.quantization import quantize_

        result = model.fork()
        for matrix in matrices(result.network).values():
            rows = matrix.weight.flatten(0, -2)  # of experts, those of all
            linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(rows.contiguous(), requires_grad=False)
            quantize_(nn.Sequential(linear), self.make_config())
            stored: Any = linear.weight
            values = stored.dequantize().view(matrix.weight.shape)
            beside = 8 * (stored.scale.nbytes + stored.zero_point.nbytes) / rows.numel()
            self.give(result, matrix, values, "torchao-intx", beside)
        return result

    def make_config(self) -> Any:
        """What `quantize_` is called with."""
        import torch
        from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup

        mapping = MappingType.SYMMETRIC if self.symmetric else MappingType.ASYMMETRIC
        groups = PerGroup(self.group_size) if self.group_size else PerAxis(0)
        return IntxWeightOnlyConfig(getattr(torch, f"int{self.bits}"), groups, mapping)


register("torchao", TorchAO(), title="torchao", about="weight-only integers of the library torchao")
