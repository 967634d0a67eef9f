"""Where NaN or Inf came from: the batch that met it, run once more with every layer watched.

Watching costs nothing while training goes well: hooks exist only during `diagnose`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class _Found(Exception):
    pass


def diagnose(
    networks: Mapping[str, nn.Module], rerun: Callable[[], object], gradients: bool = True
) -> str | None:
    """The first thing that is not finite, in words, or None where all that is seen is.

    `networks`: a prefix for the words -> a network. `rerun` runs forward and backward. In the
    forward pass the first layer in order of execution is named, its weights before its activations.
    Gradients are looked at where `gradients` says so; they flow the other way, so the layer named is
    the last one, where the gradient broke before it spread.
    """
    broken: list[str] = []
    try:
        with contextlib.ExitStack() as hooks:
            for prefix, network in networks.items():
                for name, module in network.named_modules():
                    if name and not any(module.children()):
                        hooks.enter_context(_watched(prefix, name, module, broken))
            rerun()
    except _Found as found:
        return str(found)
    finally:
        for network in networks.values():
            network.zero_grad(set_to_none=True)
    return broken[0] if gradients and broken else None


@contextlib.contextmanager
def _watched(prefix: str, name: str, module: nn.Module, broken: list[str]) -> Iterator[None]:
    """Forward checks that raise, and backward checks that note."""

    def forward(_: nn.Module, __: Any, output: Any) -> None:
        for own, weight in module.named_parameters(recurse=False):
            if not _finite(weight):
                raise _Found(f"the {prefix}weights of {name} ({own})")
        if not _finite(output):
            raise _Found(f"the {prefix}activations of {name}")

    handles = [module.register_forward_hook(forward)]
    for own, weight in module.named_parameters(recurse=False):
        if weight.requires_grad:

            def backward(gradient: Tensor, own: str = own) -> None:
                if not _finite(gradient):
                    broken.append(f"the {prefix}gradient of {name} ({own})")

            handles.append(weight.register_hook(backward))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _finite(thing: Any) -> bool:
    if isinstance(thing, Tensor):
        return not thing.is_floating_point() or bool(torch.isfinite(thing.detach()).all())
    if isinstance(thing, tuple | list):
        return all(map(_finite, thing))
    return True
