"""The models that checks run on: a random Llama of 0.1 million weights, in Hugging Face's format,
one of an odd width, and a Mixtral.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from harness.data import texts

Kind: TypeAlias = Literal["plain", "odd", "experts"]

TEXT = "testbed"
"""What the tokenizer is made from and methods are calibrated on: it comes with Bitgrid."""


@cache
def make_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 tokens. PAD, BOS and EOS are 0, 1 and 2; a BOS opens a text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts(TEXT, "calibration").read()[:50], trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def make_tiny_model(folder: Path, kind: Kind = "plain") -> Path:
    """Save one: 2 layers, hidden 64, ffn 128, 4 heads, 2 kv heads. The same weights each time.

    odd: a feed-forward width of 88, which groups of 32 do not divide. experts: one layer, with four
    experts of 64 that lie in one parameter, two a token.
    """
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: PreTrainedModel
        if kind == "experts":
            experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
            network = MixtralForCausalLM(MixtralConfig(**common, **experts, num_hidden_layers=1))
        else:
            width = 88 if kind == "odd" else 128
            config = LlamaConfig(**common, intermediate_size=width, num_hidden_layers=2)
            network = LlamaForCausalLM(config)
        network.save_pretrained(folder)
    return folder
