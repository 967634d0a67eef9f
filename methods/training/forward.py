"""How training and generation run a network: the trunk whole, the head a few tokens at a time.

Logits are by far the largest tensor of a language model's step (batch × length × vocabulary), and a
loss needs each of them once. So the trunk gives hidden states, the states of label positions are
picked out, and the head runs over chunks of those. In this file: that, blocks that are run again
rather than remembered, the same bits each time, a network's tensors replaced by others, and what
does not fit together. Not here: losses (`objectives`), the loop (`train`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from harness.core.errors import ModelError, TextError
from harness.data import Tokens
from harness.models import Model, blocks

# Logits held at once, per tensor. Larger chunks fall out of a CPU's cache; smaller ones leave a GPU
# idle.
_CHUNK = {"cpu": 2**21, "cuda": 2**26}
_FLASH = "FLASH_ATTENTION_DETERMINISTIC"  # asked of the package by transformers, at every call


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


def hidden(network: PreTrainedModel, ids: Tensor) -> Tensor:
    """Last hidden states, after the final norm: (B, T) -> (B, T, D).

    No attention mask: sequences are padded on the right, where a causal model does not look.
    """
    states: Tensor = network.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states


def logits(network: PreTrainedModel, states: Tensor) -> Tensor:
    """The head, and the cap that some models put behind it: (N, D) -> (N, V)."""
    scores: Tensor = network.get_output_embeddings()(states)
    cap = getattr(network.config, "final_logit_softcapping", None)
    return scores if cap is None else torch.tanh(scores / cap) * cap


def chunks(count: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Slices that cover `count` tokens, each small enough to hold its logits."""
    size = max(1, _CHUNK.get(device.type, _CHUNK["cuda"]) // vocabulary)
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


@torch.no_grad()
def each_label(
    network: PreTrainedModel,
    ids: Tensor,
    labels: Labels,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`measure(logits (n, V), labels (n,)) -> (n,)` over all label positions: (N,)."""
    return each_state(network, labels.pick(hidden(network, ids)), labels, measure)


@torch.no_grad()
def each_state(
    network: PreTrainedModel,
    states: Tensor,
    labels: Labels,
    measure: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """`each_label` where the trunk has run already: states (N, D) of the label positions."""
    parts = [
        measure(logits(network, states[part]), labels.ids[part])
        for part in chunks(len(states), network.config.vocab_size, states.device)
    ]
    return torch.cat(parts) if parts else states.new_zeros(0)


def check(student: Model, teacher: Model | None, tokens: Tokens) -> None:
    """Raise TextError or ModelError for what can be known to be wrong before the first step."""
    if len(tokens) == 0 or not bool(tokens.mask[:, 1:].any()):
        raise TextError("the training data have no label tokens")
    length, vocabulary = tokens.ids.shape[1], student.network.config.vocab_size
    models = [student] if teacher is None else [student, teacher]
    for model in models:
        if length > model.context:
            raise TextError(f"sequences of {length} tokens: the model's context is {model.context}")
        _check_split(model)
    if int(tokens.ids.max()) >= vocabulary:
        raise ModelError(
            f"the training data hold token {int(tokens.ids.max())}, the student knows {vocabulary}"
        )
    if teacher is not None and teacher.network.config.vocab_size != vocabulary:
        raise ModelError(
            f"teacher and student differ in vocabulary: {teacher.network.config.vocab_size} and "
            f"{vocabulary} tokens"
        )


@torch.no_grad()
def _check_split(model: Model) -> None:
    """Raise ModelError where trunk and head, run apart, are not the whole network.

    A model may scale or cap its logits in a way that `logits` does not know; training it silently
    without would be wrong.
    """
    network = model.network
    ids = torch.arange(4, device=model.device)[None] % network.config.vocab_size
    apart = logits(network, hidden(network, ids))
    whole = network(input_ids=ids, use_cache=False).logits
    if not torch.allclose(apart, whole, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ModelError(
            f"{type(network).__name__} does something to its logits after the head that "
            "methods/training/forward.py does not know; add it to `logits` there"
        )


def recompute(network: PreTrainedModel) -> None:
    """Gradient checkpointing: keep a block's input only, and run it again in the backward pass.

    The library's own switch needs training mode, where dropout would be on.
    """
    for block in blocks(network).values():
        block.forward = partial(
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """On CUDA only algorithms that give the same bits each time; elsewhere there are no others.

    Strictly: where the library only warns, the backward pass of attention stays as it is. Raises
    ModelError where something inside has no such algorithm.
    """
    if device.type != "cuda":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    flash = os.environ.get(_FLASH)
    os.environ[_FLASH] = "1"
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # nothing here reads any
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        said = str(error).partition(",")[0]
        raise ModelError(f"{said}: set train.deterministic to false") from error
    finally:
        torch.set_deterministic_debug_mode(before[0])
        settings.fill_uninitialized_memory = before[1]
        os.environ.pop(_FLASH)
        if flash is not None:
            os.environ[_FLASH] = flash
