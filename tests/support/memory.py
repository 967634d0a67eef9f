"""Stages whose memory the tests of several rooms estimate, and what their models weigh."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import harness.evaluation.memory  # noqa: F401 (registers the estimates of evaluations)
from harness.core.stage import Stage
from harness.data import Packed, texts
from harness.evaluation.evaluations import find_evaluation
from harness.evaluation.perplexity import Perplexity, PerplexityTask
from harness.models import (
    Model,
    Pretrained,
)
from harness.models.dry_run import Memory
from methods.quantization.formats import IntAsym
from methods.training.memory import of_training
from methods.training.objectives import KL, Objective
from methods.training.settings import Training
from methods.training.train import Train

FORMAT = IntAsym(bits=2, group_size=64)
WIDE = Training(micro_batch=32, batch_size=64)  # activations outweigh gradients
TEACHES = KL()


def build_training(
    base: Pretrained,
    training: Training = WIDE,
    length: int = 64,
    objective: Objective = TEACHES,
    student: Stage[Model] | None = None,
) -> Train:
    teacher = base if objective.needs_teacher else None
    tokens = Packed([], base, length, 64)
    return Train(student or base, teacher, tokens, FORMAT, objective, None, training)


def estimate_training(*parts: Any, **settings: Any) -> Memory:
    return of_training(build_training(*parts, **settings), device="cpu")


def measure_sizes(model: Model) -> tuple[int, int, int]:
    """Weights in all, those in the blocks and of the last norm, and the bytes of the buffers."""
    network = model.network
    ends = sum(p.numel() for p in network.get_input_embeddings().parameters())  # tied to the head
    weights = sum(p.numel() for p in network.parameters())
    return weights, weights - ends, sum(b.nbytes for b in network.buffers())


def build_scoring(model: Stage[Model]) -> Perplexity:
    task = find_evaluation("testbed-ppl")
    assert isinstance(task, PerplexityTask)
    protocol = replace(task.protocol, window=2)
    return Perplexity(model, texts("testbed", "heldout"), "testbed-ppl", protocol, True)
