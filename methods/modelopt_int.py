"""ModelOpt's weight-only integers, of nvidia-modelopt: a scale by the largest weight or by error.

An adapter: nvidia-modelopt (0.47 was run, on a CPU) finds a scale a block and rounds; what its own
quantiser gives for the weights is stored. Levels are even steps about 0, one more below it, which
`mse` alone reaches. Counted are `bits` a code and each block's range as the library holds it: in
float32, of rows in the model's dtype.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from harness.api import Model, Tokens, matrices, register
from methods.parts import GroupedIntegers


@dataclass(frozen=True)
class ModelOpt(GroupedIntegers):
    """Integers about 0 of a scale for each block of a row; per row with group_size 0."""

    needs = ("nvidia-modelopt",)
    scales: Literal["max", "mse"] = "max"  # scale by the largest weight, or by least error

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        import modelopt.torch.quantization as quantization

        result = model.fork()
        for matrix in matrices(result.network).values():
            rows = matrix.weight.detach().flatten(0, -2)  # of experts, those of all
            linear = nn.Linear(rows.shape[1], rows.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(rows.contiguous(), requires_grad=False)
            run = quantization.quantize(nn.Sequential(linear), self.make_config())
            quantizer: Any = run[0].weight_quantizer
            with torch.no_grad():
                values = quantizer(run[0].weight).view(matrix.weight.shape)
            beside = 8 * quantizer.amax.nbytes / rows.numel()
            self.give(result, matrix, values, "modelopt-int", beside)
        return result

    def make_config(self) -> dict[str, Any]:
        """What `quantize` is called with."""
        blocks = {"block_sizes": {-1: self.group_size, "type": "static"}}
        weights = {"num_bits": self.bits, **(blocks if self.group_size else {"axis": 0})}
        rules = [{"quantizer_name": "*", "enable": False}]
        rules += [{"quantizer_name": "*weight_quantizer", "cfg": weights}]
        return {"quant_cfg": rules, "algorithm": self.scales}


register("modelopt", ModelOpt(), title="ModelOpt", about="weight-only integers of nvidia-modelopt")
