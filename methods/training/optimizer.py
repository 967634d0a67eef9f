"""AdamW with moments in 32 or in 8 bits, and its moments as the plain tensors of a checkpoint.

Eight-bit moments are torchao's, which the project does not depend on: `require` says what is
missing. Not here: rates and clipping (`train`), the file (`checkpoint`).
"""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from harness.core.errors import BitgridError
from methods.compat import fill_8bit, is_8bit, make_moment, read_8bit

Optimizer: TypeAlias = Literal["adamw", "adamw-8bit"]
MOMENTS = ("exp_avg", "exp_avg_sq")
_SHARE = "share"  # of the learning rate that a group of parameters has


def require(kind: Optimizer) -> None:
    """Raise BitgridError where the optimizer is not installed."""
    if kind == "adamw":
        return
    if importlib.util.find_spec("torchao") is None:
        raise BitgridError(f"optimizer {kind!r} needs torchao: pip install torchao")
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise BitgridError(
            f"optimizer {kind!r} compiles its step and finds no C++ compiler: install g++"
        )


def make_adamw(
    kind: Optimizer,
    weights: Iterable[nn.Parameter],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    parameters: Iterable[nn.Parameter] = (),
    share: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW whose weight decay touches matrices only.

    parameters: of formats, which do not decay, and whose rate is `share` times the weights'.
    """
    weights = list(weights)
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
        {"params": list(parameters), "weight_decay": 0.0, _SHARE: share},
    ]
    groups = [group for group in groups if group["params"]]
    if kind == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)
    adamw: torch.optim.Optimizer = importlib.import_module("torchao.optim").AdamW8bit(
        groups, lr=lr, betas=betas
    )
    return adamw


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give all weights this learning rate, and the parameters of formats their share of it."""
    for group in optimizer.param_groups:
        own = rate * group.get(_SHARE, 1.0)
        if isinstance(group["lr"], Tensor):  # torchao's, which compiled code reads
            group["lr"].fill_(own)
        else:
            group["lr"] = own


def to_plain(moment: Tensor) -> tuple[Tensor, Tensor | None]:
    """A moment as float32 and, where it is held in 8 bits, the scales of its blocks.

    The scales come in rows as the moment does, where no block runs over the end of a row; else they
    are flat, and of use only to a process that holds the very same rows.
    """
    if not is_8bit(moment):
        return moment, None
    values, scale = read_8bit(moment)
    in_rows = moment.ndim > 1 and len(scale) % len(moment) == 0
    return values, scale.view(len(moment), -1) if in_rows else scale


def restore(
    optimizer: torch.optim.Optimizer,
    weight: nn.Parameter,
    name: str,
    values: Tensor,
    scale: Tensor | None,
) -> None:
    """Give `weight` its number of steps, or a moment as `to_plain` gave it: bit for bit where the
    scales fit, else an 8-bit moment is rounded anew."""
    if isinstance(optimizer, torch.optim.AdamW):
        optimizer.state[weight][name] = values.to(weight.device, copy=True)
        return
    if name == "step":  # which the library counts on the CPU
        optimizer.state[weight][name] = values
        return
    values = values.to(weight.device)
    moment = make_moment(optimizer, weight, signed=name == "exp_avg")
    optimizer.state[weight][name] = moment
    # Rounded anew where the blocks are others, as after a change of the number of processes.
    if scale is None or not is_8bit(moment) or not fill_8bit(moment, values, scale):
        moment.copy_(values)
