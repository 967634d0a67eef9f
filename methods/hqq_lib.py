"""HQQ's half-quadratic quantization: zero points that lessen the p-norm of the weights' error.

An adapter (Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models"):
hqq (0.2.8 was run, on a CPU) builds its own layer of each matrix, by its defaults in float16: zero
points are integers at 4 bits alone. Counted are the layer's packed codes, scales and zero points.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from harness.api import FormatError, Method, Model, Quantized, Tokens, matrices, register
from methods.parts import check_groups


@dataclass(frozen=True)
class HQQ(Method):
    """Even steps from a zero point that is searched, for groups of a row."""

    needs = ("hqq",)
    bits: Literal[2, 3, 4, 8] = 4  # of each weight's code
    group_size: Annotated[int, Field(ge=8, le=2**24, multiple_of=8)] = 64  # that share a scale

    def check(self, layers: Any) -> None:
        check_groups(layers, self.group_size)
        per = {2: 4, 4: 2}.get(self.bits, 1)  # groups in a byte; others fit any
        for name, (rows, inputs) in layers.items():
            if (n := rows * inputs // self.group_size) % per:
                raise FormatError(f"layer {name}: {n} groups; hqq packs {per} a byte; 8 bits fit")

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

        result, config = model.fork(), BaseQuantizeConfig(self.bits, self.group_size)
        for name, matrix in matrices(result.network).items():
            weight, values, stored = matrix.weight.detach(), [], 0
            for each in weight.reshape(-1, *weight.shape[-2:]):  # experts one by one
                own = HQQLinear.from_weights(each, None, config, device=str(weight.device))
                stored += sum(t.nbytes for t in (own.W_q, own.meta["scale"], own.meta["zero"]))
                values.append(own.dequantize())
            matrix.replace(torch.stack(values).view(weight.shape).to(weight.dtype))
            bits = 8 * stored / weight.numel()
            result.quantized[name] = Quantized("hqq", self.bits, self.group_size, bits)
        return result


register("hqq", HQQ(), title="HQQ", about="zero points by half-quadratic steps, of hqq")
