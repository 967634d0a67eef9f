"""The matrices of a network's decoder blocks: what quantisation is about.

    for name, matrix in matrices(network).items():
        matrix.weight                           # (O, I), or (E, O, I) of E experts; a view

Found by how they are stored and used, not only by class: linear layers, GPT-2's, the experts of a
mixture that lie in one parameter. Routers, and the gates of shared experts, stay in 16 bits, as
everywhere in the field: they are few weights, and one of them wrong sends a token to another
expert. What no rule here knows is refused by name, so that nothing stays in 16 bits unsaid.

Not here: what rounds them (`methods`), what their inputs are (`methods.quantization.observing`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.core.errors import ModelError
from harness.models.parts import blocks


@dataclass(frozen=True)
class Layout:
    """How a parameter stores its rows: (O, I) or (E, O, I), unless it says otherwise.

    transposed: input channels before output channels. experts: of how many matrices, one below the
    other, a two-dimensional parameter is made; 0: of one.
    """

    transposed: bool = False
    experts: int = 0

    def view(self, stored: Tensor) -> Tensor:
        """The parameter as (O, I) or (E, O, I), whose groups lie along the last dimension."""
        rows = stored.unflatten(0, (self.experts, -1)) if self.experts else stored
        return rows.mT if self.transposed else rows

    def store(self, rows: Tensor) -> Tensor:
        """The inverse of `view`."""
        stored = rows.mT if self.transposed else rows
        return (stored.flatten(0, 1) if self.experts else stored).contiguous()

    def splits_by_rows(self, stored: Tensor) -> bool:
        """Whether parts of the first dimension are whole groups, however it is cut."""
        return stored.dim() == 3 or self == ROWS


ROWS, COLUMNS = Layout(), Layout(transposed=True)


@dataclass(frozen=True)
class Matrix:
    """A parameter of a block that activations are multiplied by: one matrix, or one an expert.

    name: the module's, where the parameter is its `weight`; else the parameter's own.
    """

    name: str
    module: nn.Module = field(repr=False, compare=False)
    leaf: str = "weight"  # the parameter in its module
    layout: Layout = ROWS

    @property
    def parameter_name(self) -> str:
        """As in `named_parameters` of the network."""
        return f"{self.name}.weight" if self.leaf == "weight" else self.name

    @property
    def stored(self) -> Tensor:
        parameter: Tensor = getattr(self.module, self.leaf)
        return parameter

    @property
    def weight(self) -> Tensor:
        """(O, I), or (E, O, I): a view of the parameter."""
        return self.layout.view(self.stored)

    @property
    def experts(self) -> int:
        """How many matrices it holds that see tokens of their own; 0: one that sees all."""
        return len(self.weight) if self.weight.dim() == 3 else 0

    @property
    def out_features(self) -> int:
        return self.weight.shape[-2]

    @property
    def in_features(self) -> int:
        return self.weight.shape[-1]

    def map(self, change: Callable[..., Tensor], stored: Tensor, *beside: Tensor) -> Tensor:
        """`change` of the rows of what is stored as this parameter is, stored alike.

        One expert at a time, so that what `change` needs beside is of one matrix. beside: tensors
        (O, ...), or (E, O, ...), which it is given too.
        """
        rows = self.layout.view(stored)
        changed = (
            torch.stack([change(*each) for each in zip(rows, *beside, strict=True)])
            if rows.dim() == 3 and len(rows)
            else change(rows, *beside)
        )
        return self.layout.store(changed)

    def pair(self, *stored: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """The rows (O, I) of tensors that are stored as this parameter is, views of them: one
        expert at a time."""
        views = [self.layout.view(each) for each in stored]
        yield from zip(*views, strict=True) if views[0].dim() == 3 else [tuple(views)]

    def replace(self, weight: Tensor) -> None:
        """Give it a new weight (O, I) or (E, O, I), in the type and on the device of the old one,
        which others share and which stays."""
        stored = self.layout.store(weight.to(self.stored))
        setattr(self.module, self.leaf, nn.Parameter(stored, requires_grad=False))


@dataclass(frozen=True)
class Quantized:
    """What a layer's weights were rounded to; `bits_per_weight` counts scales and zero points.

    bits: of a code, log2 of how many values a group may have, in hundredths: 1.58 of three.
    """

    format: str
    bits: float
    group_size: int  # weights that share a scale; 0: a whole row of the matrix (per channel)
    bits_per_weight: float

    @property
    def levels(self) -> int:
        """How many values a group may have."""
        return round(2**self.bits)


@dataclass(frozen=True)
class Survey:
    """The weights of all blocks: `matrices` are rounded, `kept` stay as they are, by name.

    Weights are parameters of more than one dimension; norms and biases are none.
    """

    matrices: dict[str, Matrix]
    kept: dict[str, Tensor]


def matrices(network: PreTrainedModel) -> dict[str, Matrix]:
    """The matrices inside the decoder blocks, by name, in order: what is quantised.

    Embeddings and the head lie outside the blocks (`find_ends`) and stay in 16 bits, as in every
    method compared, unless a format names them.
    Raises ModelError where there are none, and where a parameter is of no kind that is known.
    """
    return survey(network).matrices


def find_ends(network: PreTrainedModel) -> dict[str, Matrix]:
    """The embedding of tokens and the head, by name: (V, D) each. Tied ones are two names of one
    parameter. They are rounded only where a format names them."""
    named = {id(module): name for name, module in network.named_modules()}
    ends = [network.get_input_embeddings(), network.get_output_embeddings()]
    return {
        named[id(module)]: Matrix(named[id(module)], module)
        for module in ends
        if id(module) in named and isinstance(module, nn.Embedding | nn.Linear)
    }


def survey(network: PreTrainedModel) -> Survey:
    """The weights of the blocks, told apart. Raises ModelError, naming a parameter that is of no
    kind that is known, and where there is no matrix."""
    found, kept, seen = dict[str, Matrix](), dict[str, Tensor](), set[int]()
    for prefix, block in blocks(network).items():
        inside = list(_find_weights(prefix, block))
        routers = _find_routers(prefix, inside)
        for name, weight in inside:
            if id(weight.stored) in seen:  # blocks may share a module
                continue
            seen.add(id(weight.stored))
            if isinstance(weight, Matrix) and name not in routers:
                found[weight.name] = weight
            elif isinstance(weight, Matrix) or _is_elementwise(name, weight):
                kept[name] = weight.stored
            else:
                shape = " x ".join(map(str, weight.stored.shape))
                raise ModelError(
                    f"{type(network).__name__}: parameter {name} ({shape}) of {weight.owner} is "
                    "stored in no way that is known here; left in 16 bits it would go unsaid, so "
                    "the model cannot be quantised"
                )
    if not found:
        raise ModelError(f"{type(network).__name__}: no matrix found inside decoder blocks")
    return Survey(found, kept)


@dataclass(frozen=True)
class _Other:
    """A parameter that is not known to be a matrix."""

    stored: Tensor
    module: nn.Module

    @property
    def owner(self) -> str:
        return type(self.module).__name__


def _find_weights(prefix: str, block: nn.Module) -> Iterator[tuple[str, Matrix | _Other]]:
    """The parameters of a block that are weights, by their full names."""
    for path, module in block.named_modules(prefix=prefix):
        for leaf, stored in module.named_parameters(recurse=False):
            wide = sum(size > 1 for size in stored.shape)
            # A matrix may have one row: the gate of a shared expert.
            if "bias" in leaf or (wide < 2 and not isinstance(module, nn.Linear)):
                continue
            name = f"{path}.{leaf}"
            layout = _find_layout(module, leaf, stored)
            if layout is None:
                yield name, _Other(stored, module)
            else:
                yield name, Matrix(path if leaf == "weight" else name, module, leaf, layout)


# Classes that do not say how they store their experts or heads: parameters that have the input
# channels first.
_COLUMNS_OF = {
    "Llama4TextExperts": ("gate_up_proj", "down_proj"),
    "RecurrentGemmaRglru": ("input_gate_weight", "recurrent_gate_weight"),
}
_ROWS_OF = {"ZambaMambaMixer": ("x_proj_weight", "dt_proj_weight")}
_SIZES = (("input_size", "output_size"), ("in_features", "out_features"))


def _find_layout(module: nn.Module, leaf: str, stored: Tensor) -> Layout | None:
    """How a parameter stores a matrix; None where it is not known to be one."""
    kind = type(module).__name__
    if isinstance(module, nn.Linear):
        return ROWS if leaf == "weight" else None
    if isinstance(module, Conv1D):
        return COLUMNS if leaf == "weight" else None
    if kind == "DbrxExpertGLU":  # x w1', x v1' and y w2, each expert's below another's
        return Layout(transposed=leaf == "w2", experts=cast(int, module.moe_num_experts))
    if leaf in _COLUMNS_OF.get(kind, ()):
        return COLUMNS
    if leaf in _ROWS_OF.get(kind, ()) or (stored.dim() == 2 and _is_router(module, leaf)):
        return ROWS
    if stored.dim() != 3 or isinstance(module, nn.Conv1d):
        return None
    transposed = getattr(module, "is_transposed", None)
    if isinstance(transposed, bool):  # transformers' own mark of fused experts
        return COLUMNS if transposed else ROWS
    for into, out_of in _SIZES:
        sizes = getattr(module, into, None), getattr(module, out_of, None)
        if sizes[0] != sizes[1] and tuple(stored.shape[1:]) in (sizes, sizes[::-1]):
            return COLUMNS if tuple(stored.shape[1:]) == sizes else ROWS
    return None


def _is_router(module: nn.Module, leaf: str) -> bool:
    """Whether a module that is no linear layer is a router, which computes as one does."""
    kind = type(module).__name__
    named = re.search("Router|Gat(e|ing)$", kind) is not None
    return named and leaf == "weight" and not isinstance(module, nn.Linear)


def _find_routers(prefix: str, inside: list[tuple[str, Matrix | _Other]]) -> set[str]:
    """Of a block's weights the routers, and the gates of shared experts, by name: in the part of
    the block where its experts are, what is called a gate or router and has a row an expert, or
    one row."""
    plain = {name: each for name, each in inside if isinstance(each, Matrix) and not each.experts}
    routers = {name for name, each in plain.items() if _is_router(each.module, each.leaf)}
    experts: dict[str, int] = {}  # part of the block -> how many experts are in it
    for name, weight in inside:
        parts = name.removeprefix(f"{prefix}.").split(".")
        count = weight.experts if isinstance(weight, Matrix) else 0
        for before, part in pairwise(parts):  # experts that are modules of their own
            if "expert" in before and part.isdigit():
                count = max(count, int(part) + 1)
        if count:
            experts[parts[0]] = max(count, experts.get(parts[0], 0))
    for name, weight in plain.items():
        first, *parts = name.removeprefix(f"{prefix}.").split(".")[:-1]
        beside = first in experts or any("expert" in part for part in experts)
        called = any(
            re.search(r"(^|_)(gate|router|gating)$|^wg$", part) for part in (first, *parts)
        )
        if beside and called and weight.out_features in {1, *experts.values()}:
            routers.add(name)
    return routers


def _is_elementwise(name: str, weight: _Other) -> bool:
    """Whether a parameter is no matrix though it has two dimensions: a state's decay, a table
    that is looked up, a convolution of each channel alone."""
    module = weight.module
    if isinstance(module, nn.Embedding):
        return True
    if isinstance(module, nn.Conv1d):
        return module.groups == module.in_channels
    return name.rpartition(".")[2] in ("A_log", "D")
