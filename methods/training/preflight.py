"""What can be known to be wrong with a training before its first step.

Not here: what the machine lacks (`optimizer.require`), what goes wrong later (`divergence`).
"""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig

from harness.core.errors import ModelError, TextError
from harness.data import Tokens
from harness.models import Model, blocks, read_text_config, run_trunk
from methods.training.forward import run_head, watch_blocks
from methods.training.objectives import Objective


def check_inputs(
    student: Model,
    teacher: Model | None,
    tokens: Tokens,
    objective: Objective,
    runs_teacher: bool = True,
) -> None:
    """Raise TextError or ModelError for what can be known to be wrong before the first step.

    runs_teacher: False where its states are stored, which was checked then.
    """
    if len(tokens) == 0 or not bool(tokens.mask[:, 1:].any()):
        raise TextError("the training data have no label tokens")
    length, vocabulary = tokens.ids.shape[1], student.vocabulary
    models = [student] if teacher is None or not runs_teacher else [student, teacher]
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
    if name := find_block_objective(objective):
        for model in models:
            check_blocks(model, name)
        if teacher is not None:
            check_alike(student.network.config, teacher.network.config, name)


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


def find_block_objective(objective: Objective) -> str | None:
    """The name of the first part of an objective that sees blocks; None where none does."""
    parts = (term.objective for term in objective.list_terms())
    return next((part.name for part in parts if part.sees == "blocks"), None)


@torch.no_grad()
def check_blocks(model: Model, objective: str) -> None:
    """Raise ModelError where not every block gives hidden states (B, T, D), once and in order."""
    ids, order = torch.arange(4, device=model.device)[None] % model.vocabulary, list[int]()
    shapes = set[torch.Size]()

    def see(index: int, states: torch.Tensor) -> None:
        order.append(index)
        shapes.add(states.shape)

    with watch_blocks(model.network, see):
        run_trunk(model.network, ids)
    regular = len(shapes) == 1 and all(s[:2] == ids.shape and len(s) == 3 for s in shapes)
    if not regular or order != list(range(len(blocks(model.network)))):
        raise ModelError(
            f"objective {objective!r} sees the hidden states behind every block, and "
            f"{type(model.network).__name__} does not give one of each token behind each; choose "
            "one that sees logits"
        )


def check_alike(student: PreTrainedConfig, teacher: PreTrainedConfig, objective: str) -> None:
    """Raise ModelError where student and teacher differ in depth or width, by configurations."""
    one, other = read_text_config(student), read_text_config(teacher)
    for what, unit in (("num_hidden_layers", "blocks"), ("hidden_size", "channels")):
        ours, theirs = getattr(one, what, None), getattr(other, what, None)
        if ours != theirs:
            raise ModelError(
                f"objective {objective!r} compares student and teacher block by block, and they "
                f"have {ours} and {theirs} {unit}: choose a teacher of the student's shape, or an "
                "objective that sees logits"
            )
