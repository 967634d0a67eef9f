"""Tokens that pass through models when a stage is computed: what its budget is counted in.

    list_passes(train)      # (Pass(student, 327_680, "trained"), Pass(teacher, 327_680, "read"))

Counted are positions, sequences times their length, as settings say them: a text that ends early,
or a sequence that does, is not known before it is there. A class of stages registers what passes;
of others nothing does. Not here: budgets of a grid (`harness.grid.matching`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, singledispatch
from typing import Any, Literal, TypeAlias

from harness.core.errors import ModelError
from harness.core.stage import Stage
from harness.models.layers import matrices
from harness.models.stage import Pretrained, meta_network, pretrained_of

Use: TypeAlias = Literal["trained", "read", "written", "headed"]
_FLOPS: dict[Use, int] = {"trained": 6, "read": 2, "written": 2, "headed": 2}  # a weight and token


@dataclass(frozen=True)
class Pass:
    """Tokens that go through a model: forward and backward where it is trained on them, forward
    where it reads or writes them; where it is headed, through its head alone, from last hidden
    states that are stored.

    instead: the stage that would keep these states for all that read the same, where one could.
    """

    model: Stage[Any]
    tokens: int
    use: Use
    instead: Stage[Any] | None = None


@singledispatch
def list_passes(stage: Stage[Any]) -> tuple[Pass, ...]:
    """What passes models when a stage alone is computed, whose inputs are there."""
    return ()


def count_tokens(passes: Iterable[Pass]) -> int:
    """Tokens that are trained on, and those that are written to be trained on."""
    return sum(each.tokens for each in passes if each.use in ("trained", "written"))


def count_flops(passes: Iterable[Pass]) -> int:
    """6 N a token that is trained on, 2 N a token that is read or written.

    N: the weights that a token is multiplied by, of the blocks' matrices and the head (Kaplan et
    al. 2020, arXiv 2001.08361, section 2.1, which leaves out the head), or of the head alone. Not
    counted: attention between tokens, which grows with their distance, and what a step does once
    for all its tokens. Raises ModelError for a model with experts, of which a token sees some.
    """
    return sum(
        _FLOPS[each.use] * count_weights(each.model, each.use == "headed") * each.tokens
        for each in passes
    )


def count_weights(model: Stage[Any], only_head: bool = False) -> int:
    """N of `count_flops`, of the published model that a graph begins with. Raises ModelError."""
    inside, head = _count_weights(pretrained_of(model))
    return head if only_head else inside + head


@cache
def _count_weights(base: Pretrained) -> tuple[int, int]:
    network = meta_network(base.source, base.trust_remote_code, base.digest)
    config = network.config.get_text_config()
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    if any((getattr(config, name, 0) or 0) > 1 for name in names):
        raise ModelError(
            f"{base.source} has experts, of which a token sees some: its FLOPs are not 6 N a token"
        )
    head = network.get_output_embeddings()
    inside = sum(each.weight.numel() for each in matrices(network).values())
    return inside, 0 if head is None else head.weight.numel()
