"""The layers of a network that quantisation is about. Not here: what rounds them (`methods`)."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.core.errors import ModelError


def linears(network: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers inside the decoder blocks, by name: what is quantised.

    Embeddings and the head lie outside the blocks and stay in 16 bits, as in every method compared.
    """
    layers = {
        f"{prefix}.{name}": module
        for prefix, block in blocks(network).items()
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear)
    }
    if not layers:
        raise ModelError(f"{type(network).__name__}: no linear layer found inside decoder blocks")
    return layers


def blocks(network: PreTrainedModel) -> dict[str, nn.Module]:
    """The decoder blocks, by name, in order: the outermost list of modules of one class."""
    for name, module in network.named_modules():
        if isinstance(module, nn.ModuleList) and len({type(child) for child in module}) == 1:
            return {f"{name}.{i}": child for i, child in enumerate(module)}
    raise ModelError(f"{type(network).__name__}: no list of decoder blocks found")


def replace_weight(linear: nn.Linear, weight: Tensor) -> None:
    """Give `linear` a new weight (O, I), leaving the old tensor, which others share, alone."""
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
