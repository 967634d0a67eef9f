"""Reads what the libraries read of a model; their errors, of any class, become one line of ours.

Not here: weights (`model`), where a model lies (`sources`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from harness.core.errors import BitgridError, ModelError, first_line


def read_tokenizer(source: str, where: str, **options: Any) -> PreTrainedTokenizerBase:
    with explained(source, "its tokenizer cannot be read: "):
        return AutoTokenizer.from_pretrained(where, **options)


def find_class(config: PreTrainedConfig) -> Any:
    """The library's automatic class that makes a language model of a configuration.

    A model with a vision tower is read whole where the library has no class of its text part alone.
    Raises ModelError for what does not continue text.
    """
    if config.is_encoder_decoder:
        raise ModelError(
            f"{config.model_type!r} is an encoder with a decoder; models here only have a decoder"
        )
    own_code = getattr(config, "auto_map", None) or {}
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    # A class of a text part alone is of use where a model that was saved as that can be read again.
    if "AutoModelForCausalLM" in own_code or (
        kind is not None and kind.config_class in MODEL_FOR_CAUSAL_LM_MAPPING
    ):
        return AutoModelForCausalLM
    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return AutoModelForImageTextToText
    raise ModelError(f"{config.model_type!r} is not a language model that transformers can read")


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
    message = str(error).strip()
    if isinstance(error, ValueError) and "trust_remote_code" in message:
        return "it comes with code of its own; 'trust_remote_code: true' in the grid lets it run"
    if isinstance(error, SafetensorError) and (broken := _broken(source)):
        return broken
    first = first_line(error)
    if first.endswith(":"):  # the reason is below
        first = " ".join(message.split())
    known = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
    return first if known else f"{type(error).__name__}: {first}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _broken(source: str) -> str | None:
    """The first file of weights, in a folder or the hub's cache, whose header does not fit it."""
    from huggingface_hub import constants

    local = Path(source).expanduser()
    fetched = Path(constants.HF_HUB_CACHE, f"models--{source.replace('/', '--')}")
    for path in sorted([*local.glob("*.safetensors"), *fetched.glob("snapshots/*/*.safetensors")]):
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            return f"{path} is damaged or cut off ({error})"
    return None
