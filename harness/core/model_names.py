"""Whether a model is the one that a paper means by a name: `Llama-2-7b-hf` is `LLaMA-2-7B`."""

from __future__ import annotations

import re


def list_name_parts(model: str) -> list[str]:
    """What a model's name consists of: llama, 2, 7b of `meta-llama/Llama-2-7b-hf@main`."""
    name = model.partition("@")[0].rstrip("/").rpartition("/")[2].casefold().removesuffix("-hf")
    return re.findall(r"\d+(?:\.\d+)?[bm](?![a-z0-9])|\d+|[a-z]+", name)


def may_be_called(model: str, printed: str) -> bool:
    """Whether a model can be the one that a paper calls `printed`: its name has the same parts in
    that order, and perhaps more (`WizardCoder-Python-7B-V1.0` of `WizardCoder-7B`)."""
    parts = iter(list_name_parts(model))
    return all(part in parts for part in list_name_parts(printed))
