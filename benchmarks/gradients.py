"""What gradients through the range of a format cost, against gradients that pass unchanged.

    python -m benchmarks.gradients [--write] [--runs 8]

The rounding alone, forward and backward, of a weight (1536, 576) in groups of 64; and whole steps
of distillation of `benchmarks.train_step`'s model by CAKLD. Rounding costs by the weight and the
rest of a step by the weight and token, so that what decides is the tokens of a step: BitDistiller
takes 131,072. CPU seconds of one thread, the two gradients in turn, so that other work on the
machine shows little.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import torch

from benchmarks.record import Record, time_in_turn
from benchmarks.train_step import random_llama
from harness.models import DTYPES, Model
from methods.quantization.formats import NF, Grouped, IntAsym, IntSym
from methods.quantization.gradients import Gradient
from methods.training.masters import Masters
from methods.training.objectives import CAKLD
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep

FORMATS: dict[str, Grouped] = {
    "int-asym 2 bits": IntAsym(2, 64),
    "int-asym 3 bits": IntAsym(3, 64),
    "int-sym 2 bits": IntSym(2, 64),
    "nf 3 bits": NF(3, 64),
}


def make_rounding(format: Grouped) -> Callable[[], object]:
    """Forward and backward of one weight."""
    weight, slope = torch.randn(1536, 576).requires_grad_(), torch.randn(1536, 576)

    def run() -> None:
        weight.grad = None
        format.quantize_with_gradient(weight).backward(slope)

    return run


def make_step(model: Model, tokens: int, dtype: str, format: Grouped) -> Callable[[], object]:
    """A step of distillation on sequences of 256 tokens, eight at a time."""
    training = Training(steps=1, batch_size=8, micro_batch=8, lr=1e-5, dtype=dtype)
    compute = DTYPES[dtype]
    masters = Masters.of(model, format, training.trained, compute)
    step = TrainingStep(training, CAKLD(), 0.5, masters, ALONE.split(model, compute))
    ids = torch.randint(0, model.vocabulary, (tokens // 256, 256))
    batches = [(part, torch.ones_like(part, dtype=torch.bool)) for part in ids.split(8)]

    def run() -> None:
        _, norm = step.compute_gradients(batches)
        step.update(training.lr, norm)

    return run


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--runs", type=int, default=8)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    record = Record("gradients", baseline="identity")

    def compare(case: str, make: Callable[[Grouped], Callable[[], object]], name: str) -> None:
        format = FORMATS[name]
        forms = {each: make(replace(format, gradient=each)) for each in get_args(Gradient)}
        runs = chosen.runs if make is not make_rounding else 10 * chosen.runs
        for form, seconds in time_in_turn(forms, runs, time.process_time).items():
            record.add(f"{case}, {name}", form, "CPU s", seconds)

    for name in FORMATS:
        compare("rounding of 1536 x 576", make_rounding, name)
    model = random_llama()
    for dtype in ("float32", "bfloat16"):
        for tokens in (1024, 2048):
            for name in ("int-asym 2 bits", "nf 3 bits"):
                make = partial(make_step, model, tokens, dtype)
                compare(f"step of {tokens} tokens, {dtype}", make, name)
    record.finish(chosen.write)


if __name__ == "__main__":
    main()
