"""What gradients through the range of a format cost, against gradients that pass unchanged.

    python -m benchmarks.gradients --out benchmarks/gradients.csv

The rounding alone, forward and backward, of a weight (1536, 576) in groups of 64; and whole steps
of distillation of `benchmarks.train_step`'s model by CAKLD. Rounding costs by the weight and the
rest of a step by the weight and token, so that what decides is the tokens of a step: BitDistiller
takes 131,072. CPU seconds of one thread, the least of several runs, the two gradients in turn, so
that other work on the machine shows little.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.train_step import random_llama
from harness.models import DTYPES, Model
from methods.quantization.formats import NF, Grouped, IntAsym, IntSym
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


def compare(make: Callable[[Grouped], Callable[[], object]], format: Grouped, runs: int) -> list:
    """Least milliseconds with either gradient, and their ratio."""
    jobs = [make(format), make(replace(format, gradient="through-range"))]
    least = [float("inf"), float("inf")]
    for _ in range(runs + 1):  # the first warms up
        for number, job in enumerate(jobs):
            began = time.process_time()
            job()
            least[number] = min(least[number], time.process_time() - began)
    return [f"{1000 * least[0]:.2f}", f"{1000 * least[1]:.2f}", f"{least[1] / least[0]:.3f}"]


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
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--runs", type=int, default=8)
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    rows = [["what", "format", "identity_ms", "through_range_ms", "ratio"]]
    for name, format in FORMATS.items():
        rows.append(["rounding", name, *compare(make_rounding, format, 10 * chosen.runs)])
        print(*rows[-1], flush=True)
    model = random_llama()
    for dtype in ("float32", "bfloat16"):
        for tokens in (1024, 2048):
            for name in ("int-asym 2 bits", "nf 3 bits"):

                def make(format: Grouped, tokens: int = tokens, dtype: str = dtype) -> Callable:
                    return make_step(model, tokens, dtype, format)

                figures = compare(make, FORMATS[name], chosen.runs)
                rows.append([f"step of {tokens} tokens, {dtype}", name, *figures])
                print(*rows[-1], flush=True)
    if chosen.out is not None:
        with chosen.out.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
