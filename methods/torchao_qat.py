"""torchao's quantisation-aware training: `QATConfig` around `IntxWeightOnlyConfig`.

An adapter: torchao (0.18 was run) puts its fake quantisation into the linear layers of a copy, and
the loop here trains their weights, kept in float32, by cross-entropy on blocks of text taken in
turn; AdamW, no weight decay, nothing drawn at random. Trained weights go to the model's dtype and
are rounded as method `torchao` rounds. Norms and ends stay.
"""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from harness import api
from harness.api import Count, Model, Tokens, matrices
from methods.torchao_intx import TorchAO


@dataclass(frozen=True)
class TorchAOQAT(TorchAO):
    """Linear layers trained with torchao's fake quantisation, then rounded by torchao."""

    layer_classes = ("Linear",)
    symmetric: Literal[True] = True  # torchao trains for no other integers
    text: str = "pile-val"  # that is trained on
    sequences: Count = 128  # of this text
    length: Count = 512  # of each, in tokens
    iterations: Count = 128  # optimizer steps
    batch_size: Count = 8  # sequences a step
    lr: Annotated[float, Field(gt=0, le=10)] = 1e-5  # learning rate

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        from torchao.quantization import quantize_
        from torchao.quantization.qat import QATConfig

        assert calibration is not None
        scratch: Any = copy.deepcopy(model.network).float().requires_grad_(False)
        layers = matrices(scratch)
        quantize_(scratch, QATConfig(self.make_config()), lambda _, name: name in layers)
        weights = {name: scratch.get_submodule(name).weight.requires_grad_() for name in layers}
        optimizer = torch.optim.AdamW(weights.values(), lr=self.lr, weight_decay=0.0)
        for step in range(self.iterations):
            picked = torch.arange(step * self.batch_size, (step + 1) * self.batch_size)
            ids = calibration.ids[picked % len(calibration)].to(model.device)
            scratch(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            api.report(step + 1, self.iterations)
        trained = model.fork()
        for name, matrix in matrices(trained.network).items():
            matrix.replace(weights[name].detach())
        return super().apply(trained, None, work)


api.register("torchao-qat", TorchAOQAT(), title="torchao QAT", about="fake quantisation of torchao")
