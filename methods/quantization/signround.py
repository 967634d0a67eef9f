"""SignRound: which of its two neighbours a weight goes to is learnt from the block's output.

    Recipe(rounding=SignRound(), format=IntAsym(bits=3))

Values are s * clip(round(W / s + V)), with an offset V in [-0.5, 0.5] for each weight, and s of a
group's max and min times alpha and beta in [0, 1]. V, alpha and beta move by the sign of their
gradients alone (Cheng et al. 2023, arXiv 2309.05516, section 3). Not here: the loss (`learning`).
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from harness.core.checked import Count, Seed
from harness.models import Matrix
from methods.quantization.formats import Format
from methods.quantization.learning import (
    Even,
    Weights,
    check_even,
    count_groups,
    count_together,
    descend,
    find_even,
    measure,
    round_within,
    store_in,
)
from methods.quantization.rounding import WalkedRounding
from methods.quantization.walking import Block

_LIMITS = (-0.5, 0.5), (0, 1), (0, 1)  # of offsets, and of the shares of min and max


@dataclass(frozen=True)
class SignRound(WalkedRounding):
    """SignRound. Steps of size 1/`steps`, falling to 0, on `batch_size` sequences each, which
    `seed` draws; those of the step whose batch had the least loss are kept.

    Beyond the paper: they are kept only where they are better than the nearest levels on all of the
    text, so that no block gets worse.
    """

    name = "signround"
    text: str = "pile-val"
    sequences: Count = 512
    steps: Count = 200  # of a block
    batch_size: Count = 8  # sequences a step
    seed: Seed = 0  # of which sequences each step has; the grid's is added

    originals: ClassVar[bool] = True

    def check(self, format: Format) -> None:
        check_even(f"rounding {self.name!r}", format)

    def count_at_once(self, length: int) -> int:
        return count_together(self.batch_size, length)

    def round_block(self, block: Block, format: Format) -> dict[str, Tensor]:
        even = find_even(block, format)
        layers = [_Layer(block.layers[name], kind) for name, kind in even.items()]
        if layers and len(block.inputs):
            nearest, start = measure(block, _make(block, layers)), [each.copy() for each in layers]
            self._learn(block, layers)
            if not measure(block, _make(block, layers)) < nearest:
                _restore(layers, start)
        with torch.no_grad():
            return {each.matrix.name: each.make_values() for each in layers}

    def _learn(self, block: Block, layers: list[_Layer]) -> None:
        batches = self._draw(len(block.inputs))
        best = float("inf"), list[list[Tensor]]()
        for step in range(self.steps):
            loss = descend(block, partial(_make, block, layers), next(batches))
            if loss < best[0]:
                best = loss, [each.copy() for each in layers]
            for each in layers:
                each.move((1 - step / self.steps) / self.steps)
        _restore(layers, best[1])

    def _draw(self, count: int) -> Iterator[list[int]]:
        """The walk's batches of each step: all in a drawn order, then all in another."""
        generator, left = random.Random(self.seed), list[int]()
        each = self.batch_size // self.count_at_once(self.length)
        while True:
            while len(left) < each:
                left += generator.sample(range(count), count)
            yield [left.pop() for _ in range(each)]


class _Layer:
    """A matrix, and what is learnt of it, float32: offsets (..., O, I) in steps, and the shares
    (..., O, G, 1) of a group's min and max that its range has."""

    def __init__(self, matrix: Matrix, format: Even) -> None:
        self.matrix, self._format = matrix, format
        weight = matrix.weight.detach()
        groups = count_groups(format, matrix.in_features)
        shares = weight.new_ones(*weight.shape[:-1], groups, 1, dtype=torch.float32)
        self._offset = torch.zeros_like(weight, dtype=torch.float32)
        self._low, self._high = shares, shares.clone()
        for each in self._learnt:
            each.requires_grad_()

    @property
    def _learnt(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._offset, self._low, self._high

    def make_values(self) -> Tensor:
        weight = self.matrix.weight.detach()
        return round_within(weight, self._format, (self._low, self._high), self._offset)

    @torch.no_grad()
    def move(self, rate: float) -> None:
        """A step against the sign of each gradient, and no further than the limits."""
        for each, (least, most) in zip(self._learnt, _LIMITS, strict=True):
            if each.grad is not None:
                each.sub_(each.grad.sign_(), alpha=rate).clamp_(least, most)
                each.grad = None

    def copy(self) -> list[Tensor]:
        return [each.detach().clone() for each in self._learnt]

    @torch.no_grad()
    def restore(self, copies: list[Tensor]) -> None:
        for each, copy in zip(self._learnt, copies, strict=True):
            each.copy_(copy)


def _make(block: Block, layers: list[_Layer]) -> Weights:
    return store_in(block, {each.matrix.name: each.make_values() for each in layers})


def _restore(layers: list[_Layer], copies: list[list[Tensor]]) -> None:
    for each, copy in zip(layers, copies, strict=True):
        each.restore(copy)
