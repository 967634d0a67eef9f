"""Data sets of the hub by their address there, from a mirror folder where one is set.

A mirror holds the rows of a data set in its own column names, one file a split:

    MIRROR/Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl.gz      path, configuration, split
    MIRROR/Salesforce/wikitext/REVISION                the commit it was taken from, and digests

BITGRID_MIRROR names the folder, else a grid does (`mirror:`). Compute nodes without a network read
from it, and so does a laptop without an account. `Access.digest` pins a split before anything runs.
Not here: what a text's rows mean (`hub_texts`), which data sets tasks read
(`harness.evaluation.task_files`), how a mirror is filled (`fill`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.core.errors import TextError, first_line, nearest
from harness.core.hub_cache import cached_commit
from harness.core.paths import read_path
from harness.data.jsonl import SUFFIXES, check_columns, check_texts, read_dataset


class Split(NamedTuple):
    """A split of a data set; `files` of the repository, where it is too large to load whole."""

    path: str
    config: str | None
    split: str
    files: str | None = None

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.config})' if self.config else ''} {self.split}"


@dataclass(frozen=True)
class Access:
    """Where data sets are read: the mirror `folder`, or the hub where there is none.

    `fills`: the mirror is being filled, so that what it lacks is asked of the hub.
    """

    folder: Path | None = None
    fills: bool = False

    def mirrored(self, path: str, config: str | None) -> dict[str, Path]:
        """The mirror's files of a data set, by split; empty where it has none of them."""
        if self.folder is None or not (folder := self.place(path, config or "default")).is_dir():
            return {}
        files = sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES))
        return {p.name.removesuffix(".gz").removesuffix(".jsonl"): p for p in files}

    def place(self, path: str, *names: str) -> Path:
        """Where a mirror has a data set, or what is named of it. Raises TextError where that lies
        outside of the mirror: names come out of task files."""
        assert self.folder is not None
        for name in (path, *names):
            if any(part in ("", ".", "..") for part in str(name).split("/")) or "\0" in str(name):
                raise TextError(
                    f"data set {path}: {name!r} is no name on the hub, and would lie outside of "
                    "the mirror"
                )
        return self.folder.joinpath(path, *map(str, names))

    def find(self, split: Split) -> Path | None:
        """The mirror's file of a split; None without a mirror, or while it is being filled.

        Raises TextError where there is a mirror but not the file, saying what it has.
        """
        if self.folder is None:
            return None
        files = self.mirrored(split.path, split.config)
        if split.split in files:
            return files[split.split]
        if self.fills:
            return None
        where = self.place(split.path, split.config or "default", split.split)
        has = nearest(split.split, files) if files else "it has nothing of this data set"
        raise TextError(f"the mirror lacks {where}.jsonl[.gz]: {has}")

    def files(self, split: Split) -> tuple[Path, ...]:
        """The mirrored files that a split's digest rests on."""
        if self.folder is None or (file := self.find(split)) is None:
            return ()
        revision = self.place(split.path, "REVISION")
        return (file, revision) if revision.is_file() else (file,)

    def digest(self, split: Split, texts: Iterable[str] = (), columns: Iterable[str] = ()) -> str:
        """What pins a split: its data set's commit where that is known, else the mirrored content.

        Raises TextError where the split is neither mirrored nor, by the hub's word, there, and
        where the mirrored file is broken, lacks one of `columns`, or a text in one of `texts`.
        """
        file = self.find(split)
        if file is None:
            return self.commit(split.path)[:24]
        check_columns(file, columns)
        check_texts(file, texts)
        pinned, content = self.pinned(split.path), digest_of(file)
        return pinned[:24] if pinned and _is_as_fetched(file, content) else content

    def pinned(self, path: str) -> str | None:
        """The commit that the mirror has a data set at, where it says so."""
        if self.folder is None or not (revision := self.place(path, "REVISION")).is_file():
            return None
        return revision.read_text().split()[0]

    def commit(self, path: str) -> str:
        """The commit of a data set: the mirror's, where it says so, else the hub's now."""
        return self.pinned(path) or _commit(path)

    def revision(self, path: str) -> str | None:
        """The commit to load a data set at; None offline, where only the cache is there."""
        return None if _is_offline() else self.commit(path)

    def rows(self, split: Split) -> Any:
        """The rows of a split, a `datasets.Dataset`. Raises TextError where they are not there."""
        from datasets import load_dataset

        path, config, name, files = split
        file = self.find(split)
        try:
            if file is not None:
                return read_dataset(file)
            if files:
                return load_dataset(
                    path, data_files={name: files}, split=name, revision=self.revision(path)
                )
            return load_dataset(path, config, split=name, revision=self.revision(path))
        except (OSError, ValueError, ConnectionError) as error:
            raise TextError(f"data set {path} cannot be loaded: {first_line(error)}") from error


def find_access(mirror: str | Path | None = None, fill: Path | None = None) -> Access:
    """The access that BITGRID_MIRROR says, else the mirror that is named.

    `fill`: the folder to be filled where no mirror is named; what a mirror lacks is asked of the
    hub then. Raises TextError where a mirror is named that is not there, unless it is to be filled.
    """
    chosen = os.environ.get("BITGRID_MIRROR") or mirror
    if not chosen:
        return Access(fill, fills=fill is not None)
    folder = read_path(chosen, TextError)
    if fill is None and not folder.is_dir():
        raise TextError(f"the mirror folder {folder} is not there; 'bitgrid prefetch' makes one")
    return Access(folder, fills=fill is not None)


_current: ContextVar[Access | None] = ContextVar("access", default=None)


@contextlib.contextmanager
def reading(access: Access) -> Iterator[None]:
    """Inside, stages are made that read data sets so: while a grid becomes stages.

    A stage keeps the folder, so that whoever runs it needs no more than the stage.
    """
    token = _current.set(access)
    try:
        yield
    finally:
        _current.reset(token)


def current(mirror: str | None = None) -> Access:
    """The access inside `reading`; elsewhere `find_access(mirror)`."""
    return _current.get() or find_access(mirror)


def digest_of(file: Path) -> str:
    """24 hex digits over a file's content, read again only where it has changed."""
    facts = file.stat()
    return _content(file, facts.st_size, facts.st_mtime_ns)


def _is_as_fetched(file: Path, content: str) -> bool:
    """Whether a file still holds what REVISION notes of it, where it notes anything."""
    folder = file.parent.parent
    lines = [line.split(" ", 1) for line in (folder / "REVISION").read_text().splitlines()[1:]]
    noted = {name: digest for digest, name in lines}
    return noted.get(str(file.relative_to(folder)), content) == content


def _is_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


@cache
def _commit(path: str) -> str:
    from huggingface_hub import HfApi

    if _is_offline() and (cached := cached_commit("datasets", path)):
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
