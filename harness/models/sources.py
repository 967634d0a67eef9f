"""Where a model lies that a grid names, what pins its content, and what is read before its weights.

A name is built in (`testbed`, `testbed-small`, or `smollm2-135m` from a package index), a local folder,
a GGUF file, `hub/id[@revision]` or `hub/id/file.gguf[@revision]`. `explained` is how an error of the
libraries that read models becomes one of ours. Not here: weights and stages (`models`), data sets
(`hub`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from harness.core.errors import BitgridError, ModelError, first_line, nearest
from harness.core.hub_cache import cached_commit
from harness.models import smollm2

_TESTBED = Path(__file__).parents[1] / "testbed"
TESTBED = {"testbed": _TESTBED / "model", "testbed-small": _TESTBED / "model-small"}
BUILT_IN = (*TESTBED, smollm2.NAME)


def pin(source: str) -> tuple[str, str, str]:
    """A model named as in a grid: its name in full, the digest of its content, its hub revision.

    Raises ModelError where the folder is no model or the hub has no such id.
    """
    if source == smollm2.NAME:
        return source, smollm2.DIGEST[:24], "main"
    if (found := model_folder(source)) is not None:
        digest = _file_digest(found) if found.is_file() else _folder_digest(found)
        return source if source in TESTBED else str(found.resolve()), digest, "main"
    _check_hub_name(source)
    name, _, revision = source.partition("@")
    revision = revision or "main"
    return name, _hub_commit("/".join(name.split("/")[:2]), revision), revision


def place(source: str, revision: str | None = None) -> dict[str, Any]:
    """Where a model named as in a grid lies, as arguments of transformers' `from_pretrained`."""
    if source == smollm2.NAME:
        return {"where": str(smollm2.folder())}
    found = model_folder(source)
    if found is None:
        name, _, named = source.partition("@")
        revision = named or revision or "main"
        *repository, last = name.split("/")
        if len(repository) >= 2:
            file = "/".join([*repository[2:], last])
            return {
                "where": "/".join(repository[:2]),
                "revision": revision,
                "gguf_file": file,
            }
        return {"where": name, "revision": revision}
    if found.is_file():
        return {"where": str(found.parent), "gguf_file": found.name}
    return {"where": str(found)}


@cache
def config(source: str, revision: str | None, trust: bool) -> PreTrainedConfig:
    at = place(source, revision)
    with explained(source):
        return AutoConfig.from_pretrained(at.pop("where"), **at, trust_remote_code=trust)


@cache
def tokenizer(source: str, revision: str | None, trust: bool) -> PreTrainedTokenizerBase:
    return read_tokenizer(source, **place(source, revision), trust_remote_code=trust)


def read_tokenizer(source: str, where: str, **options: Any) -> PreTrainedTokenizerBase:
    with explained(source, "its tokenizer cannot be read: "):
        return AutoTokenizer.from_pretrained(where, **options)


def model_folder(source: str) -> Path | None:
    """The local folder, or GGUF file, of a model as a grid names it; None for what is not local."""
    if source == smollm2.NAME:
        return None
    if not source.strip():
        raise ModelError(f"model {source!r} is no name; {nearest(source, BUILT_IN)}")
    found = TESTBED.get(source) or Path(source).expanduser()
    if found.is_file() and found.suffix == ".gguf":
        return found
    if not found.is_dir():
        if source in TESTBED or source.startswith((".", "/", "~")):
            raise ModelError(f"model {source!r}: there is no folder or .gguf file {found}")
        return None
    if not (found / "config.json").is_file():
        raise ModelError(f"model {source!r}: {found} has no config.json")
    return found


def model_files(folder: Path) -> Iterator[Path]:
    """The files of a model folder whose content decides what the model computes, or a GGUF file."""
    if folder.is_file():
        return iter([folder])
    suffixes = {".json", ".safetensors", ".model", ".txt", ".py", ".jinja"}
    return (p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix in suffixes)


@contextlib.contextmanager
def explained(source: str, what: str = "") -> Iterator[None]:
    """Errors of the libraries inside, which are of any class, as a ModelError of one line.

    Not those of memory: they are no fault of the model's, and have a hint of their own.
    """
    try:
        yield
    except (BitgridError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ModelError(f"model {source!r}: {what}{cause(error, source)}") from error


def cause(error: BaseException, source: str) -> str:
    """In one line, why a model cannot be read, with what to do about it where that is known."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    kinds = [type(each) for each in _chain(error)]
    page = f"{constants.ENDPOINT}/{'/'.join(source.partition('@')[0].split('/')[:2])}"
    login = "'hf auth login' or HF_TOKEN says who you are"
    if GatedRepoError in kinds:
        return f"the hub restricts it: ask for access at {page}; {login}"
    if RepositoryNotFoundError in kinds:
        return f"the hub has no such model, or it is private: {login}"
    if RevisionNotFoundError in kinds:
        return f"the hub has no such revision of it; {page} lists them"
    words = str(error).strip()
    if isinstance(error, ValueError) and "trust_remote_code" in words:
        return "it comes with code of its own; 'trust_remote_code: true' in the grid lets it run"
    if isinstance(error, SafetensorError) and (broken := _broken(source)):
        return broken
    first = first_line(error)
    if first.endswith(":"):  # the reason is below
        first = " ".join(words.split())
    known = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
    return first if known else f"{type(error).__name__}: {first}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _broken(source: str) -> str | None:
    """The first file of weights, in a local folder or the hub's cache, whose header does not fit it."""
    from huggingface_hub import constants

    local = TESTBED.get(source) or Path(source).expanduser()
    fetched = Path(constants.HF_HUB_CACHE, f"models--{source.replace('/', '--')}")
    for path in sorted([*local.glob("*.safetensors"), *fetched.glob("snapshots/*/*.safetensors")]):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            return f"{path} is damaged or cut off ({error})"
    return None


def _check_hub_name(source: str) -> None:
    """Raises ModelError for what is no local model and cannot be a hub's id either."""
    name, at, _ = source.partition("@")
    if at and name in BUILT_IN:
        raise ModelError(f"model {source!r}: {name!r} is built in and has no revisions")
    if web := re.match(r"(?:\w+://)?(?:www\.)?(?:huggingface\.co|hf\.co)/+([^/]+/[^/?#]+)", source):
        raise ModelError(f"model {source!r} is an address; did you mean {web[1]!r}?")
    if "://" in source:
        raise ModelError(f"model {source!r} is an address; name a hub id or a local folder")
    if name.count("/") > 1 and not name.endswith(".gguf"):
        raise ModelError(f"model {source!r}: there is no such folder, and a hub id is org/name")


def _hub_commit(name: str, revision: str) -> str:
    """The commit that a hub revision stands for: asked of the hub, or of the local cache offline."""
    from huggingface_hub import HfApi

    cached = cached_commit("models", name, revision)
    try:
        if os.environ.get("HF_HUB_OFFLINE") != "1":
            return str(HfApi().model_info(name, revision=revision).sha)
    except Exception as error:  # the client's own, its transport's, the system's
        if cached is None:
            raise ModelError(
                f"model {name!r} (revision {revision}) is neither a local folder nor reachable on "
                f"the hub: {cause(error, name)}{_near(name)}"
            ) from error
    if cached is not None:
        return cached
    raise ModelError(
        f"model {name!r}: not a local folder, and not in the hub's cache while offline"
        + (_near(name) or "; 'bitgrid prefetch' fetches it where there is a network")
    )


def _near(name: str) -> str:
    """The built-in model that was meant, where one is near: no hub's id looks like theirs."""
    words = nearest(name, BUILT_IN)
    return f"; {words}" if words.startswith("did") and "/" not in name else ""


def _folder_digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in model_files(folder):
        total.update(f"{path.name}:{_file_digest(path, 64)}\n".encode())
    return total.hexdigest()[:24]


def _file_digest(path: Path, digits: int = 24) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:digits]
