"""What models use of torch and transformers that those do not promise to keep.

Each stands with the version in which it was read. Where a library moves one of these, this file
breaks and no other of this folder. Not here: lm-eval's (`harness.compat`), those of methods.

- torch 2.13: `FakeTensorMode`, inside which tensors have a storage but no data;
  `TorchDispatchMode`, which sees every operation; `outside_of_modes`, inside which neither is at
  work; `tree_leaves`, all values of nested containers.
- transformers 5.23: `masking_utils.is_tracing`, which takes tensors without data for compilation.
"""

from __future__ import annotations

from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from transformers import masking_utils

outside_of_modes = _disable_current_modes

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "masking_utils",
    "outside_of_modes",
    "tree_leaves",
]
