"""Attachments that round what a model computes with as it runs: activations, keys and values.

    model = model.attach(Activations(bits=8), KVCache(bits=4))              # A8KV4

Each token is rounded by itself, in a range found as it comes (dynamic), with float32 scales. Not
here: ranges that a calibration text fixes for all tokens (static).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, cast

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from harness.models import Attachment, change_caches, change_inputs, matrices


@dataclass(frozen=True)
class Activations(Attachment):
    """What each matrix of the blocks reads, as integers: a scale and, unless symmetric, a zero
    point for each token."""

    name = "activations"
    bits: Annotated[int, Field(ge=2, le=8)] = 8  # of what matrices read
    symmetric: bool = True  # without a zero point

    @property
    def label(self) -> str:
        return f"A{self.bits}" if self.symmetric else f"A{self.bits}asym"

    def attach(self, network: PreTrainedModel) -> None:
        change_inputs(self, network, matrices(network).values())

    def change_input(self, read: Tensor) -> Tensor:
        return cast(Tensor, _Rounded.apply(read, self.bits, self.symmetric))


@dataclass(frozen=True)
class KVCache(Attachment):
    """Keys (after position embeddings) and values as integers: a scale and a zero point for each
    token and head."""

    name = "kv-cache"
    bits: Annotated[int, Field(ge=2, le=8)] = 4  # of keys and values

    @property
    def label(self) -> str:
        return f"KV{self.bits}"

    def attach(self, network: PreTrainedModel) -> None:
        change_caches(self, network)

    def change_cached(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = (_Rounded.apply(each, self.bits, False) for each in (keys, values))
        return keys, values


class _Rounded(torch.autograd.Function):
    """Each row of (..., I) on even steps of its own range, widened to 0, in its dtype; NaN where it
    has NaN or Inf. The gradient is passed on unchanged (Bengio et al. 2013)."""

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
