"""How a network is run in training and generation: the trunk whole, the head a few tokens at a
time.

Logits are by far the largest tensor of a language model's step (batch × length × vocabulary), and a
loss needs each of them once. So the trunk gives hidden states, the states of label positions are
picked out, and the head runs over chunks of those. Not here: losses (`objectives`), the step
(`step`), what can be checked before the first one (`preflight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from harness.models import Model, blocks, count_vocabulary, find_trunk, run_trunk
from harness.models.tensors import replace_parameters

# Logits held at once, per tensor, in 16 bits; of wider ones as many bytes. Larger chunks take
# memory; with smaller ones the head reads its weights too often for few tokens, and leaves a GPU
# idle.
_CHUNK = {"cpu": 2**23, "cuda": 2**26}
_PARTS = 32  # of a chunk, for what is computed of logits: it should stay in a CPU's cache


@dataclass(frozen=True)
class Labels:
    """The label positions of a batch: position t predicts ids[t + 1] where mask[t + 1].

    where: (B, T - 1) bool; ids: (N,) int64, what the N marked positions should predict, row by row.
    """

    where: Tensor
    ids: Tensor

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor) -> Labels:
        """From ids (B, T) int64 and mask (B, T) bool, as `Tokens` holds them."""
        where = mask[:, 1:]
        return cls(where, ids[:, 1:][where])

    def pick(self, states: Tensor) -> Tensor:
        """(B, T, D) -> (N, D): the states of the label positions."""
        return states[:, :-1][self.where]

    def spread(self, values: Tensor) -> Tensor:
        """(N,) -> (B, T - 1), zero where there is no label."""
        full = values.new_zeros(self.where.shape)
        full[self.where] = values
        return full


def run_head(network: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits: the head, and whatever the network does behind it. (N, D) -> (N, V).

    The network's own code runs, with the states in the place of its trunk: models scale and cap
    their logits in many ways.
    """
    ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
    with _standing_in(network, states[None]):
        logits: Tensor = network(input_ids=ids, use_cache=False).logits
    return logits.squeeze(0)  # an index would copy the gradient on its way back


def keep_head(model: Model) -> Model:
    """A fork whose blocks are empty: enough for `run_head`, which does not run them."""
    fork = model.fork()
    for block in blocks(fork.network).values():
        replace_parameters(block, lambda _, old: nn.Parameter(old.new_empty(0), False))
    return fork


@contextmanager
def watch_blocks(network: PreTrainedModel, see: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Inside, `see(i, states (B, T, D))` is called whenever decoder block i has run.

    Where blocks are run again for the backward pass (`recompute_blocks`), that is not seen.
    """

    def after(index: int, _: nn.Module, __: object, output: Any) -> None:
        see(index, output if isinstance(output, Tensor) else output[0])

    with ExitStack() as hooks:
        for index, block in enumerate(blocks(network).values()):
            hooks.enter_context(block.register_forward_hook(partial(after, index)))
        yield


def run_watched(
    network: PreTrainedModel,
    ids: Tensor,
    labels: Labels,
    see: Callable[[int, Tensor], None] | None,
) -> Tensor:
    """The trunk's last hidden states at the label positions: ids (B, T) int64 -> (N, D).

    `see(i, states (N, D))` is told of those behind each block i as it has run, if there is one.
    """

    def pick(index: int, states: Tensor) -> None:
        assert see is not None
        see(index, labels.pick(states))

    with nullcontext() if see is None else watch_blocks(network, pick):
        return labels.pick(run_trunk(network, ids))


@contextmanager
def _standing_in(network: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """Inside, the network's trunk gives these states (B, T, D), whatever it is called with."""
    name, trunk = find_trunk(network)
    setattr(network, name, _StandIn(states, trunk, set(blocks(network).values())))
    try:
        yield
    finally:
        setattr(network, name, trunk)


class _StandIn(nn.Module):
    """In a trunk's place and in that of any part of it that holds the blocks: some networks call
    the decoder within it, or read a factor that it has."""

    def __init__(self, states: Tensor, trunk: nn.Module, blocks: set[nn.Module]) -> None:
        super().__init__()
        self._given = _Output(states), trunk, blocks  # in a tuple, where no part is looked for

    def forward(self, *_: object, **__: object) -> _Output:
        return self._given[0]

    def __getattr__(self, name: str) -> Any:
        _, trunk, blocks = self.__dict__["_given"]
        part = getattr(trunk, name)
        return self if isinstance(part, nn.Module) and blocks & set(part.modules()) else part


class _Output:
    """What trunks return, as far as a head reads it: states, and nothing beside them."""

    def __init__(self, states: Tensor) -> None:
        self.last_hidden_state = states

    def __getitem__(self, index: int | slice) -> Any:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def split_tokens(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `count` tokens, each small enough to hold `width` numbers a token."""
    size = max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // width)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def split_states(states: Tensor, width: int) -> Iterator[slice]:
    """Slices of states (N, D), each of as many tokens as may have their logits, `width` a token in
    the states' dtype, at once."""
    return split_tokens(len(states), width * max(1, states.itemsize // 2), states.device)


def split_rows(count: int, width: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `count` rows of `width` numbers, each of so few that work on it stays in
    cache."""
    return split_tokens(count, width * _PARTS, device)


@torch.no_grad()
def measure_labels(
    network: PreTrainedModel,
    ids: Tensor,
    labels: Labels,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`measure(logits (n, V), labels (n,)) -> (n,)` over all label positions: (N,)."""
    return measure_states(network, labels.pick(run_trunk(network, ids)), labels, measure)


@torch.no_grad()
def measure_states(
    network: PreTrainedModel,
    states: Tensor,
    labels: Labels,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`measure_labels` where the trunk has run already: states (N, D) of the label positions."""
    measured = []
    for part in split_states(states, count_vocabulary(network)):
        logits, ids = run_head(network, states[part]), labels.ids[part]
        for rows in split_rows(len(ids), logits.shape[1], logits.device):
            measured.append(measure(logits[rows], ids[rows]))
    return torch.cat(measured) if measured else states.new_zeros(0)


def widen(seen: Tensor) -> Tensor:
    """Logits or states as losses are computed from them: float64 where they are, else float32."""
    return seen if seen.dtype == torch.float64 else seen.float()


def log_probabilities(logits: Tensor) -> Tensor:
    """log softmax(logits), widened: (N, V) -> (N, V)."""
    return widen(logits).log_softmax(-1)


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """−log softmax(logits)[label]: (N, V), (N,) -> (N,)."""
    return -log_probabilities(logits).gather(-1, labels[:, None]).squeeze(-1)


def token_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Σ −p log p, p = softmax(logits), in nats: (N, V), (N,) -> (N,). The labels do not matter."""
    return torch.special.entr(log_probabilities(logits).exp()).sum(-1)


def recompute_blocks(network: PreTrainedModel) -> None:
    """Gradient checkpointing: keep a block's input only, and run it again in the backward pass.

    The library's own switch needs training mode, where dropout would be on.
    """
    for block in blocks(network).values():
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )
