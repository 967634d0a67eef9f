"""A running stage's own folder: its checkpoints, its log, the draft of its value.

    <root>/work/<key>/<token>/    of one owner and attempt; the token is its claim's

Whoever takes a stage over renames the folder to its own token, and goes on from the checkpoints in
it. That is the fence: an owner that was outbid while it was paused, or cut off from the network,
finds its folder gone. Nothing that it still writes can get into the other's, and it leaves
(`Outbid`) without a value, a checkpoint or a record of a failure.
What is not whole has a name that ends in `.draft`; the next owner removes it.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import Outbid
from harness.core.files import explained, write_json

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Scratch:
    """The folder of one owner. It is made by `take_over` and never again."""

    path: Path

    @property
    def stands(self) -> bool:
        """Whether it is still its owner's."""
        try:
            self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True  # a file system that fails for a moment took nothing away
        return True

    def require(self) -> None:
        """Raise Outbid where another owner has taken it over."""
        if not self.stands:
            raise Outbid(f"{self.path.parent.name[:8]} was taken over by another process")

    def say_progress(self, facts: Mapping[str, Any]) -> None:
        """How far the stage is, for whoever looks. A full disk stops nothing."""
        with contextlib.suppress(OSError):
            write_json(self.path / PROGRESS, {**facts, "when": time.time()})


def take_over(folder: Path, token: str) -> Scratch:
    """The scratch of a new owner in a stage's `folder`, with what the one before left.

    Raises StoreError where nothing can be written.
    """
    mine = Scratch(folder / token)
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in sorted(_list_owned(folder), key=_changed):
            _remove(mine.path)  # of several, which only a fault leaves, the one last written counts
            with contextlib.suppress(FileNotFoundError):
                left.rename(mine.path)
        mine.path.mkdir(exist_ok=True)
        for name in (PROGRESS, *(path.name for path in mine.path.glob("*.draft"))):
            _remove(mine.path / name)
    return mine


def read_progress(folder: Path) -> dict[str, Any] | None:
    """What the owner of a stage's `folder` said last: done, total, metrics, when (seconds since the
    epoch)."""
    for owned in _list_owned(folder):
        with contextlib.suppress(OSError, ValueError):
            return dict(json.loads((owned / PROGRESS).read_text()))
    return None


def _list_owned(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _changed(path: Path) -> float:
    """When a folder was changed; 0 where it has gone meanwhile."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path) -> None:
    """Remove a file or a folder, or what of it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
