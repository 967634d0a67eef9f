"""What can be known to be wrong with a training before its first step.

Not here: what the machine lacks (`optimizer.require`), what goes wrong later (`divergence`).
"""

from __future__ import annotations

import torch

from harness.core.errors import ModelError, TextError
from harness.data import Tokens
from harness.models import Model, run_trunk
from methods.training.forward import run_head


def check_inputs(student: Model, teacher: Model | None, tokens: Tokens) -> None:
    """Raise TextError or ModelError for what can be known to be wrong before the first step."""
    if len(tokens) == 0 or not bool(tokens.mask[:, 1:].any()):
        raise TextError("the training data have no label tokens")
    length, vocabulary = tokens.ids.shape[1], student.vocabulary
    models = [student] if teacher is None else [student, teacher]
    for model in models:
        if model.context is not None and length > model.context:
            raise TextError(f"sequences of {length} tokens: the model's context is {model.context}")
        check_split(model)
    if int(tokens.ids.max()) >= vocabulary:
        raise ModelError(
            f"the training data hold token {int(tokens.ids.max())}, the student knows {vocabulary}"
        )
    if teacher is not None and teacher.vocabulary != vocabulary:
        raise ModelError(
            f"teacher and student differ in vocabulary: {teacher.vocabulary} and "
            f"{vocabulary} tokens"
        )


@torch.no_grad()
def check_split(model: Model) -> None:
    """Raise ModelError where trunk and head, run apart, are not the whole network: training would
    silently be about another model."""
    network = model.network
    ids = torch.arange(4, device=model.device)[None] % model.vocabulary
    apart = run_head(network, run_trunk(network, ids))
    full_logits = network(input_ids=ids, use_cache=False).logits
    if not torch.allclose(apart, full_logits, rtol=1e-2, atol=1e-2, equal_nan=True):
        raise ModelError(
            f"{type(network).__name__} computes its logits from more than its last hidden states, "
            "so it cannot be trained: its head runs on a few tokens at a time"
        )
