"""What models use of torch and transformers that those do not promise to keep.

Each stands with the version in which it was read. Where a library moves one of these, this file
breaks and no other of this folder. Not here: lm-eval's (`harness.compat`), those of methods.

- torch 2.13: `FakeTensorMode`, inside which tensors have a storage but no data;
  `TorchDispatchMode`, which sees every operation; `outside_of_modes`, inside which neither is at
  work; `tree_leaves`, all values of nested containers.
- transformers 5.23: `masking_utils.is_tracing`, which takes tensors without data for compilation;
  `AttentionInterface.get_interface`, by which every attention of the library finds the function
  that computes it, whichever implementation is chosen and a model's own too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

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


__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "masking_utils",
    "outside_of_modes",
    "pass_attention_through",
    "tree_leaves",
]
