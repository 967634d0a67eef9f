"""A whole model rounded to a format: what is evaluated, never the weights that training moves.

    model = quantize_model(model, NF(bits=3))

Not here: the formats (`formats`), and the rounding of a training step (`methods.training.masters`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from harness.core.errors import ModelError
from harness.core.stage import Input, Stage, value
from harness.models import Model, matrices
from harness.models.tensors import move_buffers, replace_parameters
from methods.quantization.formats import Format, FullPrecision


@dataclass(frozen=True)
class Round(Stage[Model]):
    """Weights to what the format can represent: what is evaluated, in the base's dtype.

    Training leaves float32 weights. Evaluated as such they would have an advantage over methods
    whose models stay in the base's 16 bits.
    """

    kind: ClassVar[str] = "round"
    stored: ClassVar[bool] = False
    model: Input[Model]
    base: Input[Model]
    format: Format

    def run(self, work: Path) -> Model:
        return quantize_model(value(self.model), self.format, like=value(self.base))


def quantize_model(model: Model, format: Format, like: Model | None = None) -> Model:
    """`model` with every matrix inside the blocks rounded to `format`, then in the dtype and on the
    device of `like`, where one is given.

    The result is no longer latent: its weights are what the format can hold. Full precision holds
    any weight, so it rounds none. One tensor is worked on at a time: where `model` lies on the
    host, the device never has more of it than that. Raises FormatError where a layer does not fit,
    before any work, and ModelError where a layer has NaN or Inf.
    """
    like, result = like or model, model.fork(latent=False)
    layers = {} if isinstance(format, FullPrecision) else matrices(result.network)
    for name, matrix in layers.items():
        format.check(name, matrix.in_features)
        result.quantized[name] = format.describe(matrix.in_features)
    rounds = {matrix.parameter_name: matrix for matrix in layers.values()}

    def make(name: str, old: nn.Parameter) -> nn.Parameter:
        tensor = old.detach().to(like.device)
        if matrix := rounds.get(name):
            if not bool(tensor.isfinite().all()):
                raise ModelError(
                    f"layer {matrix.name}: its weight has NaN or Inf and cannot be quantised"
                )
            tensor = matrix.map(format.quantize, tensor)
        return nn.Parameter(tensor.to(like.network.dtype), requires_grad=False)

    replace_parameters(result.network, make)
    move_buffers(result.network, like.device)
    return result
