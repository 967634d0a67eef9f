"""Models of Hugging Face's hub: `org/name[@revision]`, `org/name/file.gguf[@revision]`.

A revision is pinned to its commit. Not here: data sets of the hub (`harness.data.hub`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from harness.core.errors import ModelError, nearest
from harness.core.hub_cache import cached_commit
from harness.core.reads import Fetched, Read
from harness.models.reading import cause
from harness.models.registry import MODELS, ModelSource, Pin
from harness.models.storage import Storage, read_gguf, read_safetensors

FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.py")  # of a model, beside its weights
WEIGHTS = ("*.safetensors", "*.bin")  # the first format that is there
_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})*(@[\w./-]{1,200})?", re.ASCII)
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
OTHERS = ("original/*", "consolidated*", "onnx/*")  # the same weights for other programs


@dataclass(frozen=True)
class HubModel(ModelSource):
    """A repository of the hub, or a GGUF file in one, at a branch, tag or commit, if named."""

    repository: str
    file: str | None = None
    revision: str | None = None

    about = "a model of the hub"

    def pin(self, name: str) -> Pin:
        _check_name(name)
        revision = self.revision or "main"
        return Pin(name.partition("@")[0], _find_commit(self.repository, revision), revision)

    def place(self, revision: str | None) -> dict[str, Any]:
        file = {} if self.file is None else {"gguf_file": self.file}
        revision = self.revision or revision or "main"
        return {"where": self.repository, "revision": revision, **file}

    def storage(self, pin: Pin) -> Storage | None:
        folder = snapshot_folder(self.repository, pin.digest)
        if self.file is None:
            return read_safetensors(folder)
        return read_gguf(folder / self.file) if (folder / self.file).is_file() else None

    def reads(self, pin: Pin) -> tuple[Read, ...]:
        return (HubSnapshot(self.repository, pin.revision, pin.digest, self.file),)

    def files(self, pin: Pin) -> tuple[Path, ...]:
        folder = snapshot_folder(self.repository, pin.digest)
        if self.file is not None:
            file = folder / self.file
            return (file,) if _DIGEST.fullmatch(file.resolve().name) else ()
        return _list_whole(folder)

    def holds(self, pin: Pin, paths: Sequence[Path]) -> bool:
        """The hub's cache calls a file by the digest of its content."""
        names = {path.name: path.resolve().name for path in self.files(pin)}
        return all(_has_digest(path, names[path.name]) for path in paths)


@dataclass(frozen=True)
class HubSnapshot(Read):
    """The files of a model at a commit, in the hub's own cache.

    A model follows the hub unless the grid names its revision.
    """

    repository: str
    revision: str
    commit: str
    file: str | None  # the GGUF file, where it is one

    def fetch(self) -> Fetched:
        from huggingface_hub import HfApi, snapshot_download

        name, commit = self.repository, self.commit
        folder = snapshot_folder(name, commit)
        size_before = measure_files(folder)
        try:
            siblings = HfApi().model_info(name, revision=commit).siblings or []
            names = [sibling.rfilename for sibling in siblings]
            formats = [kind for kind in WEIGHTS if any(fnmatch(path, kind) for path in names)]
            snapshot_download(
                name,
                revision=self.revision,  # by its name: the cache knows offline what it stands for
                allow_patterns=[*FILES, *([self.file] if self.file else formats[:1])],
                ignore_patterns=list(OTHERS),
            )
        except Exception as error:  # the client's own, its transport's, the system's
            raise ModelError(f"model {name!r} cannot be fetched: {cause(error, name)}") from error
        if not folder.is_dir():
            raise ModelError(
                f"model {name!r}: {self.revision!r} moved on while it was fetched; try again"
            )
        size = measure_files(folder)
        return Fetched(name, commit, size, new=size > size_before)


def snapshot_folder(repository: str, commit: str) -> Path:
    """Where the hub's cache has the files of a commit, which need not be there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "snapshots", commit)


def parse_hub_name(model_name: str) -> HubModel:
    """The hub's model of a name as a grid has it; what cannot be one is refused by `pin`."""
    name, _, revision = model_name.partition("@")
    *parts, last = name.split("/")
    if len(parts) >= 2:
        return HubModel("/".join(parts[:2]), "/".join([*parts[2:], last]), revision or None)
    return HubModel(name, None, revision or None)


def _list_whole(folder: Path) -> tuple[Path, ...]:
    """The files of a snapshot, where all of one format of weights are there and are called by
    their digests; else none."""
    found = {path.name: path for path in sorted(folder.glob("*")) if path.is_file()}
    for kind in WEIGHTS:
        if not (weights := {name for name in found if fnmatch(name, kind)}):
            continue
        shards: set[str] = set()
        for path in folder.glob(f"{kind}.index.json"):
            shards |= set(json.loads(path.read_text())["weight_map"].values())
        beside = {name for name in found if any(fnmatch(name, other) for other in FILES)}
        chosen = [path for name, path in found.items() if name in weights | beside]
        named = all(_DIGEST.fullmatch(path.resolve().name) for path in chosen)
        return tuple(chosen) if named and shards <= weights else ()
    return ()


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a file's content is what the hub's cache calls it by: SHA-256 of large files, of
    small ones git's."""
    if len(digest) == 64:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == digest
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == digest


def measure_files(path: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _check_name(model_name: str) -> None:
    """Raises ModelError for what is neither a local model nor a hub's id."""
    name, at, _ = model_name.partition("@")
    if at and name in MODELS.load():
        raise ModelError(f"model {model_name!r}: {name!r} is built in and has no revisions")
    address = r"(?:\w+://)?(?:www\.)?(?:huggingface\.co|hf\.co)/+([^/]+/[^/?#]+)"
    if web := re.match(address, model_name):
        raise ModelError(f"model {model_name!r} is an address; did you mean {web[1]!r}?")
    if "://" in model_name:
        raise ModelError(f"model {model_name!r} is an address; name a hub id or a local folder")
    if name.count("/") > 1 and not name.endswith(".gguf"):
        raise ModelError(
            f"model {model_name!r}: the folder does not exist, and a hub id is org/name"
        )
    if not _ID.fullmatch(model_name) or ".." in model_name:
        raise ModelError(
            f"model {model_name!r} is not a name: a hub id has letters, digits, '-', '_' and '.'"
        )


def _find_commit(name: str, revision: str) -> str:
    """The commit that a revision stands for: asked of the hub, or of the local cache offline."""
    from huggingface_hub import HfApi

    cached = cached_commit("models", name, revision)
    try:
        if os.environ.get("HF_HUB_OFFLINE") != "1":
            return str(HfApi().model_info(name, revision=revision).sha)
    except Exception as error:  # the client's own, its transport's, the system's
        if cached is None:
            raise ModelError(
                f"model {name!r} (revision {revision}) is neither a local folder nor reachable on "
                f"the hub: {cause(error, name)}{_suggest(name)}"
            ) from error
    if cached is not None:
        return cached
    raise ModelError(
        f"model {name!r}: not a local folder, and not in the hub's cache while offline"
        + (_suggest(name) or "; 'bitgrid prefetch' fetches it where there is a network")
    )


def _suggest(name: str) -> str:
    """The registered model that was meant, where one is near: no hub's id looks like theirs."""
    phrase = nearest(name, MODELS.load())
    return f"; {phrase}" if phrase.startswith("did") and "/" not in name else ""
