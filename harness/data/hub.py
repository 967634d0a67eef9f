"""Data sets of the hub by their address there, from a mirror folder where one is set.

A mirror holds the rows of a data set in its own column names, one file a split:

    MIRROR/Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl.gz      path, configuration, split
    MIRROR/Salesforce/wikitext/REVISION                the commit it was taken from, and digests

BITGRID_MIRROR names the folder, else a grid does (`mirror:`). Compute nodes without a network read
from it, and so does a laptop without an account. `digest` pins a split before anything runs. Not
here: what a text's rows mean (`text`), which data sets tasks read (`tasks`), what fills a mirror
(`prefetch`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import TextError, first_line, nearest
from harness.core.hub_cache import cached_commit

SUFFIXES = (".jsonl", ".jsonl.gz")


class Split(NamedTuple):
    """A split of a data set, and its files in the repository where that is too large to load whole."""

    path: str
    config: str | None
    split: str
    files: str | None = None

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.config})' if self.config else ''} {self.split}"


consulted: set[Path] = set()  # the mirrored files that a grid's keys rest on
_filling: ContextVar[Path | None] = ContextVar("filling", default=None)


def use(folder: Path | None) -> None:
    """The mirror that a grid names, from now on; the environment's own wins.

    Kept in the environment, so that processes that this one starts read the same.
    """
    consulted.clear()
    os.environ.pop("BITGRID_GRID_MIRROR", None)
    if folder is not None:
        os.environ["BITGRID_GRID_MIRROR"] = str(folder)


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Inside, what the mirror lacks is asked of the hub; the mirror is `folder` where none is named."""
    token = _filling.set(folder)
    try:
        yield
    finally:
        _filling.reset(token)


def mirror() -> Path | None:
    """The mirror folder, or None. Raises TextError where it is named but not there."""
    named = os.environ.get("BITGRID_MIRROR") or os.environ.get("BITGRID_GRID_MIRROR")
    if not named:
        return _filling.get()
    folder = Path(named).expanduser()
    if not folder.is_dir() and not _filling.get():
        raise TextError(f"the mirror folder {folder} is not there; 'bitgrid prefetch' makes one")
    return folder


def mirrored(path: str, config: str | None) -> dict[str, Path]:
    """The mirror's files of a data set, by split; empty where it has none of them."""
    root = mirror()
    folder = None if root is None else root / path / (config or "default")
    if folder is None or not folder.is_dir():
        return {}
    files = sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES))
    return {p.name.removesuffix(".gz").removesuffix(".jsonl"): p for p in files}


def mirrored_split(path: str, config: str | None, split: str) -> Path | None:
    """The mirror's file of a split; None without a mirror, or while it is being filled.

    Raises TextError where there is a mirror but not the file, saying what it has.
    """
    root = mirror()
    if root is None:
        return None
    found = mirrored(path, config)
    if split in found:
        consulted.add(found[split])
        return found[split]
    if _filling.get():
        return None
    where = root / path / (config or "default")
    has = nearest(split, found) if found else "it has nothing of this data set"
    raise TextError(f"the mirror lacks {where / split}.jsonl[.gz]: {has}")


def digest(
    path: str,
    config: str | None,
    split: str,
    texts: Iterable[str] = (),
    columns: Iterable[str] = (),
) -> str:
    """What pins a split: the data set's commit where it is known, else the mirrored file's content.

    Raises TextError where the split is neither mirrored nor, by the hub's word, there, and where the
    mirrored file is broken, lacks one of `columns`, or a text in one of `texts`.
    """
    file = mirrored_split(path, config, split)
    if file is None:
        return commit(path)[:24]
    facts = file.stat()
    check_columns(file, columns)
    check_texts(file, texts)
    recorded, content = pinned(path), _content(file, facts.st_size, facts.st_mtime_ns)
    return recorded[:24] if recorded and _as_fetched(file, content) else content


def pinned(path: str) -> str | None:
    """The commit that the mirror has a data set at, where it says so."""
    root = mirror()
    recorded = None if root is None else root / path / "REVISION"
    if recorded is None or not recorded.is_file():
        return None
    consulted.add(recorded)
    return recorded.read_text().split()[0]


def record(path: str, file: Path) -> None:
    """Note in REVISION what a fetched file holds, so that one changed by hand is not taken for it."""
    root = mirror()
    assert root is not None
    facts = file.stat()
    with (root / path / "REVISION").open("a") as lines:
        content = _content(file, facts.st_size, facts.st_mtime_ns)
        lines.write(f"{content} {file.relative_to(root / path)}\n")


def _as_fetched(file: Path, content: str) -> bool:
    """Whether a file still holds what REVISION notes of it, where it notes anything."""
    folder = file.parent.parent
    lines = [line.split(" ", 1) for line in (folder / "REVISION").read_text().splitlines()[1:]]
    noted = {name: digest for digest, name in lines}
    return noted.get(str(file.relative_to(folder)), content) == content


def commit(path: str) -> str:
    """The commit of a data set: the mirror's, where it says so, else the hub's now."""
    return pinned(path) or _commit(path)


def revision(path: str) -> str | None:
    """The commit to load a data set at; None offline, where there is only what the cache has."""
    return None if _offline() else commit(path)


def rows(path: str, config: str | None, split: str, files: str | None = None) -> Any:
    """The rows of a split, a `datasets.Dataset`.

    `files`: the split's files inside the repository, where it is too large to load whole.
    """
    from datasets import load_dataset

    file = mirrored_split(path, config, split)
    try:
        if file is not None:
            return typed_rows(file)
        if files:
            return load_dataset(
                path, data_files={split: files}, split=split, revision=revision(path)
            )
        return load_dataset(path, config, split=split, revision=revision(path))
    except (OSError, ValueError, ConnectionError) as error:
        raise TextError(f"data set {path} cannot be loaded: {first_line(error)}") from error


def typed_rows(file: Path) -> Any:
    """The rows of a mirrored file, a `datasets.Dataset` in memory, with the types of its JSON.

    The library's own JSON loader takes a column of texts that look like dates for dates.
    """
    from datasets import Dataset

    try:
        return Dataset.from_list([row for _, row in json_rows(file)])
    except (TypeError, ValueError) as error:  # Arrow's own are both
        raise TextError(f"{file}: rows do not agree in type: {first_line(error)}") from error


def json_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows of a file of JSON lines, with their line numbers. Raises TextError for a broken line.

    Lines are those of bytes: a text may hold other line ends, U+2028, as they are.
    """
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as opened:
            lines = io.BufferedReader(opened, 2**20)
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, _row(f"{file}: line {number}", line)
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{file} cannot be read: {error}") from error


def _row(where: str, line: bytes) -> dict[str, Any]:
    try:
        text = line.decode().strip()
        row = json.loads(text)
    except json.JSONDecodeError as error:
        words = f"{error.msg} (column {error.pos + 1})"
        raise TextError(f"{where} is not a JSON object: {words}") from None
    except UnicodeDecodeError as error:
        raise TextError(f"{where} is not text in UTF-8: {error.reason}") from None
    if not isinstance(row, dict):
        raise TextError(f"{where} is not a JSON object: {text[:40]}")
    return row


def decoded(file: Path) -> str:
    """The text in a file. Raises TextError where it is not UTF-8."""
    try:
        return unpacked(file).decode()
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise TextError(f"{file}: line {line} is not text in UTF-8: {error.reason}") from None


def unpacked(file: Path) -> bytes:
    """The bytes of a file, of a gzip file what it holds. Raises TextError where that is broken."""
    try:
        raw = file.read_bytes()
        return gzip.decompress(raw) if file.suffix == ".gz" else raw
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
    """Every line of a file is read, once: what is broken there is met before anything is computed."""
    found = _Survey({}, set())
    for number, row in json_rows(file):
        found.shapes.setdefault(tuple((name, type(held)) for name, held in row.items()), number)
        for name, held in row.items():
            if name not in found.filled and isinstance(held, str) and held.strip():
                found.filled.add(name)
    if not found.shapes:
        raise TextError(f"{file} is empty")
    return found


def _offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


@cache
def _commit(path: str) -> str:
    from huggingface_hub import HfApi

    if _offline() and (cached := cached_commit("datasets", path)):
        return cached
    try:
        return str(HfApi().dataset_info(path).sha)
    except Exception as error:  # the client's own, its transport's, the system's
        raise TextError(
            f"data set {path} is not reachable on the hub, and no mirror with it is set "
            f"(BITGRID_MIRROR): {first_line(error)}"
        ) from error


@cache
def _content(file: Path, size: int, mtime: int) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:24]
