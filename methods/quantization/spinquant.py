"""A learnt rotation of the residual stream: the one that costs the rounded network least.

    start = SpinQuant().build(base, IntAsym(bits=2))    # the same function, other weights

SpinQuant (Liu et al. 2024, arXiv 2405.16406), its R1: from a Hadamard rotation with random signs,
by Cayley SGD on the cross-entropy of the network whose weights are rounded, straight through. A
step is along the skew-symmetric part of the gradient; its Cayley transform, here solved exactly,
keeps the matrix orthogonal (Li et al. 2020, arXiv 2002.01113, which bounds a step as here). Not
here: the fold (`folding`); R2, within heads; R3 and R4, computed as it runs (`online_hadamard`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from harness.core.checked import Count, Seed
from harness.core.errors import ModelError
from harness.core.seeds import Seeds, add_seeds, redraw
from harness.core.stage import Input, Resources, Stage, report, value
from harness.data import Tokens, calibration
from harness.models import Model, host_gib, matrices
from methods.quantization.by_layer import has_levels
from methods.quantization.folding import Rotation, fold_rotation, turn_weights
from methods.quantization.formats import Format, Grouped
from methods.quantization.inits import Init
from methods.quantization.rotation import Rotated, make_rotation
from methods.tensor_files import keep_tensors, read_kept

_KEPT_EVERY = 10  # steps


@dataclass(frozen=True)
class SpinQuant(Init):
    """SpinQuant's first rotation. Sequences are seen in their order, again where steps need more; a
    format without levels leaves nothing to learn."""

    name = "spinquant"
    turns_states = True
    text: str = "wikitext2"  # what the loss is of
    sequences: Count = 800  # of the text
    length: Count = 2048  # of each, in tokens
    steps: Count = 100  # of the rotation
    batch_size: Count = 8  # sequences a step
    lr: Annotated[float, Field(gt=0, le=100)] = 1.5  # learning rate, which falls to 0 evenly
    seed: Seed = 0  # of the random signs; the grid's is added

    def build(self, base: Stage[Model], format: Format) -> Stage[Model]:
        if not has_levels(format):
            return base
        tokens = calibration(base, self.text, self.sequences, self.length)
        learnt = LearntRotation(
            base, tokens, format, self.steps, self.batch_size, self.lr, self.seed
        )
        return Rotated(base, 0, learnt)

    def origin(self, base: Stage[Model], format: Format) -> Stage[Model]:
        return self.build(base, format)


@dataclass(frozen=True)
class LearntRotation(Stage[Rotation]):
    """The rotation after all steps. It goes on after a kill from the last ten steps that it kept.

    Holds, beside the model, what the weights become, in float32: turned, rounded, and gradients.
    """

    kind: ClassVar[str] = "learnt-rotation"
    model: Input[Model]
    calibration: Input[Tokens]
    format: Format
    steps: int
    batch_size: int
    lr: float
    seed: int

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model, 16.0), hours=2.0)

    def run(self, work: Path) -> Rotation:
        model, ids = value(self.model), value(self.calibration).ids
        start = make_rotation(model.network.get_input_embeddings().weight.shape[1], self.seed)
        network = fold_rotation(model, start).network.eval()
        kept = read_kept(work / "turn.safetensors") or {}
        turn = kept.get("turn", torch.eye(len(start), dtype=torch.float64))
        first = int(kept["step"]) if kept else 0
        for step in range(first, self.steps):
            picked = torch.arange(step * self.batch_size, (step + 1) * self.batch_size) % len(ids)
            slope = self._find_slope(network, turn.to(model.device), ids[picked])
            turn = step_cayley(turn, slope.cpu().double(), self.lr * (1 - step / self.steps))
            if (step + 1) % _KEPT_EVERY == 0:
                tensors = {"turn": turn, "step": torch.tensor(step + 1)}
                keep_tensors(work / "turn.safetensors", tensors, f"the rotation of step {step + 1}")
            report(step + 1, self.steps)
        return Rotation(start @ turn)

    @torch.enable_grad()
    def _find_slope(self, network: PreTrainedModel, turn: Tensor, ids: Tensor) -> Tensor:
        """The gradient of the rounded network's mean cross-entropy on (B, T): (D, D) float32."""
        leaf = turn.float().requires_grad_()
        made = round_turned(network, leaf, self.format)
        leaves = {name: each.detach().requires_grad_() for name, each in made.items()}
        for row in ids.to(turn.device).split(1):
            (find_loss(network, leaves, row) / len(ids)).backward()
        slopes = {name: each.grad for name, each in leaves.items() if each.grad is not None}
        torch.autograd.backward([made[name] for name in slopes], [*slopes.values()])
        if leaf.grad is None or not bool(leaf.grad.isfinite().all()):
            raise ModelError("init 'spinquant': the gradient of the rotation has NaN or Inf")
        return leaf.grad


def round_turned(network: PreTrainedModel, turn: Tensor, format: Format) -> dict[str, Tensor]:
    """The weights of a network that `fold_rotation` gave, turned further and rounded, by their
    names, in its dtype; differentiable in `turn` (D, D) float32."""
    weights = turn_weights(network, turn)
    for name, matrix in matrices(network).items():
        if isinstance(own := format.of(name), Grouped):
            weight = matrix.layout.view(weights.get(matrix.parameter_name, matrix.stored.float()))
            values = own.quantize_with_gradient(weight)
            weights[matrix.parameter_name] = matrix.layout.store(values)
    return {name: each.to(network.dtype) for name, each in weights.items()}


def find_loss(network: PreTrainedModel, weights: Mapping[str, Tensor], ids: Tensor) -> Tensor:
    """Cross-entropy of tokens (B, T) with these weights in place of a network's own."""
    asked = {"input_ids": ids, "use_cache": False}
    logits = torch.func.functional_call(network, dict(weights), (), asked).logits
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


def step_cayley(turn: Tensor, slope: Tensor, rate: float) -> Tensor:
    """An orthogonal matrix (D, D) moved against a gradient on the manifold of such matrices:
    (I + a/2 A)^-1 (I - a/2 A) R with A = G R' - R G', a no more than 1 / |A| (1-norm); float64."""
    skew = slope @ turn.T - turn @ slope.T
    size = float(torch.linalg.matrix_norm(skew, 1))
    half = min(rate, 1 / max(size, 1e-12)) / 2 * skew
    eye = torch.eye(len(turn), dtype=turn.dtype)
    moved: Tensor = torch.linalg.solve(eye + half, (eye - half) @ turn)
    return moved.contiguous()  # as it is kept: products of another layout round otherwise


@redraw.register
def _of_rotation(stage: LearntRotation, seeds: Seeds) -> LearntRotation:
    return replace(stage, seed=add_seeds(stage.seed, seeds.calibration))
