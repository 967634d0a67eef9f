"""Files of JSON lines, each checked against its record.

Not here: what is made of them (`export`).
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from harness.core.errors import ReportError
from harness.core.record_lines import from_text, parse_json

T = TypeVar("T")


def read_records(path: Path, kind: type[T]) -> Iterator[tuple[int, T]]:
    """(line number, record) of each line that is not empty; none where there is no such file.

    Raises ReportError with file and line for what is no such record.
    """
    for number, text in _read_lines(path):
        yield number, from_text(kind, text, f"{path}:{number}")


def read_objects(path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, JSON value) of each line that is not empty, unchecked."""
    for number, text in _read_lines(path):
        yield number, parse_json(text, f"{path}:{number}")


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.exists():
        return
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, line


def _read_text(path: Path) -> str:
    if path.suffix != ".gz":
        return path.read_text(encoding="utf-8")
    try:
        return gzip.decompress(path.read_bytes()).decode()
    except (OSError, EOFError, ValueError) as error:
        raise ReportError(f"{path}: not a gzipped text ({error}); export the grid again") from error
