"""A computation that is ended by SIGKILL: nothing catches it, no clean-up runs, no buffer is kept.

    with on_one_thread():
        was_killed = run_killed(compute, work, changes=1)    # when a folder has changed once
        was_killed = run_killed(compute, work, seconds=0.2)  # or after a time, wherever it is

It runs in a fork, which has all values at hand and starts in milliseconds; a new process would
first import torch for seconds. Threads that torch has started do not live in a fork, so that it
computes on one; who compares computes on one too. A fork cannot use a GPU: there, and where the
system has no forks, the computation is stopped by an interrupt. Not here: what is compared
(`stopping`).
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from harness.models import device
from harness.testing.watching import Stopped, Stopping

_LONGEST = 20.0  # seconds that a fork may take; a lock that a thread held may stop it for good


@contextmanager
def on_one_thread() -> Iterator[None]:
    """Operations of torch inside run on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def can_kill() -> bool:
    """Whether computations are killed here; else they are interrupted."""
    return sys.platform == "linux" and device().type == "cpu"


def run_killed(
    compute: Callable[[], object],
    folder: Path,
    changes: int | None = None,
    seconds: float | None = None,
) -> bool:
    """Run `compute`, and kill it at the first operation after `folder` has changed so many times,
    or after some seconds. Whether it was killed: else it came to its end, or raised an error."""
    if not can_kill():
        return _interrupt(compute, folder, changes or 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, where threads sleep
        child = os.fork()
    if child == 0:
        _run_child(compute, folder, changes)
    try:
        return _wait(child, seconds)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise


def _interrupt(compute: Callable[[], object], folder: Path, changes: int) -> bool:
    try:
        with Stopping(folder, changes, _raise_stopped):
            compute()
    except Stopped:
        return True
    return False


def _raise_stopped() -> None:
    raise Stopped


def _run_child(compute: Callable[[], object], folder: Path, changes: int | None) -> None:
    """Never returns: what the parent had begun is the parent's to end."""
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        kill = partial(os.kill, os.getpid(), signal.SIGKILL)
        with nullcontext() if changes is None else Stopping(folder, changes, kill):
            compute()
        code = 0
    finally:
        os._exit(code)


def _wait(child: int, seconds: float | None) -> bool:
    """Wait for a child's end, and kill it after so long. Whether it was killed."""
    end = time.monotonic() + (_LONGEST if seconds is None else seconds)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.WIFSIGNALED(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
