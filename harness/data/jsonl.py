"""Files of JSON lines and of plain text, gzip or not: read, and checked before anything runs.

Not here: which file holds what (`hub`, `sources`).
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import TextError, first_line

SUFFIXES = (".jsonl", ".jsonl.gz")
_UNPACKED, _EXPANSION = 16 * 2**20, 100  # bytes of any gzip file; times its size of a larger one


def read_dataset(file: Path) -> Any:
    """The rows of a mirrored file, a `datasets.Dataset` in memory, with the types of its JSON.

    The library's own JSON loader takes a column of texts that look like dates for dates.
    """
    from datasets import Dataset

    try:
        return Dataset.from_list([row for _, row in json_rows(file)])
    except (TypeError, ValueError) as error:  # Arrow's own are both
        raise TextError(f"{file}: rows do not agree in type: {first_line(error)}") from error


def json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of JSON lines, with line numbers. Raises TextError for a broken line.

    Lines are those of bytes: a text may hold other line ends, U+2028, as they are.
    """
    try:
        with _open(file) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(f"{file}: line {number}", line)
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{file} cannot be read: {error}") from error


@contextmanager
def _open(file: Path) -> Iterator[io.BufferedReader]:
    """What a file holds, in bytes; a gzip file's is read as it is unpacked."""
    with file.open("rb") as packed:
        if file.suffix != ".gz":
            yield io.BufferedReader(packed, 2**20)
            return
        most = max(_UNPACKED, _EXPANSION * file.stat().st_size)
        with gzip.GzipFile(fileobj=packed) as unpacked:
            yield io.BufferedReader(_Bounded(unpacked, file, most), 2**20)


class _Bounded(io.RawIOBase):
    """A stream that raises TextError once it has given more than `most` bytes."""

    def __init__(self, stream: gzip.GzipFile, file: Path, most: int) -> None:
        self.stream, self.file, self.most, self.count = stream, file, most, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self.stream.read(len(buffer))
        self.count += len(part)
        if self.count > self.most:
            raise TextError(
                f"{self.file} cannot be read: it unpacks to more than {_EXPANSION} times its size, "
                "as no text does"
            )
        buffer[: len(part)] = part
        return len(part)


def _row(where: str, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode().strip()
        row = json.loads(text)
    except json.JSONDecodeError as error:
        fault = f"{error.msg} (column {error.pos + 1})"
        raise TextError(f"{where} is not a JSON object: {fault}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"{where} is not text in UTF-8: {error.reason}") from None
    except (ValueError, RecursionError) as error:  # 5,000 digits; lists within lists
        raise TextError(f"{where} is not a JSON object: {first_line(error)}") from None
    if not isinstance(row, dict):
        raise TextError(f"{where} is not a JSON object: {text[:40]}")
    return row


def read_text(file: Path) -> str:
    """The text in a file. Raises TextError where it is not UTF-8."""
    try:
        return read_bytes(file).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise TextError(f"{file}: line {line} is not text in UTF-8: {error.reason}") from None


def read_bytes(file: Path) -> bytes:
    """The bytes of a file, of a gzip file what it holds. Raises TextError where that is broken."""
    try:
        with _open(file) as opened:
            return opened.read()
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{file} cannot be read: {error}") from error


def check_columns(file: Path, columns: Iterable[str]) -> None:
    """Raise TextError where not all rows of a file have all the columns."""
    for shape, line in _surveyed(file).shapes.items():
        names = [name for name, _ in shape]
        for column in columns:
            if column not in names:
                there = ", ".join(names) or "none"
                raise TextError(f"{file}: line {line} has no column {column!r}; columns: {there}")


def check_texts(file: Path, columns: Iterable[str]) -> None:
    """Raise TextError where a file's rows do not all have a text in each of the columns."""
    check_columns(file, columns)
    shapes, filled = _surveyed(file)
    for column in columns:
        for shape, line in shapes.items():
            if (column, str) not in shape:
                raise TextError(f"{file}: line {line} has no text in column {column!r}")
        if column not in filled:
            raise TextError(f"{file}: every text in column {column!r} is blank")


class _Survey(NamedTuple):
    """The columns of rows with their types, each kind of row with its first line; and which columns
    have a text that is not blank."""

    shapes: dict[tuple[tuple[str, type], ...], int]
    filled: set[str]


def _surveyed(file: Path) -> _Survey:
    facts = file.stat()
    return _survey(file, facts.st_size, facts.st_mtime_ns)


@cache
def _survey(file: Path, size: int, mtime: int) -> _Survey:
    """Every line of a file is read, once: what is broken is met before anything is computed."""
    survey = _Survey({}, set())
    for number, row in json_rows(file):
        survey.shapes.setdefault(tuple((name, type(held)) for name, held in row.items()), number)
        for name, held in row.items():
            if name not in survey.filled and isinstance(held, str) and held.strip():
                survey.filled.add(name)
    if not survey.shapes:
        raise TextError(f"{file} is empty")
    return survey
