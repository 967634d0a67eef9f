"""Inits: what is done to the weights before training and rounding.

    start = Clip().build(base, IntAsym(bits=2))         # Stage[Model] -> Stage[Model]

`Clip` is two stages: a search that is stored, small, and shared by every cell that asks for the
same format on the same model, and a clamping of the weights that is redone in memory.

In this file: the inits as components of a recipe, their stages, and `Ranges`, the value of a
search. Not here: the search itself (`clip`), scaling (`awq`), rounding (`formats`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.core.checked import Count
from harness.core.component import Component
from harness.core.errors import FormatError, ModelError
from harness.core.stage import Input, Resources, Stage, value
from harness.data import Tokens, calibration
from harness.models import Matrix, Model, host_gib, matrices
from methods.quantization import clip
from methods.quantization.by_layer import group_by_format, has_levels
from methods.quantization.formats import Format, Grouped
from methods.quantization.observing import observe_by_format
from methods.quantization.walking import Block, sequentially


@dataclass(frozen=True)
class Init(Component, family="init"):
    """How a model is prepared before it is trained and rounded.

    `turns_states`: whether its hidden states are no longer those of the base.
    """

    turns_states: ClassVar[bool] = False

    @abstractmethod
    def build(self, base: Stage[Model], format: Format) -> Stage[Model]:
        """The graph from `base` to the prepared model, whose weights are not rounded yet."""

    def origin(self, base: Stage[Model], format: Format) -> Stage[Model]:
        """The model whose weights the prepared ones stand for: `base`, unless they are rescaled."""
        return base


@dataclass(frozen=True)
class NoInit(Init):
    """The weights as they are."""

    name = "none"

    def build(self, base: Stage[Model], format: Format) -> Stage[Model]:
        return base


@dataclass(frozen=True)
class Clip(Init):
    """BitDistiller's asymmetric clip search, on `sequences` blocks of `length` tokens of `text`.

    Max and min of a group shrink independently, each to 1 - i/grid of its size for i/grid < shrink;
    the output error is measured on `tokens` of the tokens. A format without ranges leaves nothing
    to clip.
    """

    name = "clip"
    # Steps that a range may shrink by, of its whole size.
    grid: Annotated[Count, Field(le=10_000)] = 20
    # The most that is taken from a range, as a share.
    shrink: Annotated[float, Field(gt=0, le=1)] = 0.5
    text: str = "pile-val"  # calibration text
    sequences: Count = 128  # of calibration text
    length: Count = 512  # of each, in tokens
    tokens: Count = 512  # of these, on which errors are measured

    def build(self, base: Stage[Model], format: Format) -> Stage[Model]:
        if not has_levels(format):
            return base
        for kind in format.kinds():
            if isinstance(kind, Grouped) and kind.unsearchable:
                raise FormatError(
                    f"init {self.name!r} searches ranges, and {kind.name!r} {kind.unsearchable}"
                )
        tokens = calibration(base, self.text, self.sequences, self.length)
        steps = max(1, math.floor(self.shrink * self.grid + 1e-9))  # 0.55 * 20 is below 11 or not
        ranges = ClipSearch(base, tokens, format, self.grid, steps, self.tokens)
        return Clipped(base, ranges, format)


@dataclass(frozen=True)
class Ranges:
    """The ranges found by a search, by layer; layers that were left out are missing.

    low, high: (O, G), of experts (E, O, G), in the weight's dtype, low <= 0 <= high. errors: the
    squared output error of each layer on the sampled tokens, with the full ranges and with these.
    """

    low: dict[str, Tensor]
    high: dict[str, Tensor]
    errors: dict[str, tuple[float, float]]

    def save(self, folder: Path) -> dict[str, Any]:
        tensors = {f"{name}.low": tensor.contiguous() for name, tensor in self.low.items()}
        tensors |= {f"{name}.high": tensor.contiguous() for name, tensor in self.high.items()}
        save_file(tensors, folder / "ranges.safetensors")
        return {"errors": {name: list(pair) for name, pair in self.errors.items()}}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Ranges:
        tensors = load_file(folder / "ranges.safetensors")
        errors = {name: (before, after) for name, (before, after) in facts["errors"].items()}
        low = {name: tensors[f"{name}.low"] for name in errors}
        return cls(low, {name: tensors[f"{name}.high"] for name in errors}, errors)


@dataclass(frozen=True)
class ClipSearch(Stage[Ranges]):
    """The best range of every group of every layer that is searched (see `clip.find_searchable`).

    Holds, beside the model, what its layers see: g x g numbers a group in float64, 8 * g bytes an
    input channel and layer (4 * tokens where the tokens are fewer than a group is wide).
    """

    kind: ClassVar[str] = "clip-search"
    on_host: ClassVar[bool] = True
    model: Input[Model]
    calibration: Input[Tokens]
    format: Format
    grid: int
    steps: int
    tokens: int

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.model, 16.0), hours=1.0)

    def run(self, work: Path) -> Ranges:
        model = value(self.model).fork()
        model.network.eval()
        searchable = clip.find_searchable(model)
        searched = group_by_format(self.format, searchable).values()
        layers = {name: searchable[name] for names in searched for name in names}
        for name, matrix in layers.items():
            self.format.of(name).check(name, matrix.in_features)
            if not bool(matrix.stored.isfinite().all()):
                raise ModelError(f"layer {name}: its weight has NaN or Inf")
        found: dict[str, Tensor] = {}
        tokens = value(self.calibration)
        for block in sequentially(model, tokens, work, quantized_inputs=False):
            found |= block.once("ranges", partial(self._search, layers))
        return Ranges(
            {name: found[f"{name}.low"] for name in layers},
            {name: found[f"{name}.high"] for name in layers},
            {name: read_errors(found[f"{name}.errors"]) for name in layers},
        )

    def _search(self, searched: Mapping[str, Matrix], block: Block) -> dict[str, Tensor]:
        """The ranges of a block's layers, and the sum of their errors: `<layer>.low` and so on."""
        layers = {name: searched[name] for name in block.layers if name in searched}
        found: dict[str, dict[int, tuple[Tensor, Tensor, float, float]]] = {}
        for format, seen in observe_by_format(block, layers, self.format, self.tokens):
            roots = seen.roots()
            for name in seen.layers:
                weight = layers[name].weight
                best = clip.search(
                    weight if seen.expert is None else weight[seen.expert],
                    roots,
                    format,
                    self.grid,
                    self.steps,
                )
                if not math.isfinite(best[2]):
                    raise ModelError(f"layer {name}: its output error on the text overflows")
                found.setdefault(name, {})[seen.expert or 0] = best
        tensors = {}
        for name, parts in found.items():
            lows, highs, before, after = zip(*(parts[e] for e in sorted(parts)), strict=True)
            stacked = layers[name].experts > 0
            tensors[f"{name}.low"] = torch.stack(lows) if stacked else lows[0]
            tensors[f"{name}.high"] = torch.stack(highs) if stacked else highs[0]
            errors = [math.fsum(before), math.fsum(after)]
            tensors[f"{name}.errors"] = torch.tensor(errors, dtype=torch.float64)
        return tensors


def read_errors(pair: Tensor) -> tuple[float, float]:
    """The error before and after, as a search keeps them: (2,) float64."""
    before, after = pair.tolist()
    return before, after


@dataclass(frozen=True)
class Clipped(Stage[Model]):
    """The model with its weights clamped to the ranges found. Latent: nothing is rounded yet."""

    kind: ClassVar[str] = "clipped"
    stored: ClassVar[bool] = False
    model: Input[Model]
    ranges: Input[Ranges]
    format: Format

    def run(self, work: Path) -> Model:
        model, ranges = value(self.model).fork(latent=True), value(self.ranges)
        layers = matrices(model.network)
        for name in ranges.low:
            format = self.format.of(name)
            assert isinstance(format, Grouped)
            weight = layers[name].weight.detach()
            low, high = (side[name].to(weight.device) for side in (ranges.low, ranges.high))
            layers[name].replace(clip.clamp(weight, format, low, high))
        return model
