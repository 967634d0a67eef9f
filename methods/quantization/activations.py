"""Attachments that round what a model computes with as it runs: activations, keys and values, as in
`model.attach(Activations(bits=8), KVCache(bits=4))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.stage import added
from harness.models import Attachment, change_caches, change_inputs, matrices


@dataclass(frozen=True)
class Activations(Attachment):
    """What matrices of the blocks read, as integers, a token with a scale, or a zero point too."""

    name = "activations"
    bits: Annotated[int, Field(ge=2, le=8)] = 8  # of what matrices read
    symmetric: bool = True  # without a zero point

    @property
    def label(self) -> str:
        return f"A{self.bits}" if self.symmetric else f"A{self.bits}asym"

    def attach(self, network: PreTrainedModel) -> None:
        change_inputs(self, network, matrices(network).values())

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        return cast(Tensor, _Rounded.apply(read, self.bits, self.symmetric))


@dataclass(frozen=True)
class KVCache(Attachment):
    """Keys (after position embeddings) and values as integers: a scale and, unless symmetric, a
    zero point for each token, in each head or over all of them."""

    name = "kv-cache"
    bits: Annotated[int, Field(ge=2, le=8)] = 4  # of keys and values
    symmetric: bool = added(False)  # without a zero point
    range: Literal["head", "token"] = added("head")  # what shares a scale

    @property
    def label(self) -> str:
        return f"KV{self.bits}{'sym' * self.symmetric}{'-token' * (self.range == 'token')}"

    def attach(self, network: PreTrainedModel) -> None:
        change_caches(self, network)

    def change_cached(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        start = 3 if self.range == "head" else 2  # of (B, T, H, D): what is one row
        tokens = keys.transpose(1, 2), values.transpose(1, 2)
        rows = (_Rounded.apply(x.flatten(start), self.bits, self.symmetric) for x in tokens)
        keys, values = (x.view_as(y).transpose(1, 2) for x, y in zip(rows, tokens, strict=True))
        return keys, values


class _Rounded(torch.autograd.Function):
    """Each row of (..., I) on even steps of its own range, widened to 0, in its dtype; NaN where it
    has NaN or Inf. Scales are float32. The gradient passes unchanged (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: Any, read: Tensor, bits: int, symmetric: bool) -> Tensor:
        rows = read if read.dtype == torch.float64 else read.float()
        low, high = rows.amin(-1, keepdim=True).clamp(max=0), rows.amax(-1, keepdim=True).clamp(0)
        last = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
        reach = torch.maximum(-low, high) if symmetric else high - low
        scale = (reach / last).clamp_min(torch.finfo(rows.dtype).tiny)
        zero = torch.zeros_like(scale) if symmetric else (-low / scale).round()
        codes = (rows / scale).round_().add_(zero).clamp_(-last if symmetric else 0, last)
        return codes.sub_(zero).mul_(scale).to(read.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, None, None]:
        return gradients[0], None, None
