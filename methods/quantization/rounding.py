"""A whole model rounded to a format: what is evaluated, never the weights that training moves.

    model = quantize_model(model, NF(bits=3))                       # to nearest
    rounded = Nearest().build(trained, base, NF(bits=3))            # Stage[Model] -> Stage[Model]

How a model is rounded is a part of a recipe: each weight to the nearest level, or block by block so
that the output on calibration text stays what it was: a layer's (`BlockRounding`), or whatever a
`WalkedRounding` looks at. Not here: the formats (`formats`), such roundings (`gptq`, `signround`,
`omniquant`), the rounding of a training step (`methods.training.masters`).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.core.checked import Count
from harness.core.component import Component
from harness.core.errors import FormatError, ModelError
from harness.core.seeds import Seeds, add_seeds, redraw
from harness.core.stage import Input, Resources, Stage, value
from harness.data import Tokens, calibration
from harness.models import Matrix, Model, find_ends, host_gib, matrices, states_gib
from harness.models.tensors import move_buffers, replace_parameters
from methods.quantization.by_layer import group_by_format, has_levels
from methods.quantization.formats import Format, FullPrecision, Grouped
from methods.quantization.learned import Learned
from methods.quantization.observing import sum_grams
from methods.quantization.readings import Reading
from methods.quantization.walking import Block, sequentially


@dataclass(frozen=True)
class Rounding(Component, family="rounding"):
    """How the weights of a prepared or trained model become levels of a format."""

    @abstractmethod
    def build(self, model: Stage[Model], base: Stage[Model], format: Format) -> Stage[Model]:
        """The rounded model, in the dtype of `base`."""

    def check(self, format: Format) -> None:
        """Raise FormatError for a format that it cannot round to."""


@dataclass(frozen=True)
class Nearest(Rounding):
    """Each weight to the nearest level of its group's range."""

    name = "nearest"

    def build(self, model: Stage[Model], base: Stage[Model], format: Format) -> Stage[Model]:
        return Round(model, base, format)


@dataclass(frozen=True)
class WalkedRounding(Rounding):
    """One that rounds block by block, on what the blocks before it give once they are rounded.

    It sees `sequences` blocks of `length` tokens of `text`. A subclass is a frozen dataclass with
    `round_block`.
    """

    text: str = "c4"  # calibration text
    sequences: Count = 128  # of calibration text
    length: Count = 2048  # of each, in tokens

    originals: ClassVar[bool] = False  # whether blocks come with what the unrounded model's give
    pairs: ClassVar[bool] = False  # and with what those are called with

    @abstractmethod
    def round_block(self, block: Block, format: Format) -> dict[str, Tensor]:
        """Values of `format` for the layers of a block, by name: (O, I), or (E, O, I). Other
        parameters that it changes are by their names in the network, and those of a format that
        has some by `layer:parameter`, as they are stored."""

    def bind(self, base: Model, format: Format) -> Callable[[Block], dict[str, Tensor]]:
        """`round_block` with what is the same for all blocks."""
        return partial(self.round_block, format=format)

    def count_at_once(self, length: int) -> int | None:
        """Sequences of `length` tokens in a batch of the walk; None: as many as it takes."""
        return None

    def build(self, model: Stage[Model], base: Stage[Model], format: Format) -> Stage[Model]:
        tokens = calibration(base, self.text, self.sequences, self.length)
        return RoundBlocks(model, base, tokens, format, self)

    def check(self, format: Format) -> None:
        if not has_levels(format):
            raise FormatError(
                f"rounding {self.name!r} needs a format with levels, and format {format.name!r} "
                "rounds nothing; rounding: nearest"
            )
        if learned := next((kind for kind in format.kinds() if isinstance(kind, Learned)), None):
            raise FormatError(
                f"rounding {self.name!r} takes ranges from the weights, and format "
                f"{learned.name!r} has trained parameters; rounding: nearest"
            )


@dataclass(frozen=True)
class BlockRounding(WalkedRounding):
    """One that rounds each weight by X'X of what it reads.

    `true_sequential`: within a block, too, layers see what those before them give once they are
    rounded. A subclass is a frozen dataclass with `round_weight`.
    """

    true_sequential: bool = False  # whether layers of a block see those before them rounded

    @abstractmethod
    def round_weight(self, weight: Tensor, gram: Tensor, format: Grouped) -> Tensor:
        """Values of `format` for a weight (O, I), given X'X (I, I) of what it reads; all float32.

        A row for which they change the output more than the nearest ones would gets those. May
        raise torch.linalg.LinAlgError where X'X has no full rank.
        """

    def observe(self, block: Block, layers: Sequence[str]) -> dict[Reading, Tensor]:
        """What `round_weight` is given of each reading: X'X."""
        return sum_grams(block, layers)

    def measure(self, weight: Tensor, values: Tensor, gram: Tensor) -> Tensor:
        """How much values in a weight's place move the output of each row: (O, I) -> (O,)."""
        change = values - weight
        return ((change @ gram) * change).sum(-1)

    def round_block(self, block: Block, format: Format) -> dict[str, Tensor]:
        turns = [list(block.layers)]
        if self.true_sequential:
            readings = block.observe(lambda reading, rows: None)
            turns = [list(names) for names in dict.fromkeys(tuple(r.layers) for r in readings)]
        for layers in turns:
            rounded = {name: block.layers[name].weight.clone() for name in layers}
            for reading, gram in self.observe(block, layers).items():
                for kind, names in _group(format, reading.layers):
                    # Layers that read the same and have one format are one with more rows.
                    parts = [
                        rounded[name] if reading.expert is None else rounded[name][reading.expert]
                        for name in names
                    ]
                    values = self._round_weight(names[0], torch.cat(parts).float(), gram, kind)
                    for part, new in zip(parts, values.split([*map(len, parts)]), strict=True):
                        part.copy_(new)
            for name, weight in rounded.items():
                block.layers[name].replace(weight)
        return {name: matrix.weight for name, matrix in block.layers.items()}

    @torch.no_grad()
    def _round_weight(self, name: str, weight: Tensor, gram: Tensor, format: Grouped) -> Tensor:
        if not bool(gram.isfinite().all()):
            raise ModelError(
                f"layer {name}: what it reads on the text has NaN or Inf, or overflows"
            )
        try:
            values = self.round_weight(weight, gram, format.fit(weight))
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise ModelError(f"layer {name}: rounding {self.name!r}: {error}") from error
        nearest = format.quantize(weight)
        worse = self.measure(weight, values, gram) > self.measure(weight, nearest, gram)
        return torch.where(worse[:, None], nearest, values)


def _group(format: Format, layers: Sequence[str]) -> Iterator[tuple[Grouped, list[str]]]:
    """Layers that are rounded as one weight, with their format."""
    for kind, names in group_by_format(format, layers).items():
        for together in [names] if kind.by_row else [[name] for name in names]:
            yield kind, together


@dataclass(frozen=True)
class RoundBlocks(Stage[Model]):
    """A model rounded block by block, in the base's dtype; it goes on after a kill at the block
    where it was."""

    kind: ClassVar[str] = "round-blocks"
    on_host: ClassVar[bool] = True
    model: Input[Model]
    base: Input[Model]
    calibration: Input[Tokens]
    format: Format
    rounding: WalkedRounding

    @property
    def resources(self) -> Resources:
        # The states before and behind a block, and those of the unrounded model that it needs.
        held = 2 + self.rounding.originals + self.rounding.pairs
        states = states_gib(self.model, held * self.rounding.sequences * self.rounding.length)
        memory = math.ceil(host_gib(self.model, 16.0) + states)
        return Resources(gpus=1, memory_gib=memory, hours=2.0)

    def run(self, work: Path) -> Model:
        """Raises FormatError, ModelError as `quantize_model`."""
        model = value(self.model).fork(latent=False, quantized={}, format_parameters={})
        inside, layers = matrices(model.network), find_rounded(model.network, self.format)
        for name, (matrix, format) in layers.items():
            _check(name, matrix.stored)
            format.check(name, matrix.in_features)
        ends = {name: each for name, each in layers.items() if name not in inside}
        _round_to_nearest(model, ends)  # first: what the blocks see comes from the embedding
        tokens, how = value(self.calibration), self.rounding
        at_once = how.count_at_once(tokens.ids.shape[1])
        compute = how.bind(value(self.base), self.format)
        walk = sequentially(
            model, tokens, work, originals=how.originals, at_once=at_once, pairs=how.pairs
        )
        for block in walk:
            for name, tensor in block.once("weights", compute).items():
                layer, _, own = name.partition(":")
                if own:
                    model.format_parameters.setdefault(layer, {})[own] = tensor
                    continue
                block.replace(name, tensor)
                if name in layers:
                    model.quantized[name] = layers[name][1].describe(tensor.shape[-1])
        dtype = value(self.base).network.dtype
        replace_parameters(
            model.network, lambda _, old: nn.Parameter(old.detach().to(dtype), requires_grad=False)
        )
        return model


@redraw.register
def _of_blocks(stage: RoundBlocks, seeds: Seeds) -> RoundBlocks:
    """A rounding that draws has a field `seed`."""
    how: Any = stage.rounding
    if not hasattr(how, "seed"):
        return stage
    return replace(stage, rounding=replace(how, seed=add_seeds(how.seed, seeds.calibration)))


@dataclass(frozen=True)
class Round(Stage[Model]):
    """Weights to what the format can represent: what is evaluated, in the base's dtype.

    Training leaves float32 weights. Evaluated as such they would have an advantage over methods
    whose models stay in the base's 16 bits.
    """

    kind: ClassVar[str] = "round"
    stored: ClassVar[bool] = False
    model: Input[Model]
    base: Input[Model]
    format: Format

    def run(self, work: Path) -> Model:
        return quantize_model(value(self.model), self.format, like=value(self.base))


def quantize_model(model: Model, format: Format, like: Model | None = None) -> Model:
    """`model` with every matrix inside the blocks rounded to its `format`, and embeddings and head
    that it names; then in the dtype and on the device of `like`, where one is given.

    The result is no longer latent: its weights are what the format can hold. Full precision holds
    any weight, so it rounds none. Layers that hold the format already stay as they are: a method
    chose their values, and the nearest ones of the range that they span are others. One tensor is
    worked on at a time: where `model` lies on the host, the device never has more of it than that.
    Raises FormatError where a layer does not fit, before any work, and ModelError where a layer has
    NaN or Inf.
    """
    like, result = like or model, model.fork(latent=False)
    layers = find_rounded(result.network, format)
    for name, (matrix, own) in list(layers.items()):
        own.check(name, matrix.in_features)
        if result.quantized.get(name) == own.describe(matrix.in_features) and not model.latent:
            del layers[name]
    _round_to_nearest(result, layers, like)
    move_buffers(result.network, like.device)
    return result


def find_rounded(network: PreTrainedModel, format: Format) -> dict[str, tuple[Matrix, Format]]:
    """What is rounded, by name, each with its own format: matrices inside the blocks, embeddings
    and head where the format names them, under both names where they are one parameter.

    Raises FormatError for a name that the model has not, and for two formats of one parameter.
    """
    if isinstance(format, FullPrecision):
        return {}
    inside, ends = matrices(network), find_ends(network)
    format.check_names(inside, ends)
    layers = {name: (matrix, format.of(name)) for name, matrix in inside.items()}
    for name in sorted(ends, key=lambda name: format.of_end(name) is None):  # errors name those
        matrix = ends[name]
        same = [each for each, other in ends.items() if other.stored is matrix.stored]
        named = {own for each in same if (own := format.of_end(each)) is not None}
        if len(named) > 1:
            raise FormatError(f"{' and '.join(same)} are one parameter: give both one format")
        if named:
            layers[name] = matrix, named.pop()
    return {name: each for name, each in layers.items() if isinstance(each[1], Grouped)}


def _round_to_nearest(
    model: Model, layers: Mapping[str, tuple[Matrix, Format]], like: Model | None = None
) -> None:
    """Give `model` new weights in these layers, and all of them the dtype and device of `like`."""
    rounds = {id(matrix.stored): (matrix, format) for matrix, format in layers.values()}
    owners = {name: id(matrix.stored) for name, (matrix, _) in layers.items()}
    parameters: dict[int, dict[str, Tensor]] = {}

    def make(name: str, old: nn.Parameter) -> nn.Parameter:
        tensor = old.detach() if like is None else old.detach().to(like.device)
        if id(old) in rounds:
            matrix, format = rounds[id(old)]
            _check(matrix.name, tensor)
            if isinstance(format, Learned):
                own = model.format_parameters.get(matrix.name)
                kept = format.store(own or format.parameters(matrix.layout.view(tensor)))
                parameters[id(old)] = {name: each.cpu() for name, each in kept.items()}
                tensor = _map_learned(matrix, format, tensor, kept)
            else:
                tensor = matrix.map(format.quantize, tensor)
        dtype = old.dtype if like is None else like.network.dtype
        return nn.Parameter(tensor.to(dtype), requires_grad=False)

    replace_parameters(model.network, make)
    for name, (matrix, format) in layers.items():
        model.quantized[name] = format.describe(matrix.in_features)
        model.format_parameters.pop(name, None)
        if owners[name] in parameters:
            model.format_parameters[name] = parameters[owners[name]]


def _map_learned(
    matrix: Matrix, format: Learned, stored: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    def change(rows: Tensor, *own: Tensor) -> Tensor:
        return format.quantize_with(rows, format.name_parameters(own))

    return matrix.map(change, stored, *(each.to(stored.device) for each in parameters.values()))


def _check(name: str, weight: Tensor) -> None:
    if not bool(weight.isfinite().all()):
        raise ModelError(f"layer {name}: its weight has NaN or Inf and cannot be quantised")
