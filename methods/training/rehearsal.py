"""Tried before a model is read: whether it can write training data, and be trained.

Not here: the twins on which that is tried (`harness.models.rehearsal`).
"""

from __future__ import annotations

from functools import cache

from harness.core.errors import ModelError, first_line
from harness.models import Pretrained, find_ends, find_pretrained, meta_network
from harness.models.rehearsal import find_twin, rehearse
from methods.quantization.formats import Format
from methods.training.data import Generate
from methods.training.generation import check_writing
from methods.training.preflight import (
    check_alike,
    check_blocks,
    check_split,
    find_block_objective,
)
from methods.training.train import Train


@rehearse.register
def of_generation(stage: Generate) -> None:
    """Raises ModelError where what the teacher writes would not be its own."""
    if (base := find_pretrained(stage.teacher)) is not None:
        _check_writing(base)


@rehearse.register
def of_training(stage: Train) -> None:
    """Raises ModelError where student or teacher cannot be run as training runs them, or are too
    unlike for the objective."""
    models = (each for each in (stage.student, stage.teacher) if each is not None)
    bases = [base for base in map(find_pretrained, models) if base is not None]
    seen = find_block_objective(stage.objective)
    if (student_base := find_pretrained(stage.student)) is not None:
        _check_ends(student_base, stage.format)
    for base in bases:
        _check_split(base)
        if seen is not None:
            _check_blocks(base, seen)
    if seen is not None and len(set(bases)) == 2:
        student, teacher = (meta_network(b.source, b.trust_remote_code, b.digest) for b in bases)
        check_alike(student.config, teacher.config, seen)


@cache
def _check_ends(base: Pretrained, format: Format) -> None:
    """Raise ModelError for embeddings or a head that would be rounded after training alone."""
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    for name in find_ends(network):
        if format.of_end(name) is not None:
            raise ModelError(
                f"format.layers: {name!r}: training rounds what is inside the blocks; embeddings "
                "and head can be rounded by methods that do not train"
            )


@cache
def _check_split(base: Pretrained) -> None:
    if (twin := find_twin(base)) is not None:
        check_split(twin)


@cache
def _check_blocks(base: Pretrained, objective: str) -> None:
    if (twin := find_twin(base)) is not None:
        check_blocks(twin, objective)


@cache
def _check_writing(base: Pretrained) -> None:
    if (twin := find_twin(base)) is None:
        return
    try:
        check_writing(twin)
    except Exception as error:  # of any class: the model's own code runs
        name = type(twin.network).__name__
        why = str(error) if isinstance(error, ModelError) else f"{name}: {first_line(error)}"
        raise ModelError(
            f"the model cannot write training data: {why}; data: ground-truth needs none"
        ) from error
