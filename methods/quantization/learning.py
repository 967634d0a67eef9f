"""How far a block whose weights are rounded is from the original, and what learns from that.

    values = round_within(weight, format, shares)       # differentiable, in the shares too
    loss = descend(block, make, batches)                # gradients of what `make` starts from
    store_in(block, {name: values, ...})                # what `make` gives

The loss is the mean squared difference of the block's output from what the original block gives in
the original model, as in the walk's `targets`. Not here: what is learnt and how it moves
(`signround`, `omniquant`), the walk (`walking`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from harness.core.errors import FormatError, ModelError
from methods.quantization import walking
from methods.quantization.by_layer import group_by_format
from methods.quantization.formats import Format, Grouped, IntAsym, IntSym, bounds
from methods.quantization.walking import Block

Even: TypeAlias = IntAsym | IntSym
"""A format of even steps: values are codes times a scale."""


def check_even(name: str, format: Format) -> None:
    """Raise FormatError where layers are rounded to something else than even steps, or to none."""
    kinds = [kind for kind in format.kinds() if isinstance(kind, Grouped)]
    other = next((kind for kind in kinds if not isinstance(kind, Even)), None)
    if other is not None or not kinds:
        raise FormatError(
            f"{name} learns ranges of even steps, which format {(other or format).name!r} has not; "
            "format: int-asym or int-sym"
        )


def find_even(block: Block, format: Format) -> dict[str, Even]:
    """The layers of a block that are rounded, with the format of each."""
    groups = group_by_format(format, block.layers)
    return {n: kind for kind, names in groups.items() for n in names if isinstance(kind, Even)}


def count_together(batch_size: int, length: int) -> int:
    """Sequences in a batch of the walk: as many as divide a step's, so that gradients add up over
    small batches."""
    most = max(1, min(batch_size, walking.TOKENS_AT_ONCE // length))
    return max(count for count in range(1, most + 1) if batch_size % count == 0)


def split_steps(count: int, batch_size: int, length: int) -> list[range]:
    """Of the walk's `count` batches, in order, those of each step of an epoch."""
    each = batch_size // count_together(batch_size, length)
    return [range(first, min(first + each, count)) for first in range(0, count, each)]


class _Round(torch.autograd.Function):
    """Rounding, halves to even; backward as if it were not there (straight through)."""

    @staticmethod
    def forward(ctx: Any, ratios: Tensor) -> Tensor:
        return ratios.round()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        gradient: Tensor = gradients[0]
        return gradient


def round_within(
    weight: Tensor,
    format: Even,
    shares: tuple[Tensor, Tensor],
    offset: Tensor | None = None,
) -> Tensor:
    """Values of `format`, float32, for a weight (..., O, I), with gradients: codes move as weights
    do while they are inside of the range, and values with the scale; zero points stand still.

    shares: of the min and of the max of each group (..., O, G, 1), what its range has. offset:
    (..., O, I) in steps, added before rounding.
    """
    parts, first_group = [], 0
    for span in format.spans(weight.shape[-1]):
        groups, these = span.cut(weight).float(), slice(first_group, first_group + span.groups)
        low, high = bounds(groups)
        ends = low * shares[0][..., these, :], high * shares[1][..., these, :]
        scale, first, last = format.find_codes(*ends)
        ratios = groups / scale if offset is None else groups / scale + span.cut(offset)
        codes = _Round.apply(ratios).clamp_min(first).clamp_max(last)
        parts.append((codes * scale).flatten(-2))
        first_group = these.stop
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def count_groups(format: Grouped, in_features: int) -> int:
    """The groups of a row."""
    return sum(span.groups for span in format.spans(in_features))


Weights: TypeAlias = Mapping[str, Tensor]
"""By the parameters' names in the network, stored as those are."""


def store_in(block: Block, values: Mapping[str, Tensor]) -> Weights:
    """Weights (O, I) or (E, O, I) of layers by the layers' names, in the block's dtype, and other
    parameters by their own."""
    stored = {}
    for name, each in values.items():
        if matrix := block.layers.get(name):
            stored[matrix.parameter_name] = matrix.layout.store(each.to(matrix.stored.dtype))
        else:
            stored[name] = each
    return stored


def descend(block: Block, make: Callable[[], Weights], batches: Sequence[int]) -> float:
    """The loss over some batches; its gradients are added to those of the leaves behind `make()`,
    which gives the weights that the block has instead of its own.

    Raises ModelError, naming the block, where the loss is not finite.
    """
    with torch.enable_grad():
        made = make()
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in made.items()}
        count = sum(block.targets[batch].numel() for batch in batches)
        total = 0.0
        for batch in batches:
            loss = _sum_squares(block, leaves, batch) / count
            loss.backward()
            total += float(loss.detach())
        _check_finite(block, total)
        moved = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        if moved:  # of experts to which no token is sent there is none
            torch.autograd.backward([made[name] for name in moved], [*moved.values()])
    return total


@torch.no_grad()
def measure(block: Block, weights: Weights) -> float:
    """The loss over all batches. Raises ModelError as `descend`."""
    count = sum(target.numel() for target in block.targets)
    batches = range(len(block.targets))
    total = sum(float(_sum_squares(block, weights, batch)) for batch in batches) / count
    _check_finite(block, total)
    return total


def _sum_squares(block: Block, weights: Weights, batch: int) -> Tensor:
    given = block.run(block.inputs[batch], weights)
    return (given.float() - block.targets[batch].to(given.device).float()).square().sum()


def _check_finite(block: Block, loss: float) -> None:
    if not loss < float("inf"):
        raise ModelError(f"block {block.name}: its output error on the text has NaN or Inf")
