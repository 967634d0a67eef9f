"""Fills a mirror: splits of data sets from the hub, as JSON lines at a recorded commit.

Data that are there already stay as they are, also when the hub has moved on. Not here: what reads a
mirror (`hub`), which splits a grid needs (each stage's `reads`).
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import TextError
from harness.core.reads import Fetched, Read
from harness.data.hub import Access, Split, digest_of


@dataclass(frozen=True)
class DataSetRead(Read):
    """A split of a hub's data set."""

    split: Split
    access: Access

    def files(self) -> Iterable[Path]:
        return self.access.files(self.split)

    def fetch(self) -> Fetched:
        """The split into the mirror, at the commit of what the mirror has of its data set."""
        split, access, root = self.split, self.access, self.access.folder
        if root is None:
            raise TextError(f"{split} cannot be fetched: no mirror is named to put it in")
        file = access.find(split)
        new = file is None
        if file is None:
            file = access.place(split.path, split.config or "default", f"{split.split}.jsonl.gz")
            _pin(root / split.path, access.commit(split.path))
            _write(file, access.rows(split), split)
            if access.pinned(split.path):
                note_content(root / split.path, file)
        revision = access.pinned(split.path) or "by content"
        return Fetched(str(split), revision, file.stat().st_size, new)


def note_content(folder: Path, file: Path) -> None:
    """Note in a data set's REVISION what a fetched file holds: one changed by hand is not taken for
    it."""
    with (folder / "REVISION").open("a") as lines:
        lines.write(f"{digest_of(file)} {file.relative_to(folder)}\n")


def _pin(folder: Path, commit: str) -> None:
    """Say which commit the rows to come are of; rows of unknown origin are not claimed for it."""
    if not any(folder.rglob("*.jsonl*")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "REVISION").write_text(commit + "\n")


def _write(file: Path, rows: Any, split: Split) -> None:
    """Rows as JSON lines, under the file's name only once they are whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with draft.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
            for row in rows:
                packed.write(json.dumps(row).encode() + b"\n")
        draft.rename(file)
    except TypeError as error:  # images, times
        raise TextError(f"{split} cannot be kept as JSON: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
