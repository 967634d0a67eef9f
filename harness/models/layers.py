"""The layers of a network that quantisation is about. Not here: what rounds them (`methods`)."""

from __future__ import annotations

from torch import Tensor, nn
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.models.parts import blocks


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


def replace_weight(linear: nn.Linear, weight: Tensor) -> None:
    """Give `linear` a new weight (O, I), leaving the old tensor, which others share, alone."""
    linear.weight = nn.Parameter(weight.to(linear.weight.dtype), requires_grad=False)
