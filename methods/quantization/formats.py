"""Number formats: which values a quantised weight can take, and what they cost in bits.

    values = IntAsym(bits=2, group_size=128).quantize(weight)       # (O, I) -> (O, I)

A format cuts each row of a weight into groups, finds each group's range and rounds to the levels
that the range spans. `quantize` takes the range from the weights; `quantize_dequantize` takes a
given one, which is what a search for better ranges needs. Training (`quantize_with_gradient`) and
evaluation (`rounding.quantize_model`) both go through it, so they round alike: to nearest, halves
to even.

Scales are 16-bit floats and zero points integers, so every value is one that could be stored; the
tensors themselves hold the values, not the codes. Not here: a whole model (`rounding`), the search
for ranges (`clip`), what formats share of the backward pass (`gradients`), training, packing into
bytes.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor

from harness.core.component import Component
from harness.core.errors import FormatError
from harness.core.stage import added
from harness.models import Quantized
from methods.quantization.gradients import Gradient, Quantize, pull_codes, pull_larger, share_out
from methods.quantization.levels import round_to_normal
from methods.quantization.scales import pull_stored, store_scale
from methods.quantization.spans import Span, explain_misfit

Bits: TypeAlias = Annotated[int, Field(ge=1, le=16)]
Width: TypeAlias = Annotated[float, Field(ge=1, le=16)]  # `Bits`, or 1.58: see `Quantized.bits`
GroupSize: TypeAlias = Annotated[int, Field(ge=0, le=2**24)]


@dataclass(frozen=True)
class Format(Component, family="format"):
    """What the weights of a linear layer are rounded to."""

    by_row: ClassVar[bool] = True  # else a weight is rounded whole only, as one with its own scale

    @abstractmethod
    def quantize(self, weight: Tensor) -> Tensor:
        """The nearest values that the format can hold: (O, I) float -> (O, I), same dtype.

        Computed in float32, without gradient. Raises FormatError where the groups do not fit.
        """

    @abstractmethod
    def bits_per_weight(self, in_features: int) -> float:
        """Bits a weight costs in a layer of `in_features` inputs; scales and zero points
        counted."""

    @abstractmethod
    def describe(self, in_features: int) -> Quantized:
        """What a model records of a layer that holds this format."""

    @abstractmethod
    def check(self, layer: str, in_features: int) -> None:
        """Raise FormatError, naming the layer and what would fit it, where the groups do not."""

    def of(self, layer: str) -> Format:
        """The format of one layer, by its name: this one, unless it differs by layer."""
        return self

    def kinds(self) -> tuple[Format, ...]:
        """All that `of` may give."""
        return (self,)

    def of_end(self, name: str) -> Format | None:
        """The format of an embedding or a head, outside of the blocks; None: it stays as it is."""
        return None

    def check_names(self, layers: Collection[str], ends: Collection[str]) -> None:
        """Raise FormatError where it names a layer that a model has not, inside its blocks or at
        its ends."""

    def quantize_with_gradient(self, weight: Tensor) -> Tensor:
        """`quantize(weight)` exactly, through which gradients pass as `pull_back` says."""
        result: Tensor = Quantize.apply(weight, self)
        return result

    def quantize_into(self, weight: Tensor, place: Tensor) -> None:
        """Write `quantize(weight)` over `place` (O, I), of any floating dtype."""
        place.copy_(self.quantize(weight))

    def pull_back(self, weight: Tensor, gradient: Tensor, place: Tensor | None = None) -> Tensor:
        """The gradient of the weights, given that of their values: (O, I) each. Unchanged here.

        place: where it is written to, which may be `gradient` itself; None: where it can.
        """
        return gradient if place is None else place.copy_(gradient)

    def for_rounding(self) -> Format:
        """The format without what only training looks at: of stages that do not train, whose keys
        it would be in otherwise."""
        return self


@dataclass(frozen=True)
class FullPrecision(Format):
    """No rounding: the weights as they are, counted as 16 bits."""

    name = "none"

    def quantize(self, weight: Tensor) -> Tensor:
        return weight.detach()

    def bits_per_weight(self, in_features: int) -> float:
        return 16.0

    def describe(self, in_features: int) -> Quantized:
        return Quantized(self.name, 16, 0, 16.0)

    def check(self, layer: str, in_features: int) -> None:
        return None


@dataclass(frozen=True)
class Grouped(Format):
    """A format with one range a group of consecutive weights of a row.

    Subclasses are dataclasses with the fields `bits`, `group_size` (0: one group a row, called per
    channel), `tail` (True: a last group may be shorter) and `gradient`, by which training passes
    the rounding (`gradients`).
    """

    bits: Width  # of each weight's code
    group_size: GroupSize = 128  # weights that share a range; 0: a row
    tail: bool = False  # whether a row's last group may be shorter
    gradient: Gradient = added("identity")  # how training's gradient passes the rounding

    widths: ClassVar[tuple[float, ...]] = (2, 3, 4, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits not in self.widths:
            choices = ", ".join(map(str, self.widths))
            raise FormatError(f"{self.name} has no {self.bits:g}-bit form; bits: {choices}")
        if self.gradient == "through-range" and type(self).pull_range is Grouped.pull_range:
            raise FormatError(
                f"{self.name} does not say how a gradient passes through its range; "
                "gradient: identity"
            )

    @abstractmethod
    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """The values nearest to weights clamped to [low, high], on the levels of that range.

        groups (..., g), low <= 0 and high >= 0 (..., 1), all float32; returns (..., g), a new
        tensor. Never NaN for finite input, whatever the range, empty included.
        """

    def pull_range(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Backward through `quantize_dequantize`: the gradients of groups, low and high.

        gradient: that of the values, (..., g); all float32, in the shapes of `quantize_dequantize`.
        Codes move as their weights do; zero points do not move.
        """
        raise NotImplementedError

    @abstractmethod
    def overhead(self) -> int:
        """Bits a group costs beyond its weights' codes."""

    @property
    def unsearchable(self) -> str | None:
        """Why ranges cannot be searched for it: weights clamped to one have not its levels."""
        return None

    def fit(self, weight: Tensor) -> Grouped:
        """The format with what it takes from a whole weight (O, I); one that takes nothing."""
        return self

    def find_range(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """The range whose levels groups get: (..., g) float32 -> low, high (..., 1)."""
        return bounds(groups)

    @torch.no_grad()
    def quantize(self, weight: Tensor) -> Tensor:
        values = torch.empty_like(weight)
        self.quantize_into(weight, values)
        return values

    @torch.no_grad()
    def quantize_into(self, weight: Tensor, place: Tensor) -> None:
        format = self.fit(weight)
        for span in self.spans(weight.shape[-1]):
            for groups, values in span.cut_rows(weight, place):
                groups = groups.float()
                values.copy_(format.quantize_dequantize(groups, *format.find_range(groups)))

    @torch.no_grad()
    def pull_back(self, weight: Tensor, gradient: Tensor, place: Tensor | None = None) -> Tensor:
        """The gradient of the weights, given that of their values: (O, I) each.

        Through the range: max and min of a group are the weights that have them, which share what
        the range gets.
        """
        if self.gradient == "identity":
            return super().pull_back(weight, gradient, place)
        total, format = torch.empty_like(gradient) if place is None else place, self.fit(weight)
        for span in self.spans(weight.shape[-1]):
            for groups, values, result in span.cut_rows(weight, gradient, total):
                groups = groups.float()
                low, high = bounds(groups)
                passed, to_low, to_high = format.pull_range(groups, low, high, values.float())
                share_out(passed, groups, low, to_low)
                result.copy_(share_out(passed, groups, high, to_high))
        return total

    def for_rounding(self) -> Grouped:
        return dataclasses.replace(self, gradient="identity")

    def spans(self, in_features: int) -> list[Span]:
        """A row cut into equal groups and, where the format allows it, a shorter last one."""
        width = self.group_size or in_features
        grouped_features = in_features - in_features % width
        if grouped_features < in_features and not self.tail:
            raise FormatError(explain_misfit(width, in_features))
        candidates = [
            Span(0, grouped_features, width),
            Span(grouped_features, in_features, in_features - grouped_features),
        ]
        return [span for span in candidates if span.stop > span.start]

    def groups(self, in_features: int) -> list[slice]:
        """The input channels of each group of a row."""
        return [
            slice(start, start + span.width)
            for span in self.spans(in_features)
            for start in range(span.start, span.stop, span.width)
        ]

    def column_bounds(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The range of each weight's group: (O, I) -> low, high (O, I)."""
        parts = [self.find_range(weight[:, group]) for group in self.groups(weight.shape[1])]
        widths = [group.stop - group.start for group in self.groups(weight.shape[1])]
        low, high = (torch.cat(ends, 1) for ends in zip(*parts, strict=True))
        repeats = torch.tensor(widths, device=weight.device)
        return low.repeat_interleave(repeats, 1), high.repeat_interleave(repeats, 1)

    def bits_per_weight(self, in_features: int) -> float:
        groups = sum(span.groups for span in self.spans(in_features))
        return self.bits + self.overhead() * groups / in_features

    def describe(self, in_features: int) -> Quantized:
        per_weight = self.bits_per_weight(in_features)
        return Quantized(self.name, self.bits, self.group_size, per_weight)

    def check(self, layer: str, in_features: int) -> None:
        try:
            self.spans(in_features)
        except FormatError as error:
            raise FormatError(f"layer {layer}: {error}") from None


@dataclass(frozen=True)
class IntAsym(Grouped):
    """Integers with a scale and a zero point a group: 2^bits even steps from its min to its max.

    The range is widened to include 0, so that 0 is a level and the zero point one of the codes.
    """

    name = "int-asym"
    bits: Bits = 2

    def overhead(self) -> int:
        return 16 + self.bits

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        scale, first, last = self.find_codes(low, high)
        return _code(groups, scale, first, last).mul_(scale)

    def pull_range(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        passed, slope = pull_codes(groups, *self.find_codes(low, high), gradient)
        top = 2**self.bits - 1
        slope = pull_stored((high - low) / top, slope) / top
        return passed, -slope, slope

    def find_codes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scale, and the first and last code less the zero point, of each range."""
        top = 2**self.bits - 1
        scale = store_scale((high - low) / top)
        zero = (-low / scale).round().clamp(0, top)
        # Rounding is monotone, so clamping the codes of the weights equals rounding the clamped
        # weights and saves a pass; the inner clamp keeps a range whose scale was rounded to 16 bits
        # from reaching past its last code.
        first = torch.maximum((low / scale).round(), -zero)
        last = torch.minimum((high / scale).round(), top - zero)
        return scale, first, last


@dataclass(frozen=True)
class IntSym(Grouped):
    """Integers with a scale a group and no zero point: scale = max|w| / (2^(bits-1) - 1).

    The symmetric MinMax grid of LLM-QAT (arXiv 2305.17888, section 2.2): levels
    -(2^(bits-1) - 1) to 2^(bits-1) - 1, one fewer than the codes; at 2 bits -1, 0 and 1.
    """

    name = "int-sym"
    bits: Bits = 2

    def overhead(self) -> int:
        return 16

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        scale, first, last = self.find_codes(low, high)
        return _code(groups, scale, first, last).mul_(scale)

    def pull_range(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        passed, slope = pull_codes(groups, *self.find_codes(low, high), gradient)
        top = 2 ** (self.bits - 1) - 1
        slope = pull_stored(torch.maximum(high, -low) / top, slope) / top
        return passed, *pull_larger(low, high, slope)

    def find_codes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scale, and the first and last code, of each range."""
        top = 2 ** (self.bits - 1) - 1
        scale = store_scale(torch.maximum(high, -low) / top)
        first, last = (low / scale).round().clamp(min=-top), (high / scale).round().clamp(max=top)
        return scale, first, last


@dataclass(frozen=True)
class NF(Grouped):
    """Normal floats: levels at the quantiles of a normal distribution (QLoRA, arXiv 2305.14314).

    `asymmetric` gives a group two scales, its max for the levels above 0 and its |min| for those
    below (BitDistiller section 3.1); else one, its max|w|. A weight halfway between two levels goes
    to the one nearer 0.
    """

    name = "nf"
    bits: Bits = 3
    asymmetric: bool = True  # a scale for each sign

    widths: ClassVar[tuple[float, ...]] = (2, 3, 4)

    def overhead(self) -> int:
        return 32 if self.asymmetric else 16

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        below, above = map(store_scale, self._find_sizes(low, high))
        return round_to_normal(groups, low, high, below, above, self.bits)

    def pull_range(
        self, groups: Tensor, low: Tensor, high: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        sizes = self._find_sizes(low, high)
        # dv/ds = level - w/s = (v - w)/s on either side of 0; a weight beyond a given range is
        # clamped, so that its value is all that s moves.
        values = self.quantize_dequantize(groups, low, high).mul_(gradient)
        passed = groups.clamp_min(low).clamp_max_(high).eq_(groups).mul_(gradient)
        slopes = values.addcmul_(groups, passed, value=-1)
        up = torch.gt(groups, 0, out=torch.empty_like(groups)).mul_(slopes)
        sums = slopes.sub_(up).sum(-1, keepdim=True), up.sum(-1, keepdim=True)
        to_below, to_above = (
            pull_stored(size, total / store_scale(size))
            for size, total in zip(sizes, sums, strict=True)
        )
        if self.asymmetric:
            return passed, -to_below, to_above
        return passed, *pull_larger(low, high, to_below + to_above)

    def _find_sizes(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """What the levels below and above 0 are multiplied with, before it is stored."""
        most = torch.maximum(high, -low)
        return (-low, high) if self.asymmetric else (most, most)


def bounds(groups: Tensor) -> tuple[Tensor, Tensor]:
    """The range of each group, widened to include 0: (..., g) -> low, high (..., 1)."""
    # Not torch.aminmax: 15 times slower on a CPU.
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    return low.clamp(max=0), high.clamp(min=0)


def _code(groups: Tensor, scale: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Rounded multiples of `scale`, from `first` to `last`: (..., g), a new tensor."""
    # Not clamp_(first, last): with tensors for bounds 9 times slower on a CPU than these two.
    return (groups / scale).round_().clamp_min_(first).clamp_max_(last)
