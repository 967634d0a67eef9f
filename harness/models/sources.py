"""The source of a model that a grid names, and what is read of it before its weights.

A name is registered (`testbed`, `smollm2-135m`: see `registry`), a local folder, a GGUF file,
`hub/id[@revision]` or `hub/id/file.gguf[@revision]`. Not here: weights (`model`), stages (`stage`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from harness.core.errors import ModelError, nearest
from harness.core.paths import read_path
from harness.models.hub import parse_hub_name
from harness.models.local import FolderModel
from harness.models.reading import explained, read_tokenizer
from harness.models.registry import MODELS, ModelSource, Pin
from harness.models.sizes import check_sizes, count_tensors, read_facts
from harness.models.storage import Storage, check_unquantized


def find_source(model_name: str) -> ModelSource:
    """The source of a model named as in a grid, which need not be there. Raises ModelError."""
    if not model_name.strip():
        raise ModelError(
            f"model {model_name!r} is not a name; {nearest(model_name, MODELS.load())}"
        )
    if model_name in {*MODELS.load(), *MODELS.unavailable()}:
        return MODELS.find(model_name)
    path = read_path(model_name, ModelError)
    is_file = path.is_file() and path.suffix == ".gguf"
    if is_file or path.is_dir() or model_name.startswith((".", "/", "~")):
        return FolderModel(path)
    return parse_hub_name(model_name)


def place(model_name: str, revision: str | None = None) -> dict[str, Any]:
    """Where a model lies, as arguments of transformers' `from_pretrained`."""
    return find_source(model_name).place(revision)


@cache
def config(model_name: str, revision: str | None, trust: bool) -> PreTrainedConfig:
    """The configuration of a model.

    Raises ModelError where it cannot be read, and for a model that is quantised already.
    """
    at = place(model_name, revision)
    is_packed = "gguf_file" in at
    where = at.pop("where")
    if not is_packed:
        _check_sizes(model_name, where, **at)
    with explained(model_name):
        config = AutoConfig.from_pretrained(where, **at, trust_remote_code=trust)
        facts = config.to_dict()
    check_sizes(model_name, facts)  # with what the library adds, and a GGUF file says
    if not is_packed:
        check_unquantized(model_name, config, find_source(model_name).folder())
    return config


def _check_sizes(model_name: str, where: str, **options: Any) -> None:
    """Before the library makes anything of a configuration: some make a list of their layers."""
    folder = Path(where)
    if folder.is_dir():
        check_sizes(model_name, read_facts(folder / "config.json"), count_tensors(folder))
        return
    with explained(model_name):
        facts, _ = PreTrainedConfig.get_config_dict(where, **options)
    check_sizes(model_name, facts)


def storage(model_name: str, pin: Pin) -> Storage | None:
    """What a model's files hold its weights as; None where they are not here yet."""
    if (known := _storages.get((model_name, pin))) is None:
        known = _storages[model_name, pin] = find_source(model_name).storage(pin)
    return known


_storages: dict[tuple[str, Pin], Storage | None] = {}


@cache
def tokenizer(model_name: str, revision: str | None, trust: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a model. Raises ModelError where it cannot be read."""
    return read_tokenizer(model_name, **place(model_name, revision), trust_remote_code=trust)
