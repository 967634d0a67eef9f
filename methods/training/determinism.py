"""The same bits each time: only algorithms that promise that, as far as torch, cuBLAS and NCCL
do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from harness.core.errors import ModelError

_FLASH = "FLASH_ATTENTION_DETERMINISTIC"  # asked of the package by transformers, at every call


@contextlib.contextmanager
def compute_deterministically(device: torch.device) -> Iterator[None]:
    """On CUDA only algorithms that give the same bits each time; elsewhere there are no others.

    Strictly: where the library only warns, the backward pass of attention stays as it is. Raises
    ModelError where something inside has no such algorithm.
    """
    if device.type != "cuda":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    flash = os.environ.get(_FLASH)
    os.environ[_FLASH] = "1"
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # nothing here reads any
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        cause = str(error).partition(",")[0]
        raise ModelError(f"{cause}: set train.deterministic to false") from error
    finally:
        torch.set_deterministic_debug_mode(before[0])
        settings.fill_uninitialized_memory = before[1]
        os.environ.pop(_FLASH)
        if flash is not None:
            os.environ[_FLASH] = flash
