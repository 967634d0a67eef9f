"""Formats with trained parameters: step sizes, ranges, whatever a group's levels are made of.

    start = format.parameters(weight)                       # {"step": (O, G, 1) float16}
    values = format.quantize_with_gradient(weight, *start.values())
    values = format.quantize_with(weight, start)            # the same, without gradient

Parameters have rows first and groups second, so that processes that train together share them as
they share rows. Training moves them in float32, and rounds with them as they are stored: what is
evaluated are the very values that the last step computed with. They are saved with the model and
counted in its bits. Gradients are those of `quantize_groups`, by autograd, computed anew some rows
at a time: nothing is kept between forward and backward but references.

Not here: what moves them (`methods.training.masters`), formats of the kind (`lsq`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from harness.core.errors import FormatError
from harness.core.stage import added
from methods.quantization.formats import Format, Grouped

# Weights that are worked on together: so few that a CPU's cache holds all temporaries.
_AT_ONCE = {"cpu": 2**17, "cuda": 2**26}


@dataclass(frozen=True)
class Learned(Grouped):
    """A format whose groups have trained parameters. Subclasses are dataclasses with these two.

    `gradient` leaves nothing to choose: it is what autograd makes of `quantize_groups`.
    """

    # How gradients pass: as `quantize_groups` says, to parameters too.
    gradient: Literal["own"] = added("own")  # type: ignore[assignment]

    needs_training: ClassVar[bool] = True
    # Where parameters alone are trained: whether codes stay (`encode`, `decode`), and not weights,
    # which are rounded anew at each step.
    keeps_codes: ClassVar[bool] = False

    @abstractmethod
    def start_parameters(self, groups: Tensor) -> dict[str, Tensor]:
        """Where training starts: (..., g) float32 -> (..., k) each, of each group alone.

        They are stored, and counted, in the type that they are given in: a floating one.
        """

    @abstractmethod
    def quantize_groups(self, groups: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The values (..., g) of weights (..., g), given parameters (..., k); all float32.

        Differentiable, in both: see `pass_gradient`. No write into what is given.
        """

    def encode(self, weight: Tensor, *parameters: Tensor) -> Tensor:
        """The codes (O, I) int8 of a weight (O, I), with parameters in the order of theirs."""
        raise NotImplementedError(f"{type(self).__name__} keeps no codes")

    def decode(self, codes: Tensor, *parameters: Tensor) -> Tensor:
        """The values (O, I) float32 of codes, as `quantize_with` has them; differentiable in the
        parameters."""
        raise NotImplementedError(f"{type(self).__name__} keeps no codes")

    def for_rounding(self) -> Learned:
        return self

    def parameters(self, weight: Tensor) -> dict[str, Tensor]:
        """Where training starts for a weight (O, I): (O, G, k) each, in the type of its storage.

        Of experts (E, O, I): (E, O, G, k). Raises FormatError for other shapes and types.
        """
        spans = self.spans(weight.shape[-1])
        parts = [self.start_parameters(span.cut(weight.detach()).float()) for span in spans]
        for span, part in zip(spans, parts, strict=True):
            for name, tensor in part.items():
                rows = (*weight.shape[:-1], span.groups)
                if tensor.shape[:-1] != rows or not tensor.is_floating_point():
                    raise FormatError(
                        f"{self.name}: parameter {name!r} of {rows} groups is {tensor.dtype} "
                        f"{tuple(tensor.shape)}; it should be {(*rows, 'k')} in a floating type"
                    )
        return {name: torch.cat([part[name] for part in parts], -2) for name in parts[0]}

    def store(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters in the types of their storage, never Inf."""
        types = _list_stored(self)
        if types.keys() != parameters.keys():
            raise FormatError(
                f"{self.name} has parameters {', '.join(types)}, and was given "
                f"{', '.join(parameters) or 'none'}"
            )
        return {
            name: parameters[name].clamp(torch.finfo(kind).min, torch.finfo(kind).max).to(kind)
            for name, (kind, _) in types.items()
        }

    def name_parameters(self, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
        """Parameters by name, given in the order of `parameters`."""
        return dict(zip(_list_stored(self), parameters, strict=True))

    def overhead(self) -> int:
        return sum(8 * kind.itemsize * count for kind, count in _list_stored(self).values())

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """What clamped weights get with the parameters that training would start from."""
        clamped = torch.minimum(torch.maximum(groups, low), high)
        start = self.start_parameters(clamped)
        return self.quantize_groups(clamped, {name: each.float() for name, each in start.items()})

    @torch.no_grad()
    def quantize_with(self, weight: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        """The values that these parameters (O, G, k) give, as they are stored: (O, I) -> (O, I)."""
        values = torch.empty_like(weight)
        for (groups, out), kept in self._cut([weight, values], self.store(parameters)):
            part = {name: each.float() for name, each in kept.items()}
            out.copy_(self.quantize_groups(groups.float(), part))
        return values

    def quantize_with_gradient(self, weight: Tensor, *parameters: Tensor) -> Tensor:
        """`quantize_with` exactly, differentiable in the weight and in parameters, which stand in
        the order of `parameters`; without any, with those that training starts from."""
        given = parameters or tuple(self.parameters(weight).values())
        result: Tensor = _Quantize.apply(weight, self, *given)
        return result

    def _cut(
        self, weights: list[Tensor], parameters: Mapping[str, Tensor]
    ) -> Iterator[tuple[list[Tensor], dict[str, Tensor]]]:
        """Some rows of weights (O, I) as (n, G, g), with their parameters (n, G, k); views."""
        width, first = weights[0].shape[-1], 0
        rows = max(1, _AT_ONCE.get(weights[0].device.type, _AT_ONCE["cuda"]) // width)
        for span in self.spans(width):
            for start in range(0, len(weights[0]), rows):
                part = slice(start, start + rows)
                kept = {n: p[part, first : first + span.groups] for n, p in parameters.items()}
                yield [span.cut(each)[part] for each in weights], kept
            first += span.groups

    def pull_back_with(
        self, weight: Tensor, parameters: Mapping[str, Tensor], gradient: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Backward through `quantize_with`: the gradients of the weight and of each parameter.

        Raises FormatError where `quantize_groups` lets none pass.
        """
        total = torch.empty_like(gradient, dtype=torch.float32)
        sums = {name: torch.empty_like(each) for name, each in parameters.items()}
        kept = self.store(parameters)
        merged = kept | {f"to {name}": each for name, each in sums.items()}
        for (groups, slopes, out), part in self._cut([weight, gradient, total], merged):
            leaf = groups.detach().float().requires_grad_()
            leaves = {name: part[name].detach().float().requires_grad_() for name in kept}
            with torch.enable_grad():
                values = self.quantize_groups(leaf, leaves)
            if not values.requires_grad:
                raise FormatError(
                    f"{self.name}: no gradient passes `quantize_groups`; see pass_gradient"
                )
            found = torch.autograd.grad(
                values, [leaf, *leaves.values()], slopes.float(), materialize_grads=True
            )
            out.copy_(found[0])
            for name, each in zip(leaves, found[1:], strict=True):
                part[f"to {name}"].copy_(each)
        return total.to(gradient.dtype), sums


class _Quantize(torch.autograd.Function):
    """`Learned.quantize_with`, and its gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, format: Learned, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(weight, *parameters)
        ctx.format = format
        return format.quantize_with(weight, format.name_parameters(parameters))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, ...]:
        weight, *parameters = ctx.saved_tensors
        named = ctx.format.name_parameters(parameters)
        to_weight, sums = ctx.format.pull_back_with(weight, named, gradients[0])
        return to_weight, None, *sums.values()


@cache
def _list_stored(format: Learned) -> dict[str, tuple[torch.dtype, int]]:
    """Of each parameter the type that it is stored in, and how many numbers a group has."""
    start = format.start_parameters(torch.zeros(1, 1, format.group_size or 1))
    return {name: (each.dtype, each.shape[-1]) for name, each in start.items()}


def is_learned(format: Format) -> bool:
    """Whether any layer has trained parameters."""
    return any(isinstance(kind, Learned) for kind in format.kinds())
