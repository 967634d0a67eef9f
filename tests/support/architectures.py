"""Tiny random models of many architectures, from transformers' configurations.

    folder = build("gemma3-vision", tmp_path)             # a folder in Hugging Face's format

Hidden 64, as few layers as have every kind of layer, 4 heads, the tokenizer of the tests (300
tokens), initializer range 0.2, seed 0. What most configurations share stands in `_COMMON`; an entry
of `ARCHITECTURES` says what differs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from harness.testing import make_tokenizer
from tests.support.families import ARCHITECTURES

# Of a model with a vision tower the whole, as it is published. An encoder is made too.
_CLASSES = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING)

_COMMON = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "num_channels": 3,
}


def configure(name: str) -> PreTrainedConfig:
    """The configuration of an architecture by name."""
    architecture = ARCHITECTURES[name]
    text = {**_COMMON, **architecture.settings}
    if architecture.vision is None:
        text = {key: value for key, value in text.items() if key not in architecture.without}
        return AutoConfig.for_model(architecture.model_type, **text)
    tokens = {key: text[key] for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    vision = {**_VISION, **architecture.vision}
    return AutoConfig.for_model(
        architecture.model_type,
        text_config=text,
        vision_config=vision,
        **tokens,
        **architecture.outer,
    )


def make(name: str) -> PreTrainedModel:
    """A network of random weights, the norms' among them; seed 0."""
    config = configure(name)
    kind = next((known[type(config)] for known in _CLASSES if type(config) in known), None)
    assert kind is not None, f"{name}: transformers has no class for it"
    torch.manual_seed(0)
    network = kind(config)
    for parameter in network.parameters():
        if parameter.dim() == 1:  # where all are ones or zeros, a mistake in them has no effect
            parameter.data += 0.05 * torch.randn_like(parameter)
    return network.eval()


def build(name: str, folder: Path) -> Path:
    """Save a model with its tokenizer; returns `folder`."""
    make(name).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder
