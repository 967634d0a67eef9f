"""Token blocks made of texts: what methods calibrate and train on.

Not here: where documents come from (`sources`), what a model writes (`methods.training.data`).
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass, replace
from functools import cache, singledispatch
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.core.errors import TextError
from harness.core.seeds import Seeds, redraw
from harness.core.stage import Input, Stage, value
from harness.data.sources import Documents, texts
from harness.models import Model, Pretrained, check_length


@dataclass(frozen=True)
class Tokens:
    """Sequences of equal length for calibration or training.

    ids: (B, T) int64. mask: (B, T) bool, True where the token is a label to be learnt; padding and
    prompts that are only context are False.
    """

    ids: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def save(self, folder: Path) -> dict[str, Any]:
        save_file({"ids": self.ids, "mask": self.mask}, folder / "tokens.safetensors")
        return {"sequences": len(self), "length": self.ids.shape[1], "labels": int(self.mask.sum())}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Tokens:
        tensors = load_file(folder / "tokens.safetensors")
        return cls(tensors["ids"], tensors["mask"])


@dataclass(frozen=True)
class Packed(Stage[Tokens]):
    """Documents joined end to end and cut into `count` blocks of `length` tokens, all labels."""

    kind: ClassVar[str] = "packed"
    stored: ClassVar[bool] = False
    documents: Input[list[str]]
    model: Input[Model]  # for its tokenizer
    length: int
    count: int

    def run(self, work: Path) -> Tokens:
        model, length = value(self.model), self.length
        if model.context is not None and length > model.context:
            raise TextError(f"blocks of {length} tokens: the model's context is {model.context}")
        return pack(value(self.documents), model.tokenizer, length, self.count)

    def notice(self, result: Tokens) -> str | None:
        """What to say where the text ended before it gave as many blocks as were asked for.

        Epochs then go round fewer of them, so that two texts are not trained on equally.
        """
        if len(result) == self.count:
            return None
        text = self.documents
        text_label = (
            f"text {text.source}, {text.split}" if isinstance(text, Documents) else "a text"
        )
        return (
            f"{text_label}: {len(result)} sequences of {self.length} tokens where {self.count} "
            "were asked for: the text ends there"
        )


@dataclass(frozen=True)
class Sampled(Stage[list[str]]):
    """Documents from a drawn character on, and last what stands before it: of a text that is longer
    than what is read of it another part, and of all of it another cut into blocks."""

    kind: ClassVar[str] = "sampled"
    stored: ClassVar[bool] = False
    documents: Input[list[str]]
    seed: int

    def run(self, work: Path) -> list[str]:
        documents = value(self.documents)
        place = random.Random(self.seed).randrange(sum(map(len, documents)))
        for number, text in enumerate(documents):
            if place < len(text):
                rest = [*documents[number + 1 :], *documents[:number]]
                return [text[place:], *rest, text[:place]]
            place -= len(text)
        raise AssertionError("the place lies in one of the documents")


@redraw.register
def _of_calibration(stage: Packed, seeds: Seeds) -> Packed:
    documents = stage.documents  # of text that is trained on the first is read
    if isinstance(documents, Documents) and documents.split == "calibration" and seeds.calibration:
        return replace(stage, documents=Sampled(documents, seeds.calibration))
    return stage


@singledispatch
def count_asked(stage: object) -> tuple[int, int] | None:
    """Sequences that a stage of tokens was asked for, and the tokens of each; its text may have
    fewer. None of a class that registers nothing."""
    return None


@count_asked.register
def _of_packed(stage: Packed) -> tuple[int, int]:
    return stage.count, stage.length


def calibration(base: Stage[Model], text: str, count: int, length: int) -> Stage[Tokens]:
    """The tokens that a method looks at before training: the calibration split of `text`."""
    check_length(base, length, "length (of calibration text)")
    return packed(texts(text, "calibration"), base, length, count)


def packed(documents: Documents, base: Stage[Model], length: int, count: int) -> Stage[Tokens]:
    """The stage of `count` blocks of `length` tokens. Raises TextError where they cannot be had.

    A text that takes no time to read is too short, then; data sets of the hub are not looked into:
    they are long, and may not be here yet.
    """
    if documents.quick and isinstance(base, Pretrained):
        _check_fills(documents, base, length)
    return Packed(documents, base, length, count)


def pack(
    documents: list[str], tokenizer: PreTrainedTokenizerBase, length: int, count: int
) -> Tokens:
    """The first `count` blocks of `length` tokens of the documents joined end to end.

    A document begins with BOS where the tokenizer has one and ends with EOS where it has one. Fewer
    blocks come back where the text is shorter; raises TextError where not even one is full.
    """
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for document in filter(str.strip, documents):
        stream += bos + tokenizer(document, add_special_tokens=False)["input_ids"] + eos
        if len(stream) >= length * count:
            break
    blocks = min(count, len(stream) // length)
    if blocks == 0:
        raise TextError(f"the text has {len(stream)} tokens, fewer than one block of {length}")
    ids = torch.tensor(stream[: blocks * length]).view(blocks, length)
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


@cache
def _check_fills(documents: Documents, base: Pretrained, length: int) -> None:
    """Raise TextError where a text's documents have fewer tokens than one block."""
    contents, tokenizer = documents.read(), base.tokenizer()
    try:
        with contextlib.suppress(TextError):  # beginnings are enough, as a rule, and quick
            pack([text[: 64 * length] for text in contents], tokenizer, length, 1)
            return
        pack(contents, tokenizer, length, 1)
    except TextError as error:
        raise TextError(f"text {documents.source!r}: {error}") from error
