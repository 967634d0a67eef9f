"""auto-round's SignRound: roundings and ranges learned block by block by signed gradients.

An adapter (arXiv 2309.05516): auto-round (0.16 was run, on a CPU) tunes a copy of the model in
memory on the tokens that other methods calibrate on. Counted is what its packed file holds: codes,
and a group a float16 scale and a zero point of `bits`, in symmetric files too.
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch

from harness import api
from harness.api import Count, Model, Tokens
from methods.parts import GroupedIntegers


@dataclass(frozen=True)
class AutoRound(GroupedIntegers):
    """SignRound of auto-round with its own defaults; per row with group_size 0."""

    needs, seeded, layer_classes = ("auto-round",), True, ("Linear", "Conv1D")
    layer_multiple = 32  # it leaves others as they are
    symmetric: bool = True  # without a zero point
    iterations: Count = 200  # a block; the learning rate is 1 / iterations
    batch_size: Count = 8  # sequences a step
    text: str = "pile-val"  # calibration text
    sequences: Count = 128  # of calibration text
    length: Count = 2048  # of each, in tokens

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        import auto_round

        assert calibration is not None
        scratch, result, width = copy.deepcopy(model.network), model.fork(), self.group_size
        scheme = {"bits": self.bits, "group_size": width or -1, "sym": self.symmetric}
        auto_round.AutoRound(
            scratch,
            model.tokenizer,
            scheme=auto_round.schemes.QuantizationScheme(**scheme),
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
        for matrix, values, _ in self.match(result, scratch, "scale"):
            beside = (16 + self.bits) / (width or matrix.in_features)
            self.give(result, matrix, values, "auto-round", beside)
        return result


api.register("auto-round", AutoRound(), title="auto-round", about="SignRound of auto-round")
