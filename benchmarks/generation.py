"""Tokens a second that SmolLM2-135M writes: as training data is made, and by transformers.

    python -m benchmarks.generation [--rows 16] [--length 128] [--dtype bfloat16] [--write]

Both continue the same prompts of 20 to 60 tokens in one batch, sampled at temperature 0.7, in one
process and in turn; CPU seconds are counted, since others may use the machine. Two cases: no text
ends before `--length`; and texts end by chance, every token alike, after half the room in the mean:
rows that ended are dropped here and go on as padding there. Tokens of prompts, and behind an end,
do not count.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

from benchmarks.record import Record
from harness.data import texts
from harness.models import Model, read_model, smollm2
from methods.training import generation

TEMPERATURE = 0.7


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--length", type=int, default=128, help="most tokens of a text")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    model = read_model(str(smollm2.unpacked_folder()), given.dtype)
    prompts = make_prompts(model, given.rows)
    mean = (given.length - sum(map(len, prompts)) / given.rows) / 2
    record = Record("generation", baseline="transformers")
    forms: dict[str, Callable[..., int]] = {"harness": write, "transformers": generate}
    for case, chance in (("no text ends early", 0.0), ("texts end by chance", 1 / mean)):
        speeds: dict[str, list[float]] = {form: [] for form in forms}
        with ending(model, chance):
            for repetition in range(given.repetitions + 1):
                for form, run in forms.items():
                    began = time.process_time()
                    written = run(model, prompts, given.length)
                    if repetition:
                        speeds[form].append(written / (time.process_time() - began))
        for form, values in speeds.items():
            sizes = f"{given.rows} rows, {given.length} tokens, {given.dtype}"
            record.add(f"{case}, {sizes}", form, "tokens/CPU s", values)
    record.finish(write=given.write)


def make_prompts(model: Model, rows: int) -> list[list[int]]:
    """Parts of the testbed's texts, of 20 to 60 tokens."""
    ids = model.tokenizer(" ".join(texts("testbed", "calibration").read()[:200]))["input_ids"]
    return [ids[60 * row :][: 20 + 40 * row // rows] for row in range(rows)]


@contextmanager
def ending(model: Model, chance: float) -> Iterator[None]:
    """Inside, each token that is drawn ends its text with this chance, whatever the model says."""
    (end,) = generation.stops(model)[:1].tolist()

    def replace(_: nn.Module, __: object, logits: Tensor) -> Tensor:
        logits[..., end] = -torch.inf
        others = (logits.float() / TEMPERATURE).logsumexp(-1)
        odds = math.log(chance / (1 - chance)) if chance else -1e4
        logits[..., end] = TEMPERATURE * (others + odds)
        return logits

    handle = model.network.get_output_embeddings().register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def write(model: Model, prompts: list[list[int]], length: int) -> int:
    """Tokens written by the stage of training data."""
    chances = torch.rand(len(prompts), length)
    greedy = torch.zeros(len(prompts), dtype=torch.int64)
    _, ends = generation.write(
        model, prompts, greedy, chances, TEMPERATURE, top_p=1.0, tell=lambda _: None
    )
    return int(ends.sum()) - sum(map(len, prompts))


@torch.inference_mode()
def generate(model: Model, prompts: list[list[int]], length: int) -> int:
    """Tokens written by transformers' `generate`."""
    width = max(map(len, prompts))
    seen = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    (end,) = generation.stops(model)[:1].tolist()
    texts_written = model.network.generate(
        ids.to(model.device),
        attention_mask=torch.tensor(seen, device=model.device),
        max_length=length,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        eos_token_id=end,
        pad_token_id=end,
    )
    new = texts_written[:, width:]
    before_end = (new == end).cumsum(1) - (new == end).long() == 0
    return int(before_end.sum())


if __name__ == "__main__":
    main()
