"""A network's tensors replaced by others, without a write into those that other models share.

Not here: the layers that quantisation is about, and a fork of a model (`model`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import nn

Make: TypeAlias = Callable[[str, nn.Parameter], nn.Parameter]
"""A new parameter from the name and the old one, which may come back as it is."""


def replace_parameters(network: nn.Module, make: Make) -> None:
    """Give every parameter's place the one that `make(name, old)` returns; tied ones stay tied.

    Not `network.to(...)`, which writes into the parameters that a fork shares with its origin.
    """
    new_parameters: dict[int, nn.Parameter] = {}
    for name, old in list(network.named_parameters(remove_duplicate=False)):
        if id(old) not in new_parameters:
            new_parameters[id(old)] = make(name, old)
        parent, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(parent), leaf, new_parameters[id(old)])


def move_buffers(network: nn.Module, device: torch.device) -> None:
    """Have a network's buffers on a device, leaving those that it shares with others in place."""
    for module in network.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, buffer.to(device))
