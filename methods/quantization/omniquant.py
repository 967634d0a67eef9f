"""OmniQuant: how far ranges are clipped, and how channels are scaled, is learnt from the block's
output.

    Recipe(rounding=OmniQuant(), format=IntAsym(bits=3))

A group's max and min are multiplied by a sigmoid each (learnable weight clipping, equation 2), and
with `equivalent` channels are scaled and, where there are biases for that, shifted (learnable
equivalent transformation, equation 3; Shao et al. 2023, arXiv 2308.13137). Not here: the loss
(`learning`), the transformation (`equivalent`); scales of queries against keys (equation 5), which
no rounding of weights or of what layers read sees.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from harness.core.checked import Count
from harness.core.errors import BitgridError
from harness.core.stage import Stage
from harness.models import Matrix, Model, find_attachments
from methods.quantization.awq import find_foldable
from methods.quantization.equivalent import find_channels, transform
from methods.quantization.formats import Format
from methods.quantization.learning import (
    Even,
    check_even,
    count_groups,
    count_together,
    descend,
    find_even,
    measure,
    round_within,
    split_steps,
    store_in,
)
from methods.quantization.rounding import WalkedRounding
from methods.quantization.walking import Block

_START = 4.0  # of what a sigmoid is taken of: 0.982 of each end
Rate = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class OmniQuant(WalkedRounding):
    """OmniQuant. AdamW without weight decay, `epochs` times over the sequences in their order.

    Channels are transformed between a norm and the layers that read it, and between values and the
    output projection where each head has one reader; not before the last layer of a feed-forward
    module (section 3.3). The paper's weights are clipped alone in LLaMA, and scaled too in OPT and
    where activations are rounded (`attach`).

    Beyond the paper: of the epochs, and of rounding to nearest, a block keeps what is best on all
    of the text, so that no block gets worse.
    """

    name = "omniquant"
    text: str = "wikitext2"  # calibration text
    epochs: Count | None = None  # over the text, for a block; null: 20, or 40 with 2-bit layers
    batch_size: Count = 1  # sequences a step
    clip_lr: Rate = 5e-3  # learning rate of the clipping
    equivalent: bool = False  # whether channels are scaled and shifted too
    scale_lr: Rate = 1e-2  # learning rate of the channels' scales and shifts

    originals: ClassVar[bool] = True

    def check(self, format: Format) -> None:
        check_even(f"rounding {self.name!r}", format)

    def build(self, model: Stage[Model], base: Stage[Model], format: Format) -> Stage[Model]:
        """Raises BitgridError where the model mixes channels, as it runs, that would be scaled."""
        own, mixing = self, next((each for each in find_attachments(model) if each.folds), None)
        if not self.equivalent:  # cells of all such rates are one
            own = dataclasses.replace(self, scale_lr=OmniQuant.scale_lr)
        elif mixing is not None:
            raise BitgridError(
                f"rounding {self.name!r} scales channels, which attachment {mixing.name!r} mixes; "
                "rounding.equivalent: false"
            )
        return WalkedRounding.build(own, model, base, format)

    def bind(self, base: Model, format: Format) -> Callable[[Block], dict[str, Tensor]]:
        foldable = find_foldable(base, self.name) if self.equivalent else {}
        return partial(self.round_block, format=format, foldable=foldable)

    def count_at_once(self, length: int) -> int:
        return count_together(self.batch_size, length)

    def round_block(
        self, block: Block, format: Format, foldable: Mapping[str, Sequence[str]] | None = None
    ) -> dict[str, Tensor]:
        """Values of the layers (O, I), float32, by name, and with `foldable`, as `find_foldable`
        gives it, the parameters of norms and the biases that are scaled, by theirs."""
        even = find_even(block, format)
        nearest = {n: kind.quantize(block.layers[n].weight) for n, kind in even.items()}
        if not even or not len(block.inputs):
            return nearest
        best = measure(block, store_in(block, nearest)), nearest
        learnt = _Learnt(block, even, foldable or {})
        optimizer = self._make_optimizer(learnt)
        for _ in range(self._count_epochs(even)):
            for batches in split_steps(len(block.inputs), self.batch_size, self.length):
                descend(block, lambda: store_in(block, learnt.make_values()), batches)
                optimizer.step()
                optimizer.zero_grad()
                for each in learnt.channels:
                    each.limit()
            with torch.no_grad():
                values = learnt.make_values()
            if (loss := measure(block, store_in(block, values))) < best[0]:
                best = loss, values
        return best[1]

    def _make_optimizer(self, learnt: _Learnt) -> torch.optim.Optimizer:
        clips = [each for pair in learnt.clips.values() for each in pair]
        channels = [each for some in learnt.channels for each in some.list_learnt()]
        groups = [{"params": clips, "lr": self.clip_lr}]
        if channels:
            groups.append({"params": channels, "lr": self.scale_lr})
        return torch.optim.AdamW(groups, weight_decay=0)

    def _count_epochs(self, even: Mapping[str, Even]) -> int:
        return self.epochs or (40 if any(kind.bits == 2 for kind in even.values()) else 20)


class _Learnt:
    """What is learnt of a block: of each rounded layer what sigmoids are taken of, for the min and
    the max of its groups, (..., O, G, 1) float32; and its channels."""

    def __init__(
        self, block: Block, even: Mapping[str, Even], foldable: Mapping[str, Sequence[str]]
    ) -> None:
        self._block, self._even = block, even
        self.clips = {name: _start_clips(block.layers[name], kind) for name, kind in even.items()}
        self.channels = find_channels(block, foldable)

    def make_values(self) -> dict[str, Tensor]:
        """As `OmniQuant.round_block` gives them, with gradients."""
        made = transform(self._block, self.channels)
        for name in self._even:
            weight = made.get(name, self._block.layers[name].weight.detach())
            made[name] = self._round(name, weight)
        return made

    def _round(self, name: str, weight: Tensor) -> Tensor:
        low, high = self.clips[name]
        return round_within(weight, self._even[name], (low.sigmoid(), high.sigmoid()))


def _start_clips(matrix: Matrix, format: Even) -> tuple[Tensor, Tensor]:
    shape = *matrix.weight.shape[:-1], count_groups(format, matrix.in_features), 1
    low, high = (matrix.stored.new_full(shape, _START, dtype=torch.float32) for _ in range(2))
    return low.requires_grad_(), high.requires_grad_()
