"""bitsandbytes' 4 bits: `quantize_4bit` and `dequantize_4bit`, NF4 or FP4.

An adapter: bitsandbytes (0.50.2 was run, on a CPU) chooses codes and scales, and what it gives back
dequantised is stored and evaluated as any other model. Counted are its packed bytes: codes, a
float32 scale a block, or with `double_quant` what those are rounded to (QLoRA, arXiv 2305.14314,
section 3); not its two tables of levels, which are the same for every layer.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.api import Method, Model, Quantized, Tokens, matrices, register
from methods.parts import check_groups

SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True)
class BitsAndBytes(Method):
    """16 levels times the largest magnitude of a block of bitsandbytes."""

    needs = ("bitsandbytes",)
    levels: Literal["nf4", "fp4"] = "nf4"  # of normal floats, or of 4-bit floats
    group_size: Literal[32, 64, 128, 256, 512, 1024, 2048, 4096] = 64  # weights that share a scale
    double_quant: bool = False  # whether scales are rounded to 8 bits

    def check(self, layers: Any) -> None:
        check_groups(layers, self.group_size, SIZES)  # blocks run on from row to row otherwise

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        import bitsandbytes.functional as library

        result = model.fork()
        for name, matrix in matrices(result.network).items():
            weight = matrix.weight.contiguous()
            codes, state = library.quantize_4bit(
                weight,
                blocksize=self.group_size,
                compress_statistics=self.double_quant,
                quant_type=self.levels,
            )
            matrix.replace(library.dequantize_4bit(codes, state).view(weight.shape))
            stored = [codes, state.absmax]
            if self.double_quant:
                stored += [state.state2.absmax, state.offset]
            bits = 8 * sum(tensor.nbytes for tensor in stored) / weight.numel()
            record = Quantized(f"bitsandbytes-{self.levels}", 4, self.group_size, bits)
            result.quantized[name] = record
        return result


register("bitsandbytes", BitsAndBytes(), title="bitsandbytes NF4", about="NF4 of bitsandbytes")
