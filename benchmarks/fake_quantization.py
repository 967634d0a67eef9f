"""What fake quantisation costs: of a linear layer, and of a step of distillation.

    python -m benchmarks.fake_quantization [--write] [--linear-runs N] [--step-runs N]

A linear layer (1536, 576) on 1024 tokens, forward and backward, inputs' gradient too: with its
weight as it is, and rounded on the way. `nf3, level by level` is normal floats plainly, the whole
weight at once and a comparison a level, as they were before `methods.quantization.levels` had its
form. Then SmolLM2-135M's steps of distillation by CAKLD, teacher included, on 4 sequences of 256
random tokens: `plain` is the same loop with `format: none`. A processor's seconds,
one thread, in turn.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.record import Record, time_in_turn
from harness.models import Model, read_model, smollm2
from methods.quantization.formats import NF, Format, FullPrecision, Grouped, IntAsym, bounds
from methods.quantization.levels import normal_levels
from methods.quantization.scales import store_scale
from methods.training.masters import Masters
from methods.training.objectives import CAKLD
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep

INT2, NF3 = IntAsym(2, 64), NF(3, 64)
FORMATS: dict[str, Grouped] = {
    "int2": INT2,
    "nf3": NF3,
    "int2, through-range": replace(INT2, gradient="through-range"),
    "nf3, through-range": replace(NF3, gradient="through-range"),
}
OUT, IN, TOKENS, LENGTH = 1536, 576, 1024, 256


def round_level_by_level(weight: Tensor) -> Tensor:
    """`NF(3, 64).quantize`, plainly: (O, I) -> (O, I)."""
    groups = weight.unflatten(-1, (-1, NF3.group_size)).float()
    low, high = bounds(groups)
    below, above = store_scale(-low), store_scale(high)
    levels: list[float] = torch.tensor(normal_levels(NF3.bits)).tolist()
    up = _count_up((groups / above).clamp_max_(high / above), [x for x in levels if x >= 0])
    down = _count_up(
        (groups / -below).clamp_max_(-low / below), [-x for x in levels[::-1] if x <= 0]
    )
    return up.mul_(above).sub_(down.mul_(below)).flatten(-2).to(weight.dtype)


def _count_up(ratios: Tensor, levels: list[float]) -> Tensor:
    values, passed = torch.zeros_like(ratios), torch.empty_like(ratios)
    for lower, upper in pairwise(levels):
        torch.gt(ratios, (lower + upper) / 2, out=passed)
        values.add_(passed, alpha=upper - lower)
    return values


class _Plainly(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, weight: Tensor) -> Tensor:
        return round_level_by_level(weight)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def make_linear(dtype: torch.dtype, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Forward and backward of a layer whose weight is changed on the way."""
    torch.manual_seed(0)
    weight = (torch.randn(OUT, IN) / 30).to(dtype).requires_grad_()
    inputs = torch.randn(TOKENS, IN).to(dtype).requires_grad_()
    slopes = torch.randn(TOKENS, OUT).to(dtype)

    def run() -> None:
        weight.grad = inputs.grad = None
        linear(inputs, change(weight)).backward(slopes)

    return run


def make_steps(model: Model, formats: Mapping[str, Format]) -> dict[str, Callable[[], None]]:
    """A step in bfloat16 with each format, of the same masters in float32: no two sets of them."""
    training = Training(steps=1, batch_size=4, micro_batch=4, lr=1e-6, dtype="bfloat16")
    masters = Masters.of(model, FullPrecision(), training.trained, torch.bfloat16)
    step = TrainingStep(training, CAKLD(), 0.5, masters, ALONE.split(model, torch.bfloat16))
    ids = torch.randint(0, model.vocabulary, (TOKENS // LENGTH, LENGTH))

    def run(format: Format) -> None:
        masters.format = format
        _, norm = step.compute_gradients([(ids, torch.ones_like(ids, dtype=torch.bool))])
        step.update(training.lr, norm)

    return {name: partial(run, format) for name, format in formats.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--linear-runs", type=int, default=41)
    options.add_argument("--step-runs", type=int, default=5)
    options.add_argument("--write", action="store_true")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    record = Record("fake_quantization", baseline="plain")
    weight = torch.randn(OUT, IN)
    assert torch.equal(round_level_by_level(weight), NF3.quantize(weight))
    for dtype in (torch.float32, torch.bfloat16):
        forms = {"plain": make_linear(dtype, lambda weight: weight)}
        forms["nf3, level by level"] = make_linear(dtype, _Plainly.apply)
        for name, format in FORMATS.items():
            forms[name] = make_linear(dtype, format.quantize_with_gradient)
        case = f"linear {OUT} x {IN}, {TOKENS} tokens, {str(dtype).partition('.')[2]}"
        for form, seconds in time_in_turn(forms, chosen.linear_runs, time.process_time).items():
            record.add(case, form, "CPU s", seconds)
    if chosen.step_runs:
        model = read_model(str(smollm2.unpacked_folder()), torch.bfloat16)
        steps = make_steps(model, {"plain": FullPrecision(), **FORMATS})
        case = f"step of SmolLM2-135M, {TOKENS // LENGTH} x {LENGTH} tokens, bfloat16"
        for form, seconds in time_in_turn(steps, chosen.step_runs, time.process_time).items():
            record.add(case, form, "CPU s", seconds)
    record.finish(chosen.write)


if __name__ == "__main__":
    main()
