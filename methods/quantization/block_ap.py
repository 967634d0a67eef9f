"""Block-AP: a block's weights, steps and zero points are trained on what the block gives.

    Recipe(rounding=BlockAP(), format=IntStep(bits=2))

Values are (clip(round(W / s) + round(z), 0, 2^bits - 1) - round(z)) s, and all of W, s and z move
by AdamW, rounding straight through (EfficientQAT: Chen et al. 2024, arXiv 2407.11062, section 3.2).
Not here: the loss (`learning`), the training of steps end to end (`methods.efficient_qat`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from harness.core.checked import Count
from harness.core.errors import FormatError
from harness.models import Matrix
from methods.quantization.by_layer import group_by_format
from methods.quantization.formats import Format, Grouped, IntAsym, bounds
from methods.quantization.gradients import pass_gradient
from methods.quantization.int_step import IntStep
from methods.quantization.learning import Weights, count_together, descend, split_steps, store_in
from methods.quantization.rounding import WalkedRounding
from methods.quantization.scales import store_scale
from methods.quantization.walking import Block

Zeroed: TypeAlias = IntAsym | IntStep
"""A format of even steps with a zero point."""

Rate: TypeAlias = Annotated[float, Field(gt=0, le=1)]

_LAST = 1 / 20  # of a rate, at the end of its cosine: as in the published code


@dataclass(frozen=True)
class BlockAP(WalkedRounding):
    """Block-AP, with the paper's numbers for 2 bits; for 3 and 4 it has 1e-5 for weights.

    The text is seen `epochs` times in its order. Norms, which the published code trains too, stay.
    It has ranges of weights that do not reach to 0, steps of at least 1e-4, and zero points whose
    gradient passes beyond the codes' ends; here ranges hold 0, and that gradient ends with them.
    """

    name = "block-ap"
    sequences: Count = 4096  # of calibration text
    epochs: Count = 2  # times that a block sees the text
    batch_size: Count = 2  # sequences a step
    weight_lr: Rate = 2e-5  # learning rate of weights, which falls to a twentieth
    parameter_lr: Rate = 1e-4  # learning rate of steps and zero points, which falls alike

    originals: ClassVar[bool] = True

    def check(self, format: Format) -> None:
        kinds = [kind for kind in format.kinds() if isinstance(kind, Grouped)]
        other = next((kind for kind in kinds if not isinstance(kind, Zeroed)), None)
        if other is not None or not kinds:
            raise FormatError(
                f"rounding {self.name!r} trains steps and zero points, which format "
                f"{(other or format).name!r} has not; format: int-step or int-asym"
            )

    def count_at_once(self, length: int) -> int:
        return count_together(self.batch_size, length)

    def round_block(self, block: Block, format: Format) -> dict[str, Tensor]:
        groups = group_by_format(format, block.layers)
        kinds = {n: kind for kind, names in groups.items() for n in names}
        layers = [
            _Layer(block.layers[name], kind)
            for name, kind in kinds.items()
            if isinstance(kind, Zeroed)
        ]
        if layers and len(block.inputs):
            self._train(block, layers)
        with torch.no_grad():
            found = {each.matrix.name: each.make_values() for each in layers}
            for each in layers:
                if isinstance(each.format, IntStep):
                    found[f"{each.matrix.name}:step"] = store_scale(each.step).half()
        return found

    def _train(self, block: Block, layers: list[_Layer]) -> None:
        weights = [each.weight for each in layers]
        parameters = [part for each in layers for part in (each.step, each.zero)]
        rates = (weights, self.weight_lr), (parameters, self.parameter_lr)
        optimizer = torch.optim.AdamW(
            [{"params": moved, "lr": rate, "first": rate} for moved, rate in rates], weight_decay=0
        )
        batches = split_steps(len(block.inputs), self.batch_size, self.length) * self.epochs
        for number, batch in enumerate(batches):
            done = 0.5 - 0.5 * math.cos(math.pi * number / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = group["first"] * (1 - done * (1 - _LAST))
            descend(block, partial(_make, block, layers), batch)
            optimizer.step()
            optimizer.zero_grad()


class _Layer:
    """A matrix, and what is trained of it, float32: its weights (..., O, I), and of each group the
    step and the zero point, (..., O, G, 1). They start at the nearest levels of the group."""

    def __init__(self, matrix: Matrix, format: Zeroed) -> None:
        self.matrix, self.format, self._top = matrix, format, 2**format.bits - 1
        self.weight = matrix.weight.detach().float().clone()
        parts = [bounds(span.cut(self.weight)) for span in format.spans(matrix.in_features)]
        low, high = (torch.cat(ends, -2) for ends in zip(*parts, strict=True))
        self.step = store_scale((high - low) / self._top)
        self.zero = (-low / self.step).round().clamp(0, self._top)
        for each in (self.weight, self.step, self.zero):
            each.requires_grad_()

    def make_values(self) -> Tensor:
        """(..., O, I) float32, with gradients."""
        step = store_scale(self.step)
        zero = pass_gradient(self.zero.round(), self.zero).clamp(0, self._top)
        parts, first = [], 0
        for span in self.format.spans(self.matrix.in_features):
            own = slice(first, first + span.groups)
            values = _quantize(
                span.cut(self.weight), step[..., own, :], zero[..., own, :], self._top
            )
            parts.append(values.flatten(-2))
            first = own.stop
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _quantize(groups: Tensor, step: Tensor, zero: Tensor, top: int) -> Tensor:
    ratios = groups / step
    codes = pass_gradient(ratios.round(), ratios) + zero
    return (codes.clamp(0, top) - zero) * step


def _make(block: Block, layers: Iterable[_Layer]) -> Weights:
    return store_in(block, {each.matrix.name: each.make_values() for each in layers})
