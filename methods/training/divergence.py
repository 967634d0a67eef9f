"""What went wrong with a training: whether its loss ran away, and where NaN or Inf came from.

Training has diverged when each of the last ten losses is more than twice the first one, which was
taken before any weight moved; not before the twentieth step. All objectives are averages of terms
that are not negative, so a loss that much higher is a student worse than the untrained one. Each of
ten, because a spike that recovers is no divergence, and a batch may be harder than the first; the
first one alone, because a rate far too high ruins the next nine. A first loss of few labels may be
far below the average, so the fewer it had, the more is allowed: `FEW` of them double the factor.
Losses that are next to nothing are counted as `SLIGHT`: a student that begins as its teacher cannot
but get worse. What this does not see: a loss that is bounded and begins above half of its bound, as
JSD's may, and with few labels a divergence that is not a gross one.

NaN and Inf are found by running the batch that met them once more with every layer watched.
Watching costs nothing while training goes well: hooks exist only during `diagnose`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

WINDOW, SOONEST = 10, 20  # steps
SLIGHT = 0.05  # nats a token
FEW = 200  # labels


@dataclass
class LossHistory:
    """The losses of a training's steps so far, of those that had labels."""

    losses: list[float] = field(default_factory=list)
    labels: int = 0  # of the first one

    def add(self, loss: float, labels: int) -> None:
        if labels:  # else there is no loss
            self.labels = self.labels or labels
            self.losses.append(loss)

    @property
    def limit(self) -> float:
        """What a loss may be and count as no worse than the first one."""
        return 2 * (1 + FEW / self.labels) * max(self.losses[0], SLIGHT)

    def is_worse(self, last: int = 1) -> bool:
        """Whether each of the `last` losses is more than the limit."""
        return bool(self.losses) and min(self.losses[-last:]) > self.limit

    def has_diverged(self) -> bool:
        """Whether training ran away."""
        return len(self.losses) >= SOONEST and self.is_worse(WINDOW)

    def describe_divergence(self, step: int, layer: str, far: float, saved: int) -> str:
        """In words; `layer` moved furthest, and how `far`."""
        return (
            f"training diverged at step {step}: the loss is {self.losses[-1]:.4g} and was "
            f"{self.losses[0]:.4g} before it began; {layer} moved furthest, {far:.3g} times its "
            f"norm; {describe_checkpoint(saved)}; lower lr or raise warmup, or set "
            "train.stop_diverged to false"
        )


def describe_checkpoint(saved: int) -> str:
    """Where to go on from: `saved` is the step of the last checkpoint, 0 for none."""
    return f"last good checkpoint: step {saved}" if saved else "no checkpoint yet"


def diagnose(
    networks: Mapping[str, nn.Module], rerun: Callable[[], object], gradients: bool = True
) -> str | None:
    """The first thing that is not finite, in words, or None where all that is seen is.

    `networks`: a prefix for the words -> a network. `rerun` runs forward and backward, to its end:
    other processes may count on that. In the forward pass the first layer in order of execution is
    named, its weights before its activations. Gradients are looked at where `gradients` says so;
    they flow the other way, so the layer named is the last one, where the gradient broke before it
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
    for network in networks.values():
        network.zero_grad(set_to_none=True)
    return next(iter([*forward, *backward] if gradients else forward), None)


@contextlib.contextmanager
def _watched(
    prefix: str, name: str, module: nn.Module, forward: list[str], backward: list[str]
) -> Iterator[None]:
    """Notes what is not finite about one layer: its weights and activations, then their
    gradients."""
    handles: list[RemovableHandle] = []
    seen: set[int] = set()

    def after(_: nn.Module, __: Any, output: Any) -> None:
        # Only now does a sharded layer hold its whole weights.
        for own, weight in module.named_parameters(recurse=False):
            if not forward and not _finite(weight):
                forward.append(f"the {prefix}weights of {name} ({own})")
            if weight.requires_grad and id(weight) not in seen:
                seen.add(id(weight))
                place = f"the {prefix}gradient of {name} ({own})"
                handles.append(weight.register_hook(partial(_note, backward, place)))
        if not forward and not _finite(output):
            forward.append(f"the {prefix}activations of {name}")

    handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(broken: list[str], place: str, gradient: Tensor) -> None:
    if not _finite(gradient):
        broken.append(place)


def _finite(thing: Any) -> bool:
    if isinstance(thing, Tensor):
        return not thing.is_floating_point() or bool(torch.isfinite(thing.detach()).all())
    if isinstance(thing, tuple | list):
        return all(map(_finite, thing))
    return True
