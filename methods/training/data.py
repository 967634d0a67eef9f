"""Training data: text as it is, or text that the full-precision teacher writes.

    tokens = Generated(text="wikitext2", sequences=3000).build(teacher)       # a Stage[Tokens]

A data source has a seed of its own, which the grid's moves (`redraw`), so that all cells of one
seed train on the same sequences, made once.

Every sequence is a row of `length` ids, padded on the right; the mask is True where a token is to
be learnt. Not here: text sources and packing (`harness.data`), how a model writes (`generation`),
training (`train`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, ClassVar, TypeAlias

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from harness.core.checked import Count, CountOrNone, Seed
from harness.core.component import Component
from harness.core.errors import SettingError, TextError
from harness.core.seeds import Seeds, add_seeds, redraw
from harness.core.stage import Input, Resources, Stage, report, value
from harness.data import Documents, Tokens, count_asked, gives_whole_prompts, packed, texts
from harness.models import Model, Pass, Pretrained, host_gib, list_passes, run_finite
from methods.tensor_files import keep_tensors, read_kept
from methods.training import generation

Prompt: TypeAlias = list[int]  # token ids
Temperature: TypeAlias = Annotated[float, Field(ge=0, le=100)]
Share: TypeAlias = Annotated[float, Field(gt=0, le=1)]
Counts: TypeAlias = Annotated[dict[str, Count], Field(min_length=1)]  # sequences of each text


@dataclass(frozen=True)
class Data(Component, family="data"):
    """Where training sequences come from. `sequences` of `length` tokens."""

    sequences: Count = 8000  # to train on
    length: Annotated[Count, Field(ge=2)] = 1024  # of each, in tokens

    @abstractmethod
    def build(self, teacher: Stage[Model]) -> Stage[Tokens]:
        """The stage that makes them; `teacher` gives the tokenizer, and writes where one writes."""


@dataclass(frozen=True)
class GroundTruth(Data):
    """Documents of a text, joined end to end and cut; every token is learnt."""

    name = "ground-truth"
    text: str = "wikitext2"  # whose documents are learnt

    def build(self, teacher: Stage[Model]) -> Stage[Tokens]:
        return packed(texts(self.text, "train"), teacher, self.length, self.sequences)


@dataclass(frozen=True)
class Generated(Data):
    """The teacher continues the openings of a text's documents. BitDistiller sec. 3.3.

    `text` may be several, with the number of sequences of each: {wikitext2: 3000, alpaca: 5000};
    `sequences` then says nothing. An opening is the first `prompt_chars` characters of a document
    longer than `min_chars`, as published for WikiText-2; instructions and the testbed's prompts are
    used whole. Openings are learnt too by default: the published code has the lines that would mask
    them commented out.
    """

    name = "generated"
    text: str | Counts = "wikitext2"  # whose openings go on, or sequences by text
    prompt_chars: Count = 128  # of a document that are its opening
    min_chars: CountOrNone = 512  # documents that are shorter open nothing
    temperature: Temperature = 0.7  # of the teacher's samples; 0: greedy
    top_p: Share = 1.0  # the share of probability that is sampled from
    learn_prompt: bool = True  # whether openings are learnt too
    seed: Seed = 0  # of the samples; the grid's is added

    def build(self, teacher: Stage[Model]) -> Stage[Tokens]:
        counts = self.text if isinstance(self.text, Mapping) else {self.text: self.sequences}
        parts = tuple(self._of(teacher, text, count) for text, count in counts.items())
        return parts[0] if len(parts) == 1 else Joined(parts)

    def _of(self, teacher: Stage[Model], text: str, count: int) -> Stage[Tokens]:
        whole_prompts = gives_whole_prompts(text)
        documents = texts(text, "train", prompts=True)
        generation = Generate(
            teacher,
            documents,
            count,
            self.length,
            prompt_chars=None if whole_prompts else self.prompt_chars,
            min_chars=0 if whole_prompts else self.min_chars,
            temperature=self.temperature,
            top_p=self.top_p,
            learn_prompt=self.learn_prompt,
            seed=self.seed,
        )
        if isinstance(teacher, Pretrained):
            _check_prompts(generation, documents, teacher)
        return generation


@dataclass(frozen=True)
class SelfGenerated(Data):
    """The teacher writes alone, from a random first token. LLM-QAT sec. 2.1.

    Its likeliest next tokens first, for as many positions as drawn from `greedy` (inclusive) for
    each sequence, then samples: greedy throughout repeats itself, sampling throughout wanders off.
    """

    name = "self-generated"
    # First tokens that are the likeliest, at least and at most.
    greedy: tuple[CountOrNone, CountOrNone] = (3, 5)
    temperature: Temperature = 1.0  # of the samples after these; 0: greedy
    top_p: Share = 1.0  # the share of probability that is sampled from
    seed: Seed = 0  # of the samples; the grid's is added

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.greedy
        if low > high:
            raise SettingError(f"greedy: the range from {low} to {high} tokens is empty", "greedy")

    def build(self, teacher: Stage[Model]) -> Stage[Tokens]:
        return Generate(
            teacher,
            None,
            self.sequences,
            self.length,
            greedy=self.greedy,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Joined(Stage[Tokens]):
    """Sequences of several sources, all of one length, one source after the other."""

    kind: ClassVar[str] = "joined"
    stored: ClassVar[bool] = False
    parts: tuple[Input[Tokens], ...]

    def run(self, work: Path) -> Tokens:
        parts = [value(part) for part in self.parts]
        return Tokens(
            torch.cat([part.ids for part in parts]), torch.cat([part.mask for part in parts])
        )


@dataclass(frozen=True)
class Generate(Stage[Tokens]):
    """Sequences that a model writes, from documents' openings or, without, from a random token.

    A sequence ends with the model's EOS, which is learnt, or at `length`.
    """

    kind: ClassVar[str] = "generate"
    teacher: Input[Model]
    documents: Input[list[str]] | None
    count: int
    length: int
    prompt_chars: int | None = None
    min_chars: int = 0
    greedy: tuple[int, int] = (0, 0)
    temperature: float = 1.0
    top_p: float = 1.0
    learn_prompt: bool = True
    seed: int = 0

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.teacher, 16.0), hours=8.0)

    def run(self, work: Path) -> Tokens:
        """Raises TextError where no prompt can be made, or the teacher writes nothing."""
        teacher = value(self.teacher)
        if teacher.context is not None and self.length > teacher.context:
            raise TextError(
                f"sequences of {self.length} tokens: the model's context is {teacher.context}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        prompts = self._prompts(teacher, generator)
        low, high = self.greedy
        greedy = torch.randint(low, high + 1, (self.count,), generator=generator)
        chances = torch.rand(self.count, self.length, generator=generator)
        pad = generation.padding(teacher)
        ids = torch.full((self.count, self.length), pad)
        ends = torch.zeros(self.count, dtype=torch.int64)
        begins = torch.tensor([len(prompt) for prompt in prompts])
        done = 0
        at_once = generation.rows_at_once(teacher, self.length, teacher.device.type)
        for rows in generation.split_rows(teacher, begins, at_once):
            part = work / f"part-{done}-{done + len(rows)}.safetensors"
            if (written_part := read_kept(part)) is None:
                write = partial(
                    generation.write,
                    teacher,
                    [prompts[row] for row in rows],
                    greedy[rows],
                    chances[rows],
                    self.temperature,
                    self.top_p,
                    tell=lambda rows_done, done=done: report(done + rows_done, self.count),  # type: ignore[misc]
                )
                written, lengths = run_finite(teacher, write)
                written_part = {"ids": written, "ends": lengths}
                keep_tensors(part, written_part, "what was generated so far")
            ids[rows, : written_part["ids"].shape[1]] = written_part["ids"]
            ends[rows] = written_part["ends"]
            done += len(rows)
            report(done, self.count)
        return self._tokens(ids, begins, ends, pad, generation.stops(teacher))

    def _tokens(self, ids: Tensor, begins: Tensor, ends: Tensor, pad: int, stops: Tensor) -> Tokens:
        """Padding and mask around ids (B, T) that begin after the prompt and end before padding."""
        positions = torch.arange(self.length)
        written = (positions >= begins[:, None]) & (positions < ends[:, None])
        if not bool((written & ~torch.isin(ids, stops)).any()):
            raise TextError("the generation produced nothing: the teacher ends every text at once")
        within_row = positions < ends[:, None]
        learnt = (within_row & (positions > 0)) if self.learn_prompt else written
        return Tokens(ids.masked_fill(~within_row, pad), learnt)

    def _prompts(self, teacher: Model, generator: torch.Generator) -> list[Prompt]:
        """`count` beginnings as token ids, in an order drawn from the generator."""
        if self.documents is None:
            special = set(teacher.tokenizer.all_special_ids)
            vocabulary = min(len(teacher.tokenizer), teacher.vocabulary)
            plain = torch.tensor([i for i in range(vocabulary) if i not in special])
            drawn = torch.randint(len(plain), (self.count,), generator=generator)
            return [[int(token)] for token in plain[drawn]]
        openings = self.openings(value(self.documents))
        order = torch.randperm(len(openings), generator=generator)[: self.count]
        fitting = list(self.fitting([openings[i] for i in order], teacher.tokenizer))
        return list(islice(cycle(fitting), self.count))

    def openings(self, documents: list[str]) -> list[str]:
        """What of the documents the teacher may continue. Raises TextError where that is
        nothing."""
        prompts = [
            text[: self.prompt_chars]
            for text in documents
            if len(text) > self.min_chars and text.strip()
        ]
        if not prompts:
            raise TextError(f"no document is longer than min_chars: {self.min_chars} characters")
        return prompts

    def fitting(self, openings: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[Prompt]:
        """Those that leave room to write, as token ids. Raises TextError at the end where none
        does."""
        first = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        fits = False
        for text in openings:
            prompt = first + list(tokenizer(text, add_special_tokens=False)["input_ids"])
            if 0 < len(prompt) < self.length:
                fits = True
                yield prompt
        if not fits:
            raise TextError(f"every prompt fills the whole length of {self.length} tokens")


@redraw.register
def _of_samples(stage: Generate, seeds: Seeds) -> Generate:
    return replace(stage, seed=add_seeds(stage.seed, seeds.data))


@count_asked.register
def _of_generate(stage: Generate) -> tuple[int, int]:
    return stage.count, stage.length


@count_asked.register
def _of_joined(stage: Joined) -> tuple[int, int] | None:
    sizes = [size for part in stage.parts if (size := count_asked(part)) is not None]
    if len(sizes) < len(stage.parts):
        return None
    return sum(count for count, _ in sizes), sizes[0][1]


@list_passes.register
def _of_writing(stage: Generate) -> tuple[Pass, ...]:
    assert isinstance(stage.teacher, Stage)
    return (Pass(stage.teacher, stage.count * stage.length, "written"),)


@cache
def _check_prompts(stage: Generate, documents: Documents, teacher: Pretrained) -> None:
    """Raise TextError where a user's file has no prompt; other texts take seconds to read."""
    if documents.quick:
        try:
            next(stage.fitting(stage.openings(documents.read()), teacher.tokenizer()))
        except TextError as error:
            raise TextError(f"text {documents.source!r}: {error}") from error
