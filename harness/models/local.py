"""Models in a local folder in Hugging Face's format, or in a GGUF file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import ModelError
from harness.core.reads import LocalFiles, Read
from harness.models.gguf_header import check_header
from harness.models.registry import MODELS, ModelSource, Pin
from harness.models.sizes import check_side_files
from harness.models.storage import Storage, read_gguf, read_safetensors

SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".py", ".jinja")


@dataclass(frozen=True)
class FolderModel(ModelSource):
    """A model folder, or a GGUF file. Its digest is over all files that decide what it computes."""

    path: Path
    about: str = "a folder in Hugging Face's format, or a GGUF file"
    caveat: str | None = None

    def pin(self, name: str) -> Pin:
        self._check(name)
        digest = self._digest(tuple(_files(self.path)))
        return Pin(name if name in MODELS.load() else str(self.path.resolve()), digest)

    def place(self, revision: str | None) -> dict[str, Any]:
        if self.path.is_file():
            return {"where": str(self.path.parent), "gguf_file": self.path.name}
        return {"where": str(self.path)}

    def folder(self) -> Path | None:
        return self.path

    def storage(self, pin: Pin) -> Storage | None:
        return read_gguf(self.path) if self.path.is_file() else read_safetensors(self.path)

    def reads(self, pin: Pin) -> tuple[Read, ...]:
        return (LocalFiles(self.files(pin)),)

    def files(self, pin: Pin) -> tuple[Path, ...]:
        return tuple(_files(self.path))

    def holds(self, pin: Pin, paths: Sequence[Path]) -> bool:
        return self._digest(paths) == pin.digest

    def _digest(self, paths: Sequence[Path]) -> str:
        """Of the model's files, or of copies of them."""
        return _digest_file(paths[0]) if self.path.is_file() else _digest_files(paths)

    def _check(self, name: str) -> None:
        if self.path.is_file() and self.path.suffix == ".gguf":
            check_header(self.path)
            return
        if not self.path.is_dir():
            raise ModelError(f"model {name!r}: no folder or .gguf file lies at {self.path}")
        if not (self.path / "config.json").is_file():
            raise ModelError(f"model {name!r}: {self.path} has no config.json")
        check_side_files(self.path)


def _files(path: Path) -> Iterator[Path]:
    """The files of a model folder whose content decides what the model computes, or a GGUF file."""
    if path.is_file():
        return iter([path])
    return (p for p in sorted(path.iterdir()) if p.is_file() and p.suffix in SUFFIXES)


def _digest_files(paths: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in paths:
        total.update(f"{path.name}:{_digest_file(path, 64)}\n".encode())
    return total.hexdigest()[:24]


def _digest_file(path: Path, digits: int = 24) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:digits]
