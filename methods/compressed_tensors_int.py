"""compressed-tensors' integers: the values that its checkpoints stand for, each to the nearest.

An adapter: compressed-tensors (0.20 was run, on a CPU), the format that llm-compressor writes and
vLLM reads, makes scales and zero points of each group's min and max and rounds. Counted are codes,
scales in the model's dtype and, where there are any, zero points packed to `bits`, as its packed
files have them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from harness.api import Model, Tokens, matrices, register
from methods.parts import GroupedIntegers


@dataclass(frozen=True)
class CompressedTensors(GroupedIntegers):
    """Integers of compressed-tensors, a scale a group; per row with group_size 0."""

    needs: ClassVar[tuple[str, ...]] = ("compressed-tensors",)
    symmetric: bool = True  # codes about 0, one more below, without a zero point

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        from compressed_tensors.quantization.lifecycle.forward import fake_quantize
        from compressed_tensors.quantization.utils import calculate_qparams

        result, made = model.fork(), self.make_arguments()
        for matrix in matrices(result.network).values():
            rows = matrix.weight.flatten(0, -2)  # of experts, those of all
            groups = rows.unflatten(-1, (-1, self.group_size or rows.shape[1]))
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), made)
            values = fake_quantize(rows, scale, zero, made).view(matrix.weight.shape)
            self.give(result, matrix, values, "compressed-tensors", self.count_beside(scale, rows))
        return result

    def count_beside(self, scale: Tensor, weight: Tensor) -> float:
        """Bits a weight of scales and packed zero points."""
        group_bits = 8 * scale.itemsize + (0 if self.symmetric else self.bits)
        return group_bits * scale.numel() / weight.numel()

    def make_arguments(self) -> Any:
        """What the library calls the arguments of a quantisation."""
        from compressed_tensors.quantization import QuantizationArgs

        kind = {"strategy": "group", "group_size": self.group_size}
        kind = kind if self.group_size else {"strategy": "channel"}
        return QuantizationArgs(num_bits=self.bits, symmetric=self.symmetric, **kind)


about = "weight-only integers of compressed-tensors"
register("compressed-tensors", CompressedTensors(), title="compressed-tensors", about=about)
