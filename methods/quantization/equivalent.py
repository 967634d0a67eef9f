"""Channels between two operations of a block, scaled and shifted so that the block computes the
same, but rounds otherwise.

    channels = find_channels(block, find_foldable(model))
    values = transform(block, channels)                 # differentiable in scales and shifts

X W' + B = ((X - d) / s) (W s)' + (B + W d): whatever writes X gives it shifted by d and divided by
s, and the layers that read it make up for both (OmniQuant, arXiv 2308.13137, equation 3). Values
may be shifted since what attention weighs them with adds up to 1. Not here: where scales can be
folded (`awq`), who learns them (`omniquant`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.quantization.awq import list_values, rescale
from methods.quantization.readings import Reading
from methods.quantization.walking import Block

_BALANCE = 0.5  # SmoothQuant's alpha
_SMALLEST = 0.01  # of a scale


@dataclass(frozen=True)
class Channels:
    """The channels (I,) that an operation writes and some layers read; float32.

    shifts: None where the operation or one of the layers has no bias.
    """

    writer: str
    readers: Sequence[str]
    scales: Tensor
    shifts: Tensor | None

    def list_learnt(self) -> list[Tensor]:
        return [self.scales] if self.shifts is None else [self.scales, self.shifts]

    @torch.no_grad()
    def limit(self) -> None:
        """Keep scales away from 0."""
        self.scales.clamp_(min=_SMALLEST)


def find_channels(block: Block, foldable: Mapping[str, Sequence[str]]) -> list[Channels]:
    """Those of a block among `foldable`, but for what the last layer of a feed-forward module
    reads; where they start depends on the text.

    Shifts at the middle of a channel's range, as in Outlier Suppression+ (arXiv 2304.09145), scales
    at max|x|^a / max|w|^(1-a), x shifted, as in SmoothQuant (arXiv 2211.10438, equation 4).
    """
    inside = _find_inside(block, foldable)
    first = {names[0]: writer for writer, names in inside.items()}
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def see(reading: Reading, rows: Tensor) -> None:
        writer, least, most = first[reading.layers[0]], rows.amin(0), rows.amax(0)
        low, high = ranges.get(writer, (least, most))
        ranges[writer] = torch.minimum(low, least), torch.maximum(high, most)

    block.observe(see, {name: block.layers[name] for name in first})
    channels = []
    for writer, names in inside.items():
        low, high = (end.float() for end in ranges[writer])
        shifts = (low + high) / 2 if _have_biases(block, [writer, *names]) else None
        sizes = (high - low) / 2 if shifts is not None else torch.maximum(-low, high)
        weights = torch.cat([block.layers[name].weight.detach().float() for name in names])
        scales = sizes**_BALANCE / weights.abs().amax(0).clamp(min=1e-5) ** (1 - _BALANCE)
        each = Channels(writer, names, scales.clamp(min=_SMALLEST), shifts)
        for learnt in each.list_learnt():
            learnt.requires_grad_()
        channels.append(each)
    return channels


def _find_inside(block: Block, foldable: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Norms of the block and the layers that read them, values and the output projection."""
    values = dict(list_values(block.layers))
    return {
        writer: names
        for writer, names in foldable.items()
        if all(name in block.layers for name in names)
        and (writer in values or writer not in block.layers)
        and writer.startswith(f"{block.name}.")
    }


def _have_biases(block: Block, names: Sequence[str]) -> bool:
    modules = [block.network.get_submodule(name) for name in names]
    return all(isinstance(getattr(module, "bias", None), Tensor) for module in modules)


def transform(block: Block, channels: Sequence[Channels]) -> dict[str, Tensor]:
    """Whatever channels change: weights (O, I), float32, by the layers' names, and parameters of
    norms and biases by theirs, in their dtype."""
    factors, divisors, gained, lost = (dict[str, Tensor]() for _ in range(4))  # by operation
    for each in channels:
        divisors[each.writer] = each.scales
        factors |= dict.fromkeys(each.readers, each.scales)
        if each.shifts is not None:
            lost[each.writer] = each.shifts
            gained |= dict.fromkeys(each.readers, each.shifts)
    made: dict[str, Tensor] = {}
    for name in dict.fromkeys((*factors, *divisors)):
        divisor, matrix = divisors.get(name), block.layers.get(name)
        parts = dict(block.network.get_submodule(name).named_parameters(recurse=False))
        if matrix is not None:
            del parts["weight"]
            made[name] = rescale(matrix.weight.detach().float(), factors.get(name), divisor)
        for part, old in parts.items():
            new = old.detach().float()
            if part == "bias" and matrix is not None and name in gained:
                new = new + matrix.weight.detach().float() @ gained[name]
            if part == "bias" and name in lost:
                new = new - lost[name]
            if divisor is not None or name in gained:
                made[f"{name}.{part}"] = rescale(new, None, divisor).to(old.dtype)
    return made
