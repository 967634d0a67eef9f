"""NaN and Inf in a network: logits that are no distribution, and the layer where it began.

    logits = run_finite(model, lambda: network(ids).logits)

A row of logits stands for a distribution exactly where its largest entry is finite: NaN and +Inf
show in the maximum, and so does a row that is -Inf throughout. Single entries of -Inf are allowed:
models mask unused entries of their vocabulary so. The check is one maximum over logits, without a
copy; only where it fails is the network run again, with every layer watched.

Not here: losses that run away (`methods.training.divergence`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from harness.core.errors import ModelError
from harness.models.model import Model

T = TypeVar("T")


class _NoDistributionError(Exception):
    """Logits of a network that are NaN or Inf: which of the two."""

    def __init__(self, network: nn.Module, kind: str) -> None:
        super().__init__(kind)
        self.network, self.kind = network, kind


def run_finite(model: Model, compute: Callable[[], T]) -> T:
    """What `compute` returns, which runs the network of `model`, once or many times.

    Raises ModelError where logits are NaN or Inf, with their dtype and the first layer that is: for
    that `compute` is run once more.
    """
    network = model.network
    with _checked_logits(network):
        try:
            return compute()
        except _NoDistributionError as error:
            if error.network is not network:  # another one's, which is checked around this one
                raise
            kind = error.kind

        def rerun() -> None:
            with contextlib.suppress(_NoDistributionError):
                compute()

        first = find_first_broken({"": network}, rerun)
    dtype = network.dtype
    place = f", first {first}" if first else ""
    advice = "; load the model in bfloat16 or float32 (dtype:)" if dtype == torch.float16 else ""
    name = str(dtype).removeprefix("torch.")
    raise ModelError(f"logits are {kind} in {name}{place}{advice}")


def are_distributions(logits: Tensor) -> Tensor:
    """Whether each row of logits stands for one: (..., V) -> (...) bool."""
    return logits.amax(-1).isfinite()


@contextlib.contextmanager
def _checked_logits(network: Any) -> Iterator[None]:
    """Inside, logits that are no distributions raise `_NoDistributionError`."""

    def check(_: nn.Module, __: Any, output: Any) -> None:
        logits = getattr(output, "logits", output)
        if not bool(are_distributions(logits.detach()).all()):
            kind = "NaN" if bool(logits.amax(-1).isnan().any()) else "Inf"
            raise _NoDistributionError(network, kind)

    # Before a cap on logits, which makes of Inf a number that looks right.
    handle = (network.get_output_embeddings() or network).register_forward_hook(check)
    try:
        yield
    finally:
        handle.remove()


def find_first_broken(
    networks: Mapping[str, nn.Module], rerun: Callable[[], object], gradients: bool = False
) -> str | None:
    """The first thing that is not finite, in words, or None where all that is seen is.

    `networks`: a prefix for the words -> a network. `rerun` runs forward, and backward where
    `gradients` are looked at, to its end: other processes may count on that. In the forward pass
    the first layer in order of execution is named, its weights before its activations. Gradients
    flow the other way, so the layer named is the last one, where the gradient broke before it
    spread.
    """
    forward: list[str] = []
    backward: list[str] = []
    with contextlib.ExitStack() as hooks:
        for prefix, network in networks.items():
            for name, module in network.named_modules():
                if name and not any(module.children()):
                    hooks.enter_context(_watched(prefix, name, module, forward, backward))
        rerun()
    if gradients:
        for network in networks.values():
            network.zero_grad(set_to_none=True)
    return next(iter([*forward, *backward] if gradients else forward), None)


@contextlib.contextmanager
def _watched(
    prefix: str, name: str, module: nn.Module, forward: list[str], backward: list[str]
) -> Iterator[None]:
    """Notes what is not finite about one layer: its weights, what goes in and comes out, then
    their gradients."""
    handles: list[RemovableHandle] = []
    seen: set[int] = set()

    def after(_: nn.Module, arguments: Any, output: Any) -> None:
        # Only now does a sharded layer hold its whole weights.
        for own, weight in module.named_parameters(recurse=False):
            if not forward and not _is_finite(weight):
                forward.append(f"the {prefix}weights of {name} ({own})")
            if weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                place = f"the {prefix}gradient of {name} ({own})"
                handles.append(weight.register_hook(partial(_note, backward, place)))
        if not forward and not _is_finite(arguments):  # a sum or product between two layers
            forward.append(f"the {prefix}input of {name}")
        if not forward and not _is_finite(output):
            forward.append(f"the {prefix}activations of {name}")

    handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(broken: list[str], place: str, gradient: Tensor) -> None:
    if not _is_finite(gradient):
        broken.append(place)


def _is_finite(thing: Any) -> bool:
    if isinstance(thing, Tensor):
        return not thing.is_floating_point() or bool(torch.isfinite(thing.detach()).all())
    if isinstance(thing, tuple | list):
        return all(map(_is_finite, thing))
    return True
