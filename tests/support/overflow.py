"""A model whose weights fit float16 and whose activations do not."""

from __future__ import annotations

import torch

from harness.models import Model


def spread_too_far(model: Model) -> Model:
    """A fork with one norm's weight so large that the products behind it leave float16's range."""
    forked = model.fork()
    norm = forked.network.model.layers[1].post_attention_layernorm
    norm.weight = torch.nn.Parameter(torch.full_like(norm.weight, 1500.0), requires_grad=False)
    return forked
