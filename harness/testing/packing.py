"""What the values of a layer take when they are packed: codes, and what each group has of its own.

A model holds values, not codes, so that the codes are found from them: `count_own_bits` looks how
the levels of a layer's groups differ, and says the least that tells them apart, of what formats
store: scales, zero points, minima. So it is a lower bound, and exact for formats of one scale, of a
scale and a zero point, and of two scales. Not here: what a method says of its bits (`Quantized`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from harness.models import Model, Quantized, matrices

_GROUPS = 512  # of a layer that are looked at
_EXACT = 1e-3  # of a step: values in float32 are off by less
_E2M1 = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # sizes of a 4-bit float, of which no group has all


def find_uncounted(model: Model) -> str | None:
    """In words, of a layer whose groups have more of their own than its bits count; None where none
    is found."""
    for name, record, weight in _list_rounded(model):
        learned = model.format_parameters.get(name, {})
        packed = record.bits + sum(8 * each.nbytes for each in learned.values()) / weight.numel()
        if packed > record.bits_per_weight + 1e-6:
            return (
                f"layer {name}: codes and parameters take {packed:g} bits a weight, and "
                f"bits_per_weight is {record.bits_per_weight:g}"
            )
        width = min(record.group_size or weight.shape[-1], weight.shape[-1])
        counted = record.bits_per_weight - record.bits  # a weight, beside its code
        counted *= weight.shape[-1] / -(-weight.shape[-1] // width)
        for rows in weight if weight.dim() == 3 else (weight,):
            own = count_own_bits(rows, record.group_size, record.levels)
            if own.bits > counted + 0.05:
                return (
                    f"layer {name}: its groups have levels of their own, {own.words} a group, "
                    f"and bits_per_weight is {record.bits_per_weight:g}: count scales and zero "
                    "points too"
                )
    return None


def find_inexact(model: Model) -> str | None:
    """In words, of a layer whose levels are of no form that is known here, so that what its groups
    have of their own is found as a lower bound alone; None where there is no such layer.

    Of layers with trained parameters these are what the groups have.
    """
    for name, record, weight in _list_rounded(model):
        for rows in weight if weight.dim() == 3 else (weight,):
            own = count_own_bits(rows, record.group_size, record.levels)
            if not own.exact and name not in model.format_parameters:
                return (
                    f"layer {name}: its groups have levels of a form that is not known here, "
                    f"{own.words} a group; its {record.bits_per_weight:g} bits a weight count that"
                )
    return None


def _list_rounded(model: Model) -> Iterator[tuple[str, Quantized, Tensor]]:
    """The layers of the blocks that were rounded, each with its weight, (O, I) or (E, O, I)."""
    layers = matrices(model.network)
    for name, record in model.quantized.items():
        if record.bits < 16 and name in layers:
            yield name, record, layers[name].weight


class OwnBits(NamedTuple):
    """What each group has beside its codes, in bits and in words; else at least that."""

    bits: int
    words: str
    exact: bool = True


def count_own_bits(weight: Tensor, group_size: int, levels: int) -> OwnBits:
    """The fewest bits of a group beside its codes: (O, I), in groups along I -> bits, and what.

    levels: how many values a group may have. Raises no error: what fits no known form of levels is
    taken for one number.
    """
    rows = weight.detach().double()
    if len(rows.unique()) <= levels:
        return OwnBits(0, "nothing")
    width = min(group_size or rows.shape[1], rows.shape[1])
    whole = rows.shape[1] // width * width
    groups = rows[:, :whole].reshape(-1, width)[:_GROUPS]
    groups = groups[groups.amax(-1) > groups.amin(-1)]  # else one level, which says nothing
    if not len(groups):
        return OwnBits(16, "a scale")
    tops = groups.abs().amax(-1, keepdim=True)
    scale = 8 if _fit_bytes(tops[:, 0]) else 16
    signed = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))  # a scale may be negative
    if min(_count_values(groups / tops), _count_values(groups / signed)) <= levels:
        return OwnBits(scale, f"a scale of {scale} bits")
    if levels == 2 * len(_E2M1) + 2 and _fit_table(groups / tops, _E2M1):
        return OwnBits(scale, f"a scale of {scale} bits")
    if (codes := _find_codes(groups, levels)) is not None:
        if int(codes.amax() - codes.amin()) < levels:
            return OwnBits(scale, f"a scale of {scale} bits")
        zero = (levels - 1).bit_length()
        return OwnBits(scale + zero, f"a scale of {scale} bits and a zero point of {zero}")
    if _find_codes(groups - groups.amin(-1, keepdim=True), levels) is not None:
        return OwnBits(2 * scale, f"a scale and a minimum of {scale} bits")
    high, low = groups.clamp(min=0), groups.clamp(max=0)
    sides = [each / each.abs().amax(-1, keepdim=True).clamp(min=1e-300) for each in (high, low)]
    if _count_values(torch.cat(sides)) <= levels:
        return OwnBits(2 * scale, f"two scales of {scale} bits")
    return OwnBits(scale, f"at least a scale of {scale} bits", exact=False)


def _count_values(groups: Tensor) -> int:
    """How many values there are, but for the rounding of float32."""
    ordered = groups.flatten().sort().values
    return int((ordered.diff() > 1e-5).sum()) + 1


def _fit_table(groups: Tensor, sizes: tuple[float, ...]) -> bool:
    """Whether groups, (n, g) from -1 to 1, are 0 and `sizes` of either sign, times a scale each,
    whichever of them is a group's largest."""
    ratios, table = groups.abs(), torch.tensor((0.0, *sizes), dtype=groups.dtype)
    fits = torch.zeros(len(groups), dtype=torch.bool, device=groups.device)
    for largest in sizes:
        steps = (ratios * largest)[..., None] - table.to(groups.device)
        fits |= (steps.abs().amin(-1) < _EXACT).all(-1)
    return bool(fits.all())


def _find_codes(groups: Tensor, levels: int) -> Tensor | None:
    """Groups as multiples of a step of their own, fewer than `levels` apart; None where some are
    not. The largest step that does: (n, g) -> (n, g)."""
    found = torch.zeros_like(groups)
    open_ = torch.ones(len(groups), dtype=torch.bool, device=groups.device)
    smallest = groups.abs().masked_fill(groups == 0, torch.inf).amin(-1, keepdim=True)
    for parts in range(1, levels):
        multiples = groups * (parts / smallest)
        codes = multiples.round()
        even = ((multiples - codes).abs() < _EXACT).all(-1)
        fits = open_ & even & (codes.amax(-1) - codes.amin(-1) < levels)
        found[fits] = codes[fits]
        open_ &= ~fits
        if not bool(open_.any()):
            return found
    return None


def _fit_bytes(scales: Tensor) -> bool:
    """Whether floats of 8 bits, three of them digits, hold all scales but for a common factor."""
    for first in range(8, 16):
        digits, _ = torch.frexp(scales * (first / float(scales[0])))
        if bool(((digits * 16).round() - digits * 16).abs().max() < 1e-4):
            return True
    return False
