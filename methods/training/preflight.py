"""What can be known to be wrong with a training before its first step.

Not here: what the machine lacks (`optimizer.require`), what goes wrong later (`divergence`).
"""

from __future__ import annotations

import torch

from harness.core.errors import ModelError, TextError
from harness.data import Tokens
from harness.models import Model
from methods.training.forward import run_head, run_trunk


def check_inputs(student: Model, teacher: Model | None, tokens: Tokens) -> None:
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

    A model may scale or cap its logits in a way that `run_head` does not know; training it silently
    without would be wrong.
    """
    network = model.network
    ids = torch.arange(4, device=model.device)[None] % network.config.vocab_size
    apart = run_head(network, run_trunk(network, ids))
    full_logits = network(input_ids=ids, use_cache=False).logits
    if not torch.allclose(apart, full_logits, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ModelError(
            f"{type(network).__name__} does something to its logits after the head that "
            "methods/training/forward.py does not know; add it to `run_head` there"
        )
