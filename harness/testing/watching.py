"""Modes that see every operation of torch: they count what is held, or stop what runs.

Operations of other threads are not seen. Not here: what is made of it (`stopping`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from harness.models.compat import TorchDispatchMode, tree_leaves
from harness.models.dry_run import Live


class Counting(Live):
    """Notes each storage that is made, as `Live` does, while operations compute as ever."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return result


class Stopped(KeyboardInterrupt):
    """What ran was stopped, as an interrupt stops it."""


class Stopping(TorchDispatchMode):
    """Raises Stopped at the first operation after a folder changed for the `changes`-th time."""

    def __init__(self, folder: Path, changes: int) -> None:
        super().__init__()
        self._folder, self._left, self._state = folder, changes, _list_files(folder)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (state := _list_files(self._folder)) != self._state:
            self._state, self._left = state, self._left - 1
            if self._left == 0:
                raise Stopped
        return func(*args, **(kwargs or {}))


def _list_files(folder: Path) -> list[tuple[str, int]]:
    return sorted((each.name, each.stat().st_mtime_ns) for each in folder.iterdir())
