"""What stages that evaluate hold in memory at their peak. Imported by `plan --memory` alone.

Not here: how memory is estimated (`harness.models.dry_run`), stages of methods (`methods`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

from harness.core.stage import Input, Stage
from harness.evaluation.divergence import Divergence
from harness.evaluation.lm_eval import LmEval, task_batch
from harness.evaluation.perplexity import Perplexity
from harness.evaluation.scores import EVALUATION_TOKENS
from harness.models import (
    Attachment,
    Model,
    Pretrained,
    find_attachments,
    find_trunk,
    pretrained_of,
)
from harness.models.dry_run import (
    Memory,
    OwnWeights,
    dry_run,
    estimate_memory,
    find_new_ends,
    find_own_weights,
    load_weightless,
    renew_matrices,
)

_LONGEST = 2048  # tokens, about, of a text in a task


@estimate_memory.register
def _of_text(
    stage: Perplexity | Divergence, gpus: int | None = None, device: str = "cuda"
) -> Memory | None:
    """A divergence has two sets of logits, each of half as many rows."""
    window = stage.protocol.window
    return _of_scoring(stage.model, lambda _: (max(1, EVALUATION_TOKENS // 2 // window), window))


@estimate_memory.register
def _of_task(stage: LmEval, gpus: int | None = None, device: str = "cuda") -> Memory | None:
    return _of_scoring(stage.model, lambda context: (task_batch(context), min(context, _LONGEST)))


def _of_scoring(model: Input[Model], shape: Callable[[int], tuple[int, int]]) -> Memory:
    """A model that reads batches of the (rows, length) that `shape` gives for its context; or what
    it takes to rebuild the model, where that is more."""
    base = pretrained_of(model)
    rows, length = shape(base.context() or _LONGEST)
    attached = find_attachments(model)
    own, ends = find_own_weights(model), find_new_ends(model)
    scored = _of_forward(base, own, ends, attached, rows, length)
    rebuilt = filter(None, map(estimate_memory, _list_rebuilt(model)))
    return max([scored, *rebuilt], key=lambda estimate: estimate.total)


@cache
def _of_forward(
    base: Pretrained,
    own: OwnWeights,
    ends: tuple[str, ...],
    attachments: tuple[Attachment, ...],
    rows: int,
    length: int,
) -> Memory:
    """The base and the model made from it, of which one reads `rows` of `length` tokens. ends: see
    `find_new_ends`."""
    with dry_run() as live:
        held = load_weightless(live, base)
        model = load_weightless(live, base) if own == "all" else held.fork()
        for each in attachments:
            each.rehearsed(model.network).attach(model.network)
        if own == "linears":
            with live.part("parameters"):
                renew_matrices(model, ends)
        live.inside("activations", find_trunk(model.network)[1])
        with torch.no_grad():
            ids = torch.zeros(rows, length, dtype=torch.int64)
            model.network(ids, use_cache=False).logits.log_softmax(-1)
    return live.peak()


def _list_rebuilt(model: Input[Model]) -> Iterator[Stage[Any]]:
    """The stages that are run again where a model is needed: those that are not stored."""
    if isinstance(model, Stage) and not model.stored:
        yield model
        for above in model.inputs:
            yield from _list_rebuilt(above)
