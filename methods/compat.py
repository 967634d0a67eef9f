"""What methods use of libraries that those do not promise to keep, each with where it was read.

Where a library moves one of these, this file breaks and no other. Not here: what the harness uses
so (`harness.compat`).

- torch 2.13: `compute_local_shape_and_global_offset`, which rows of a sharded parameter lie here.
- torchao 0.18.0: the tensors in which AdamW8bit holds moments (`codes`, `scale`, `qmap`), and the
  method `_new_buffer` that makes one. The project does not depend on it; where it is installed the
  tests of 8-bit moments check that they are as read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset


def find_local_rows(parameter: DTensor) -> slice:
    """Which rows of a parameter that is sharded by rows this process holds."""
    shape, offset = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    return slice(offset[0], offset[0] + shape[0])


def is_8bit(moment: Tensor) -> bool:
    """Whether a moment is one of torchao's, in 8 bits."""
    return hasattr(moment, "codes")


def read_8bit(moment: Tensor) -> tuple[Tensor, Tensor]:
    """An 8-bit moment as float32, and the scales of its blocks, flat."""
    held: Any = moment
    return held.dequantize(), held.scale


def make_moment(optimizer: torch.optim.Optimizer, weight: nn.Parameter, signed: bool) -> Tensor:
    """A new moment for a weight. The library decides, by size, which it holds in 8 bits."""
    moment: Tensor = optimizer._new_buffer(weight, signed)  # type: ignore[attr-defined]
    return moment


def fill_8bit(moment: Tensor, values: Tensor, scale: Tensor) -> bool:
    """Write what `read_8bit` gave, bit for bit. False, and nothing written, where scales differ."""
    held: Any = moment
    if scale.numel() != len(held.scale):
        return False
    held.scale.copy_(scale.flatten())
    levels = values.view(len(held.scale), -1) / held.scale[:, None].clamp(min=1e-12)
    codes = torch.bucketize(levels, (held.qmap[1:] + held.qmap[:-1]) / 2)
    held.codes.copy_(codes.view(held.shape))
    return True
