"""What models use of torch and transformers that those do not promise to keep.

Each stands with the version in which it was read. Where a library moves one of these, this file
breaks and no other of this folder. Not here: lm-eval's (`harness.compat`), those of methods.

- torch 2.13: `FakeTensorMode`, inside which tensors have a storage but no data;
  `TorchDispatchMode`, which sees every operation; `outside_of_modes`, inside which neither is at
  work; `tree_leaves`, all values of nested containers.
- transformers 5.23: `masking_utils.is_tracing`, which takes tensors without data for compilation;
  `AttentionInterface.get_interface`, by which every attention of the library finds the function
  that computes it, whichever implementation is chosen and a model's own too; how experts in one
  parameter are multiplied, `_experts_implementation` of their configuration: one after the other
  ("eager"), all in one product ("grouped_mm"), with a copy of its weight for each token
  ("batched_mm", which `generate` turns to on a GPU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import masking_utils
from transformers.modeling_utils import AttentionInterface

outside_of_modes = _disable_current_modes
_find_attention = AttentionInterface.get_interface


def pass_attention_through(attend: Callable[..., Any]) -> None:
    """From now on each attention of the library is `attend(function, module, query, key, value, …)`
    in place of `function(module, query, key, value, …)`."""

    def find(self: AttentionInterface, implementation: str, default: Callable[..., Any]) -> Any:
        return partial(attend, _find_attention(self, implementation, default))

    AttentionInterface.get_interface = find


# The functions behind "grouped_mm": rows (n, I), then a weight (E, I, O), which may be a view.
multiply_groups = (torch._grouped_mm, torch.ops.transformers.grouped_mm_fallback)


@contextmanager
def computing_experts(modules: Iterable[Any], ways: Sequence[str]) -> Iterator[None]:
    """Inside, those of the modules (nn.Module) whose implementation the library chooses have one of
    `ways`: the first, unless they have another of them already."""
    configs = {id(m.config): m.config for m in modules if hasattr(m, "is_transposed")}
    before = {key: config._experts_implementation for key, config in configs.items()}
    changed = {key: config for key, config in configs.items() if before[key] not in ways}
    for config in changed.values():
        config._experts_implementation = ways[0]
    try:
        yield
    finally:
        for key, config in changed.items():
            config._experts_implementation = before[key]


__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "computing_experts",
    "masking_utils",
    "multiply_groups",
    "outside_of_modes",
    "pass_attention_through",
    "tree_leaves",
]
