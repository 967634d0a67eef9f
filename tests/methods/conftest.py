"""A random Llama small enough to train in a test."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.models import Model


def make_llama(seed: int = 0) -> Model:
    """2 layers, hidden 64, vocabulary 97 (0 pad, 1 BOS, 2 EOS, then w3 … w96), float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.15,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    network = LlamaForCausalLM(config).eval().requires_grad_(False)
    names = ["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(3, 97))]
    words = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="w3"))
    words.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    return Model(network, tokenizer)


@pytest.fixture(scope="session")
def llama() -> Model:
    """Shared by the tests, which may not change it."""
    return make_llama()


@pytest.fixture(scope="session")
def teacher() -> Model:
    """Another one, to learn from."""
    return make_llama(1)
