"""Files of a store: written whole or not at all, with digests, and errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import StoreError

_ADVICE = {
    errno.ENOSPC: "free space there, or set BITGRID_STORE to another disk",
    errno.EDQUOT: "the quota is used up: free space there, or set BITGRID_STORE to another disk",
    errno.EROFS: "it can be read, and nothing can be kept there: set BITGRID_STORE",
    errno.EACCES: "ask its owner for the right to it, or set BITGRID_STORE",
    errno.EPERM: "ask its owner for the right to it, or set BITGRID_STORE",
    errno.EIO: "the disk or the network failed: the same command goes on once it is back",
    errno.ESTALE: "the network file system failed: the same command goes on once it is back",
}
_SORTED = json.JSONEncoder(sort_keys=True, separators=(",", ":"))
_PART = 2**20  # bytes of a file that are read at once


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an OSError into a StoreError of one line: the path, what failed, what to do.

    `path` stands in where the error itself names none. Libraries in Rust (safetensors, tokenizers)
    have a class of their own for it, and the number in their message.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(describe(error, path)) from error
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise StoreError(describe(OSError(code, os.strerror(code)), path)) from error


def describe(error: OSError, path: Path) -> str:
    """An OSError in one line; of what concerns no disk it gives no advice."""
    where = error.filename2 or error.filename or path
    what = error.strerror or str(error)
    advice = _ADVICE.get(error.errno or 0)
    return f"{where}: {what}" + (f"; {advice}" if advice else "")


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 1) -> None:
    """JSON at `path`, whole or not at all. Raises OSError.

    `indent`: None for what is large and read by programs alone: lines take ten times as long.
    """
    write_text(path, json.dumps(content, indent=indent))


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """A text at `path`, whole or not at all. Raises OSError.

    `durable`: it is on the disk when this returns; not needed of what can be made again.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("w") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            draft.unlink()
        raise


def read_json(path: Path | str) -> dict[str, Any]:
    """The object in a file. Raises OSError, and StoreError where it holds something else."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def digest_json(content: Mapping[str, Any]) -> str:
    """A digest of what an object says, however it is laid out."""
    return hashlib.sha256(_SORTED.encode(content).encode()).hexdigest()


def digest_file(path: Path, *, durable: bool = False) -> str:
    """sha256 of a file's content; `durable`: it is on the disk when this returns."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if durable:
            os.fsync(file.fileno())
        # Not `hashlib.file_digest`, which makes room for much before it reads a small file.
        while part := file.read(_PART):
            digest.update(part)
    return digest.hexdigest()


def list_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def share_files(folder: Path) -> None:
    """Give a folder's files the rights that the folder has, of reading and writing.

    safetensors has its files be their writer's alone, whatever the umask says.
    """
    rights = folder.stat().st_mode & 0o666
    for path in list_files(folder):
        path.chmod(rights)
