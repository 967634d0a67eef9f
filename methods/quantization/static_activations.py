"""Activations rounded within ranges that were found once, on calibration text.

    attach: [{name: static-activations, bits: 8, text: wikitext2}]

Where `activations` finds a range for each token as it comes, here a layer has one, so that no
reduction is left to do as the model runs. The ranges are found on the model as it is attached to:
prepared (`init`), not yet trained or rounded, and doing what stands before in `attach`. They are
stored with the model. In this file: the attachment, and the stage that finds its ranges. Not here:
ranges of a token (`activations`), the walk (`walking`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.checked import Count
from harness.core.errors import BitgridError, ModelError, SettingError, nearest
from harness.core.stage import Input, Resources, Stage, value
from harness.data import Tokens, calibration
from harness.models import (
    Attachment,
    Matrix,
    Model,
    change_inputs,
    find_pretrained,
    host_gib,
    matrices,
)
from methods.quantization.gradients import pass_gradient
from methods.quantization.readings import Reading
from methods.quantization.walking import Block, sequentially

End: TypeAlias = Annotated[float, Field(ge=-1e300, le=1e300)]  # of a range
AT_ONCE = 2**22  # values that are counted together


@dataclass(frozen=True)
class StaticActivations(Attachment):
    """What matrices of the blocks read, as integers within one range a layer, found on `sequences`
    blocks of `length` tokens of `text`.

    A range holds `percentile` of the values from below and as many from above, and is widened to 0;
    at 100 it holds all. Values beyond it are clamped. The gradient of those is 0, and that of the
    others passes unchanged, as of a clipped activation (PACT, arXiv 1805.06085, section 3).
    """

    name = "static-activations"
    bits: Annotated[int, Field(ge=2, le=8)] = 8  # of what matrices read
    symmetric: bool = True  # without a zero point
    # Of the values that a layer reads, what its range holds from either side, in percent.
    percentile: Annotated[float, Field(ge=90, le=100)] = 100.0
    text: str | None = None  # calibration text, without which there are no ranges
    sequences: Count = 128  # of calibration text
    length: Count = 512  # of each, in tokens
    # By layer, as they were found; a grid gives none.
    ranges: Mapping[str, tuple[End, End]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for layer, (low, high) in self.ranges.items():
            if not low <= 0 <= high or low == high:
                raise SettingError(f"{layer}: {low:g} to {high:g} is no range around 0", "ranges")

    @property
    def label(self) -> str:
        share = "" if self.percentile == 100 else f"{self.percentile:g}"
        return f"A{self.bits}{'' if self.symmetric else 'asym-'}static{share}"

    def observe(self, model: Stage[Any]) -> Stage[Any]:
        """Raises BitgridError where no text is named, and where ranges are."""
        if self.ranges:
            raise BitgridError(
                f"attachment {self.name!r}: ranges are found on text, and never given; leave out "
                "'ranges'"
            )
        if self.text is None:
            raise BitgridError(
                f"attachment {self.name!r} finds its ranges on calibration text, and none is named;"
                f" give it a 'text' ({{name: {self.name}, text: wikitext2}}), or use 'activations'"
            )
        base = find_pretrained(model) or model  # for its tokenizer: all inits share the tokens
        tokens = calibration(base, self.text, self.sequences, self.length)
        return InputRanges(model, tokens, self.percentile)

    def told(self, observed: Any) -> StaticActivations:
        return replace(self, ranges={name: (low, high) for name, (low, high) in observed.items()})

    def rehearsed(self, network: PreTrainedModel) -> StaticActivations:
        return self.told(dict.fromkeys(matrices(network), (-1.0, 1.0)))

    def attach(self, network: PreTrainedModel) -> None:
        """Raises ModelError where a layer has no range, and where a range has no layer."""
        layers = matrices(network)
        for name in layers:
            if name not in self.ranges:
                raise ModelError(f"attachment {self.name!r}: layer {name} has no range")
        for name in self.ranges:
            if name not in layers:
                raise ModelError(
                    f"attachment {self.name!r} has a range of layer {name!r}, which the model has "
                    f"not; {nearest(name, layers)}"
                )
        change_inputs(self, network, layers.values())

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        low, high = self.ranges[layer]
        last = 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1
        scale = (max(-low, high) if self.symmetric else high - low) / last
        zero = 0 if self.symmetric else round(-low / scale)
        first = -last if self.symmetric else 0
        rows = read if read.dtype == torch.float64 else read.float()
        inside = rows.clamp((first - zero) * scale, (last - zero) * scale)
        values = (inside / scale).round() * scale
        # What has overflowed is not hidden by a range.
        values = values.where(rows.isfinite(), torch.nan)
        return pass_gradient(values, inside).to(read.dtype)


@dataclass(frozen=True)
class InputRanges(Stage[dict]):
    """What each matrix of the blocks reads on the calibration text: layer -> [low, high].

    low <= 0 <= high, of which one is not 0. percentile: see `StaticActivations`; below 100 values
    count as their nearest in bfloat16. A layer that stands in several blocks has the widest of
    their ranges. Raises ModelError, naming the layer, where it reads NaN or Inf, and where there is
    no range: where it reads nothing (no token was sent to it), or nothing but zeros.
    """

    kind: ClassVar[str] = "input-ranges"
    on_host: ClassVar[bool] = True
    model: Input[Model]
    calibration: Input[Tokens]
    percentile: float

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model, 16.0), hours=1.0)

    def run(self, work: Path) -> dict[str, Any]:
        model, tokens = value(self.model).fork(), value(self.calibration)
        layers, found = matrices(model.network), dict[str, Tensor]()
        for block in sequentially(model, tokens, work):
            for name, ends in block.once("ranges", partial(self._find, layers)).items():
                found[name] = _join(ends, found.get(name))
        for name in layers:
            self._check(name, found.get(name), tokens.ids.numel())
        return {name: found[name].tolist() for name in layers}

    def _find(self, layers: Mapping[str, Matrix], block: Block) -> dict[str, Tensor]:
        """Both ends of what layers read in a block: (2,) float64. All layers are watched: one may
        be called in another block than it is named after."""
        seen: dict[Reading, _Seen] = {}

        def see(reading: Reading, rows: Tensor) -> None:
            if rows.numel():
                seen.setdefault(reading, _Seen(self.percentile < 100)).add(rows)

        block.observe(see, layers)
        found: dict[str, Tensor] = {}
        for reading, each in seen.items():
            ends = each.find_ends(self.percentile)
            for name in reading.layers:
                found[name] = _join(ends, found.get(name))
        return found

    def _check(self, layer: str, ends: Tensor | None, tokens: int) -> None:
        if ends is not None and not bool(ends.isfinite().all()):
            raise ModelError(f"layer {layer}: its input has NaN or Inf on the calibration text")
        if ends is None or not bool(ends.any()):
            what = "nothing" if ends is None else "only zeros"
            if ends is not None and self.percentile < 100:
                what += f" but for less than {100 - self.percentile:g} %"
            raise ModelError(
                f"layer {layer} reads {what} on the calibration text, {tokens} tokens, so that it "
                "has no range; take more text ('sequences'), or 'activations', a range a token"
            )


class _Seen:
    """What a reading has had so far. `counts`: of each value of bfloat16, where that is asked."""

    def __init__(self, counted: bool) -> None:
        self._ends: Tensor | None = None
        self._counts: Tensor | None = None
        self._counted = counted

    def add(self, rows: Tensor) -> None:
        """(n, I), n > 0, of any type."""
        self._ends = _join(torch.stack((rows.amin(), rows.amax())).double(), self._ends)
        for part in rows.flatten().split(AT_ONCE) if self._counted else ():
            counts = torch.bincount(_number(part), minlength=2**16)
            self._counts = counts if self._counts is None else self._counts + counts

    def find_ends(self, percentile: float) -> Tensor:
        """(2,) float64: at most 0, and at least 0; NaN and Inf where there were any."""
        assert self._ends is not None
        ends = self._ends.cpu()
        if self._counts is not None and bool(ends.isfinite().all()):
            counts = self._counts.cpu()
            rank = math.ceil(int(counts.sum()) * percentile / 100)
            below, above = counts.cumsum(0), counts.flip(0).cumsum(0)
            high = int(torch.searchsorted(below, rank)) - 2**15
            low = 2**15 - 1 - int(torch.searchsorted(above, rank))
            ends = torch.tensor([_read(low), _read(high)], dtype=torch.float64)
        return torch.stack((ends[0].clamp(max=0), ends[1].clamp(min=0)))


def _join(one: Tensor, other: Tensor | None) -> Tensor:
    """The range that holds both, (2,) each; NaN where there is one."""
    if other is None:
        return one
    return torch.stack((torch.minimum(one, other)[0], torch.maximum(one, other)[1]))


def _number(values: Tensor) -> Tensor:
    """Which value of bfloat16 is nearest to each, counted from the least: 0 to 65535, in order of
    size."""
    bits = values.bfloat16().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits) + 2**15


def _read(number: int) -> float:
    """The value of bfloat16 with this number, counted from 0."""
    bits = torch.tensor(abs(number), dtype=torch.int16)
    return math.copysign(float(bits.view(torch.bfloat16)), number)
