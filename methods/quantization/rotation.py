"""A Hadamard rotation of the residual stream: it spreads outlying channels (QuaRot, arXiv
2404.00456, section 4, stage 1a).

    start = Hadamard().build(base, IntAsym(bits=2))     # the same function, other weights

Not here: how a rotation is folded into weights (`folding`), how one is learnt (`spinquant`),
rotations that a model computes as it runs (`harness.models.attachments`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from harness.core.checked import Seed
from harness.core.seeds import Seeds, add_seeds, redraw
from harness.core.stage import Input, Stage, added, value
from harness.models import Model
from methods.quantization.folding import Rotation, fold_rotation
from methods.quantization.formats import Format
from methods.quantization.inits import Init


@dataclass(frozen=True)
class Hadamard(Init):
    """A Hadamard rotation with random signs. Where the width has an odd factor, a random orthogonal
    matrix of that size stands beside it."""

    name = "hadamard"
    turns_states = True
    seed: Seed = 0  # of the random signs; the grid's is added

    def build(self, base: Stage[Model], format: Format) -> Stage[Model]:
        return Rotated(base, self.seed)

    def origin(self, base: Stage[Model], format: Format) -> Stage[Model]:
        return Rotated(base, self.seed)


@dataclass(frozen=True)
class Rotated(Stage[Model]):
    """The model with its residual stream rotated: the same function up to the rounding of its
    dtype. Latent: nothing is rounded to a format yet. Embeddings and head are no longer tied."""

    kind: ClassVar[str] = "rotated"
    stored: ClassVar[bool] = False
    model: Input[Model]
    seed: int
    learnt: Input[Rotation] | None = added(None)  # in place of one drawn from `seed`

    def run(self, work: Path) -> Model:
        model = value(self.model)
        if self.learnt is not None:
            return fold_rotation(model, value(self.learnt).matrix)
        width = model.network.get_input_embeddings().weight.shape[1]
        return fold_rotation(model, make_rotation(width, self.seed))


@redraw.register
def _of_signs(stage: Rotated, seeds: Seeds) -> Rotated:
    return replace(stage, seed=add_seeds(stage.seed, seeds.calibration))


def make_rotation(width: int, seed: int) -> Tensor:
    """Orthogonal (D, D) float64: Hadamard, as far as D is a power of two, times random signs."""
    generator = torch.Generator().manual_seed(seed)
    odd = width // (width & -width)
    result, _ = torch.linalg.qr(torch.randn(odd, odd, generator=generator, dtype=torch.float64))
    while len(result) < width:
        result = torch.cat([torch.cat([result, result], 1), torch.cat([result, -result], 1)])
    signs = 2.0 * torch.randint(2, (width, 1), generator=generator) - 1
    return signs * result / (width // odd) ** 0.5
