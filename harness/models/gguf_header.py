"""Whether a GGUF file's metadata is whole and of a size that a model has, before it is read.

    check_header(path)                       # ModelError where it is broken, or absurd

The library reads each item of a list by itself, and believes every count. The format: GGUF's
specification, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md). Not here: what the
metadata says (transformers, `storage`).
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from harness.core.errors import ModelError

_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes, by type
_STRING, _LIST = 8, 9
_MOST_ENTRIES = 100_000  # of metadata, and tensors; models have tens, and thousands
_MOST_ITEMS = 4_000_000  # of all lists; 256,000 tokens have about 1.5 million
_DEEPEST = 4  # lists in lists


def check_header(path: Path) -> None:
    """Raise ModelError where the metadata ends early, or counts more than any model has."""
    try:
        with path.open("rb") as file:
            _Header(file).check()
    except (ValueError, struct.error) as error:
        reason = "it ends within its metadata" if isinstance(error, struct.error) else error
        raise ModelError(f"{path}: not a GGUF file that can be read: {reason}") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None


class _Header:
    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, _MOST_ITEMS
        self.size, self.order = os.fstat(file.fileno()).st_size, "<"

    def check(self) -> None:
        if self.file.read(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        (version,) = self.read("I")
        if version & 0xFFFF == 0:  # written where the first byte counts most
            self.order = ">"
        tensors, entries = self.read("QQ")
        for count, what in ((tensors, "tensors"), (entries, "entries of metadata")):
            if count > _MOST_ENTRIES:
                raise ValueError(f"{count:,} {what} are more than {_MOST_ENTRIES:,}")
        for _ in range(entries):
            self.skip_text()
            self.skip_value(*self.read("I"))

    def read(self, kinds: str) -> tuple[int, ...]:
        layout = struct.Struct(self.order + kinds)
        return layout.unpack(self.file.read(layout.size))

    def skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise ValueError(f"{count:,} bytes of metadata are more than it has")
        self.file.seek(count, os.SEEK_CUR)

    def skip_text(self) -> None:
        self.skip(*self.read("Q"))

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind == _STRING:
            self.skip_text()
        elif kind in _WIDTHS:
            self.skip(_WIDTHS[kind])
        elif kind == _LIST and depth < _DEEPEST:
            kind, count = self.read("IQ")
            self.left -= count
            if self.left < 0:
                raise ValueError(f"its lists have more than {_MOST_ITEMS:,} items")
            if kind in _WIDTHS:
                self.skip(_WIDTHS[kind] * count)
            else:
                for _ in range(count):
                    self.skip_value(kind, depth + 1)
        else:
            raise ValueError(f"a value of type {kind} in its metadata")
