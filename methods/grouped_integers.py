"""What adapters of libraries share that round to integers: widths, groups, records.

    class AutoRound(GroupedIntegers): ...        # methods/auto_round_lib.py

A subclass is one library's file, and says what runs it. Not here: integers of this project's own
(`methods.quantization.formats`), which are a part of a recipe.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from harness.api import Matrix, Method, Model, ModelError, Quantized, matrices
from methods.quantization.spans import check_groups


@dataclass(frozen=True)
class GroupedIntegers(Method):
    """Codes of `bits` for weights and, for each group of a row, what makes values of them."""

    layer_multiple: ClassVar[int] = 1  # of which both sizes of every layer are
    bits: Annotated[int, Field(ge=2, le=8)] = 4  # of each weight's code
    group_size: Annotated[int, Field(ge=0, le=2**24)] = 128  # weights that share a scale; 0: a row

    def check(self, layers: Mapping[str, tuple[int, int]]) -> None:
        check_groups(layers, self.group_size, multiple=self.layer_multiple)

    def give(
        self, model: Model, matrix: Matrix, values: Tensor, format: str, beside: float
    ) -> None:
        """Give a matrix of `model` its values (O, I) or (E, O, I), and record what they are.

        beside: bits a weight that are stored beside the codes.
        """
        matrix.replace(values)
        record = Quantized(format, self.bits, self.group_size, self.bits + beside)
        model.quantized[matrix.name] = record

    def match(
        self, model: Model, network: PreTrainedModel, mark: str
    ) -> Iterator[tuple[Matrix, Tensor, Any]]:
        """Each matrix of `model`, its values (O, I) in a copy of the network that a library
        changed, and its layer there.

        mark: what the library leaves on a layer that it rounded. Raises ModelError where a layer
        has none: its weights would pass for rounded ones.
        """
        for name, matrix in matrices(model.network).items():
            layer: Any = network.get_submodule(name)
            if not hasattr(layer, mark):
                raise ModelError(f"layer {name}: {self.needs[0]} leaves it as it is")
            yield matrix, matrix.layout.view(layer.weight.detach()), layer
