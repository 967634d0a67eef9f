"""Where this process computes. Not here: how much memory a model takes (`footprint`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import torch

from harness.core.errors import ModelError, first_line
from harness.models.widening import widen_products

_chosen: ContextVar[str | None] = ContextVar("device", default=None)
_on_host: ContextVar[bool] = ContextVar("on_host", default=False)


def device() -> torch.device:
    """Where this process computes: BITGRID_DEVICE, else CUDA where there is one, else the CPU.

    Inside `computing_on`: the device that it names.

    Raises ModelError where that device is not there.
    """
    chosen_device = _chosen.get() or os.environ.get("BITGRID_DEVICE")
    return _usable(chosen_device or ("cuda" if torch.cuda.is_available() else "cpu"))


@contextmanager
def computing_on(name: str) -> Iterator[None]:
    """Inside, `device()` is `name`, whatever BITGRID_DEVICE says; no variable is changed."""
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


@contextmanager
def keeping_on_host(on_host: bool = True) -> Iterator[None]:
    """Inside, models that are read stay on the host: a stage takes of them what it needs."""
    token = _on_host.set(on_host)
    try:
        yield
    finally:
        _on_host.reset(token)


def is_kept_on_host() -> bool:
    """Whether a model that is read now stays on the host while `device()` is another."""
    return _on_host.get() and device().type != "cpu"


@cache
def _usable(name: str) -> torch.device:
    # Read once, as cuBLAS starts: without it CUDA may not give the same bits twice.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        usable = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch built without CUDA
        there = ["cpu", *(f"cuda:{n}" for n in range(torch.cuda.device_count()))]
        raise ModelError(
            f"device {name!r} is not there ({first_line(error)}); choices: {', '.join(there)}"
        ) from error
    if usable.type == "cpu":
        widen_products()
    return usable
