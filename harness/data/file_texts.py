"""Texts in a file of the user's own: `file:PATH`.

A .txt file has blank lines between documents, a .jsonl file a document a line in the column `text`;
either may be gzip. Not here: how such files are read (`jsonl`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.core.errors import TextError, nearest
from harness.core.paths import read_path
from harness.core.reads import LocalFiles, Read
from harness.data import jsonl
from harness.data.hub import Access
from harness.data.sources import TextSource, register_text

SUFFIXES = (".txt", ".txt.gz", *jsonl.SUFFIXES)


@dataclass(frozen=True)
class FileText(TextSource):
    """A text file; the part is its path. All splits are the whole file."""

    about = "a .txt or .jsonl file of your own"
    quick = True

    def resolve(self, part: str) -> str:
        path = read_path(part, TextError).resolve()
        if not path.is_file():
            raise TextError(f"file {path} does not exist")
        if not path.name.endswith(SUFFIXES):
            suffix = "".join(path.suffixes[-2:])
            raise TextError(
                f"{path.suffix!r} is not a kind of text file; {nearest(suffix, SUFFIXES)}"
            )
        return str(path)

    def pin(self, part: str, split: str, access: Access) -> str:
        facts = Path(part).stat()
        return _checked_digest(Path(part), facts.st_size, facts.st_mtime_ns)

    def documents(self, part: str, split: str, access: Access) -> list[str]:
        return _read(Path(part))

    def reads(self, part: str, split: str, access: Access) -> tuple[Read, ...]:
        return (LocalFiles((Path(part),)),)


@cache
def _checked_digest(path: Path, size: int, mtime: int) -> str:
    """The digest of a text file. Raises TextError where no documents can be read from it."""
    if not any(map(str.strip, _read(path))):
        raise TextError(f"{path} is empty")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def _read(path: Path) -> list[str]:
    if path.name.endswith(jsonl.SUFFIXES):
        jsonl.check_texts(path, ["text"])
        return [row["text"] for _, row in jsonl.json_rows(path)]
    return [part.strip() for part in jsonl.read_text(path).split("\n\n") if part.strip()]


register_text("file", FileText())
