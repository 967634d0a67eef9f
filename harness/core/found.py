"""What manifests say, in short, remembered from one look at the store to the next.

    <root>/index.json    for each value the stamp of its manifest's file, and what it says

A cache and never the truth: what it says of a manifest counts while that file has the stamp (inode,
size, time of change) that it had. It begins with a digest of its own text: without the right one
nothing of it counts. It may be missing, old, damaged or removed at any time, which costs time and
nothing else. Not here: the values (`store`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import StoreError
from harness.core.files import write_text

SCHEMA = 2
_HEAD = '{"sha256": "%s", "index": '
_FEW = 100  # manifests that are read again rather than remembered


@dataclass(frozen=True)
class Found:
    """What a manifest says, in short."""

    stamp: tuple[int, int, int]  # of its file: inode, size, time of change in ns
    fault: str | None  # why it cannot be read
    files: Mapping[str, int] = field(default_factory=dict)
    host: str | None = None
    code: str | None = None
    packages: Mapping[str, str] = field(default_factory=dict)


class Index:
    """What is known of manifests, by key."""

    def __init__(self, path: Path) -> None:
        self._path, self._new = path, 0
        self._found = dict(_read(path))

    def get(self, key: str, stamp: tuple[int, int, int]) -> Found | None:
        """What a manifest says whose file has this stamp; None where it must be read."""
        found = self._found.get(key)
        return found if found is not None and found.stamp == stamp else None

    def add(self, key: str, found: Found) -> None:
        self._found[key] = found
        self._new += 1

    def forget(self, key: str) -> None:
        self._found.pop(key, None)

    def save(self) -> None:
        """Keep it for the next process, without values that are gone, where that saves something
        and can be done."""
        if not self._found:
            return
        with contextlib.suppress(OSError, StoreError):
            there = set(os.listdir(self._path.parent / "values"))
            gone = self._found.keys() - there
            if self._new + len(gone) < _FEW:
                return
            for key in gone:
                self.forget(key)
            text = json.dumps(_describe(self._found))  # on one line: indents take 20 times as long
            write_text(self._path, f"{_HEAD % _digest(text.encode())}{text}}}")
            self._new = 0


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def _describe(found: Mapping[str, Found]) -> dict[str, Any]:
    """As JSON. Values share most of what they say of packages, which is told once."""
    packages: dict[tuple[tuple[str, str], ...], int] = {}
    values = {}
    for key, each in found.items():
        if each.fault is None:
            number = packages.setdefault(tuple(sorted(each.packages.items())), len(packages))
            values[key] = [*each.stamp, dict(each.files), each.host, each.code, number]
    return {"schema": SCHEMA, "packages": [dict(each) for each in packages], "values": values}


def _read(path: Path) -> dict[str, Found]:
    with contextlib.suppress(OSError, StoreError, ValueError, TypeError, KeyError, IndexError):
        raw = path.read_bytes()
        text = raw[len(_HEAD % _digest(b"")) : -1]
        if raw != f"{_HEAD % _digest(text)}".encode() + text + b"}":
            return {}
        index = json.loads(text)
        if index["schema"] == SCHEMA:
            return {
                key: Found((inode, size, when), None, files, host, code, index["packages"][number])
                for key, (inode, size, when, files, host, code, number) in index["values"].items()
            }
    return {}
