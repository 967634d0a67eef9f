"""How much memory models take: of a device for the weights, of the host to load them.

Not here: what training and searches need beside the weights (`dry_run`).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from harness.core.stage import Input
from harness.models.model import DTYPES
from harness.models.stage import Pretrained, find_pretrained, meta_network

PROCESS_GIB = 4.0  # of the host, without a model: libraries, a GPU's context, texts
# Times the weights, for work on a small model: SmolLM2-135M (0.25 GiB) peaked at 5.2 GiB in all,
# the testbed's models at 2.7 GiB.
_BESIDE = 8


def weights_gib(model: Input[Any], dtype: torch.dtype | None = None) -> float:
    """GiB of a model's weights, in the dtype in which it is loaded or in another one; 0 where it
    does not begin with a published one."""
    base = find_pretrained(model)
    return 0.0 if base is None else _weights_bytes(base, dtype) / 2**30


@cache
def _weights_bytes(base: Pretrained, dtype: torch.dtype | None) -> int:
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    asked = DTYPES.get(base.dtype)
    return sum(p.numel() * (dtype or asked or p.dtype).itemsize for p in network.parameters())


def states_gib(model: Input[Any], tokens: int, dtype: torch.dtype | None = None) -> float:
    """GiB of a model's hidden states for so many tokens, in its dtype or in another one; 0 as of
    `weights_gib`."""
    base = find_pretrained(model)
    return 0.0 if base is None else tokens * _state_bytes(base, dtype) / 2**30


@cache
def _state_bytes(base: Pretrained, dtype: torch.dtype | None) -> int:
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    embedding = network.get_input_embeddings().weight
    return embedding.shape[1] * (dtype or DTYPES.get(base.dtype) or embedding.dtype).itemsize


def host_gib(model: Input[Any], beside: float = PROCESS_GIB) -> float:
    """Of the host's memory, what it takes to load a model, with `beside` for everything else.

    Beside a small model it is less: a process's own and some times the weights, as jobs that ask
    for 16 GiB cannot share a workstation. Files in the dtype asked for are mapped and take nothing
    that could not be given back; others are there once in that dtype, until they are on the device.
    """
    if find_pretrained(model) is None:
        return math.ceil(beside)
    weights = weights_gib(model)
    return math.ceil(min(beside, PROCESS_GIB + _BESIDE * weights) + weights)
