"""What products in 16 bits cost as float32's, against torch's own on this processor.

    python -m benchmarks.widened_products [--write] [--runs 5]

A linear layer (1536, 576) on 1024 tokens and causal attention, forward and backward, and a step of
distillation by CAKLD of `benchmarks.train_step`'s model. `harness.models.widening` replaces torch's
products only on processors without instructions for them: elsewhere this measures what that would
lose. CPU seconds of one thread, the two in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.fake_quantization import make_linear
from benchmarks.gradients import make_step
from benchmarks.record import Record, time_in_turn
from benchmarks.train_step import random_llama
from harness.models.widening import widening
from methods.quantization.formats import IntAsym


def make_attention(dtype: torch.dtype) -> Callable[[], object]:
    """Forward and backward of 4 sequences of 256 tokens, 9 heads of width 64."""
    states = torch.randn(4, 9, 256, 64).to(dtype).requires_grad_()
    slopes = torch.randn(4, 9, 256, 64).to(dtype)

    def run() -> None:
        states.grad = None
        scaled_dot_product_attention(states, states, states, is_causal=True).backward(slopes)

    return run


def run_with(run: Callable[[], object], *widened: torch.dtype) -> None:
    """With products of these dtypes in float32, and torch's own of all others."""
    with widening(*widened):
        run()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--runs", type=int, default=5)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    record = Record("widened_products", baseline="torch")
    model = random_llama()
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).partition(".")[2]
        cases = {
            "linear 1536 x 576, 1024 tokens": make_linear(dtype, lambda weight: weight),
            "attention, 4 x 256 tokens, 9 heads": make_attention(dtype),
        }
        if dtype is torch.bfloat16:
            cases["step, 2048 tokens"] = make_step(model, 2048, name, IntAsym(2, 64))
        for case, run in cases.items():
            forms = {"torch": partial(run_with, run), "widened": partial(run_with, run, dtype)}
            for form, seconds in time_in_turn(forms, chosen.runs, time.process_time).items():
                record.add(f"{case}, {name}", form, "CPU s", seconds)
    record.finish(chosen.write)


if __name__ == "__main__":
    main()
