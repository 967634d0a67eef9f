"""Modes that see every operation of torch: they count what is held, or stop what runs.

Operations of other threads are not seen. Not here: what is made of it (`stopping`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from harness.models.compat import TorchDispatchMode, tree_leaves
from harness.models.dry_run import Live


class Counting(Live):
    """Notes each storage that is made beside the parameters of `network`, as `Live` does, while
    operations compute as ever; and of which of them it was made, as far as its inputs tell."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._given = {
            each.untyped_storage()._cdata: name for name, each in network.named_parameters()
        }
        self._made: dict[int, str | None] = {}  # what storages were made of, as long as they live
        self._sources: list[str | None] = []  # of each storage in the order of their making

    def find_layer(self) -> str | None:
        """The layer of whose parameter most was made when most was held; None: of none."""
        held = most = made = 0
        layer = last = None
        for storage, sign in self._events:
            held += sign * storage.size
            if sign > 0:
                last = self._sources[made] or last
                made += 1
            if held > most:
                most, layer = held, last
        return None if layer is None else layer.removesuffix(".weight")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        name = next(filter(None, map(self._find_name, given)), None)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata in self._given:
                    continue  # a view of a parameter makes nothing
                if storage._cdata not in self._storages:
                    self._sources.append(name)
                    self._made[storage._cdata] = name
                self._note(storage)
        return result

    def _find_name(self, tensor: Tensor) -> str | None:
        key = tensor.untyped_storage()._cdata
        return self._given.get(key) or self._made.get(key)

    def _end(self, key: int) -> None:
        super()._end(key)
        self._made.pop(key, None)


class Stopped(KeyboardInterrupt):
    """What ran was stopped, as an interrupt stops it."""


class Stopping(TorchDispatchMode):
    """Calls `stop` at the first operation after a folder changed for the `changes`-th time."""

    def __init__(self, folder: Path, changes: int, stop: Callable[[], object]) -> None:
        super().__init__()
        self._folder, self._left, self._state = folder, changes, _list_files(folder)
        self._stop = stop

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if (state := _list_files(self._folder)) != self._state:
            self._state, self._left = state, self._left - 1
            if self._left == 0:
                self._stop()
        return func(*args, **(kwargs or {}))


def _list_files(folder: Path) -> list[tuple[str, int]]:
    return sorted((each.name, each.stat().st_mtime_ns) for each in folder.iterdir())
