"""auto-round's SignRound: roundings and ranges learned block by block by signed gradients.

An adapter (arXiv 2309.05516): auto-round (0.16 was run, on a CPU) tunes a copy of the model in
memory on the tokens that other methods calibrate on. What it writes into the copy's layers is
stored and evaluated as any other model. Counted is what its packed file holds: codes, and a group a
float16 scale and a zero point of `bits`, in symmetric files too.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field

from harness import api
from harness.api import Count, Method, Model, Stage, Tokens, matrices
from methods.parts import check_groups


@dataclass(frozen=True)
class AutoRound(Method):
    """SignRound of auto-round with its own defaults; per row with group_size 0."""

    needs, seeded, layer_classes = ("auto-round",), True, ("Linear", "Conv1D")
    bits: Annotated[int, Field(ge=2, le=8)] = 4  # of each weight's code
    group_size: Annotated[int, Field(ge=0, le=2**24)] = 128  # weights that share a scale; 0: a row
    symmetric: bool = True  # without a zero point
    iterations: Count = 200  # a block; the learning rate is 1 / iterations
    batch_size: Count = 8  # sequences a step
    text: str = "pile-val"  # calibration text
    sequences: Count = 128  # of calibration text
    length: Count = 2048  # of each, in tokens

    def calibration(self, base: Stage[Model]) -> Stage[Tokens]:
        return api.calibration(base, self.text, self.sequences, self.length)

    def check(self, layers: Any) -> None:
        check_groups(layers, self.group_size, multiple=32)  # it leaves others as they are

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        import auto_round

        assert calibration is not None
        scratch, result, width = copy.deepcopy(model.network), model.fork(), self.group_size
        scheme = {"bits": self.bits, "group_size": width or -1, "sym": self.symmetric}
        auto_round.AutoRound(
            scratch,
            model.tokenizer,
            scheme=scheme | {"data_type": "int", "act_bits": 16},
            iters=self.iterations,
            dataset=list(calibration.ids.split(1)),
            nsamples=len(calibration),
            seqlen=calibration.ids.shape[1],
            batch_size=min(self.batch_size, len(calibration)),
            seed=torch.initial_seed(),
            device_map=str(api.device()),
            amp=scratch.dtype != torch.float32,  # else it would round weights to bfloat16 first
            enable_torch_compile=False,
            low_cpu_mem_usage=False,
        ).quantize()
        tuned = matrices(scratch)
        for name, matrix in matrices(result.network).items():
            if name not in tuned or not hasattr(tuned[name].module, "scale"):
                raise api.ModelError(f"layer {name}: auto-round leaves it as it is")
            matrix.replace(tuned[name].weight.to(matrix.weight.device))
            bits = self.bits + (16 + self.bits) / (width or matrix.in_features)
            result.quantized[name] = api.Quantized("auto-round", self.bits, width, bits)
        return result


api.register("auto-round", AutoRound(), title="auto-round", about="SignRound of auto-round")
