"""The trash of a store: where what nobody needs lies for a while before it is removed.

    <root>/trash/<date>-<time>-<id>/values/<key>/    as it lay in the store; so work/, plans/ …

Everything goes there and comes back by one rename, so that no moment leaves half of it. Its age is
in the folder's name (UTC), not in a file's times, which a copy of the store may change.
Not here: what nobody needs (`harness.cluster.garbage`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from calendar import timegm
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

RESTORED = ("values", "work")  # a failure that is forgotten stays so


@dataclass(frozen=True)
class Discarded:
    """One thing in the trash."""

    path: Path
    place: Path  # where it lay, relative to the store
    since: float  # seconds since the epoch

    @property
    def key(self) -> str:
        return self.place.name.split(".")[0]


@dataclass(frozen=True)
class Trash:
    """The trash of the store in folder `root`."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "trash"

    def open(self) -> Path:
        """A name, not made yet, for what is discarded together now."""
        name = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        return self.folder / f"{name}-{secrets.token_hex(2)}"

    def discard(self, path: Path, together: Path, kind: str | None = None) -> Path:
        """Move a file or folder of the store to the trash; where it lies now. Raises OSError.

        `kind`: in place of the folder that it lay in, where it must not come back.
        """
        place = path.relative_to(self.root)
        to = together / (place if kind is None else Path(kind, place.name))
        to.parent.mkdir(parents=True, exist_ok=True)
        path.rename(to)
        return to

    def contents(self) -> list[Discarded]:
        """What lies in the trash, the latest first; nothing where it cannot be read."""
        return list(self._walk())

    def _walk(self) -> Iterator[Discarded]:
        for together in reversed(_names(self.folder)):
            try:
                since = timegm(time.strptime(together[:15], "%Y%m%d-%H%M%S"))
            except ValueError:
                continue  # somebody else's
            for kind in _names(self.folder / together):
                for name in _names(self.folder / together / kind):
                    path = self.folder / together / kind / name
                    yield Discarded(path, Path(kind, name), float(since))

    def restore(self, keys: Container[str]) -> list[Path]:
        """Put values and scratch of these keys back where nothing else lies; where they lie now.

        Raises OSError where the store cannot be written.
        """
        restored = []
        for each in self.contents():
            kind = each.place.parts[0]
            if kind not in RESTORED or each.key not in keys:
                continue
            if kind == "values" and not (each.path / "manifest.json").exists():
                continue  # it was never whole
            if self.put_back(each):
                restored.append(self.root / each.place)
        return restored

    def put_back(self, discarded: Discarded) -> bool:
        """Whether something is back in its place; not where another lies there by now."""
        place = self.root / discarded.place
        if place.exists():
            return False
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            discarded.path.rename(place)
        except OSError:
            if discarded.path.exists() and not place.exists():
                raise
            return False
        self._tidy(discarded.path.parent)
        return True

    def remove(self, discarded: Discarded) -> None:
        """Remove something for good. Raises OSError."""
        # First out of sight: nobody puts back what is half removed.
        hidden = self.folder / f".removed.{secrets.token_hex(4)}"
        discarded.path.rename(hidden)
        _remove(hidden)
        self._tidy(discarded.path.parent)

    def remove_remains(self) -> None:
        """Remove what an earlier removal left that was killed."""
        for name in _names(self.folder, ".removed."):
            with contextlib.suppress(OSError):
                _remove(self.folder / name)

    def _tidy(self, folder: Path) -> None:
        """Remove folders of the trash that are empty now."""
        with contextlib.suppress(OSError):
            while folder != self.folder:
                folder.rmdir()
                folder = folder.parent


def measure(path: Path) -> int:
    """Bytes of a file, or of all files in a folder, as far as they can be seen."""
    total = 0
    try:
        if not path.is_dir():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    total += measure(Path(entry.path))
                else:
                    total += entry.stat(follow_symlinks=False).st_size
    except OSError:
        pass
    return total


def _names(folder: Path, prefix: str = "") -> list[str]:
    """Names in a folder; without a prefix, those that are not hidden."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [n for n in names if (n.startswith(prefix) if prefix else not n.startswith("."))]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
