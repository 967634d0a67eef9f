"""How much of a distillation step is the teacher's trunk, which stored states save?

    OMP_NUM_THREADS=1 taskset -c 1 python -m benchmarks.teacher_states --write

SmolLM2-135M distils itself at 2 bits by CAKLD on 4 sequences of 256 tokens, a micro-batch. In turn:
a step that runs the teacher, one that reads its stored states, and one without a teacher (cross
entropy), which is what no saving on the teacher can be below but for CAKLD's own cost. Then the
stage that stores the states of these sequences, which all trainings on them pay once. Seconds are
the processor's, of one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from benchmarks.record import Record, time_in_turn
from harness.core.execution import execute
from harness.data import Tokens
from harness.models import DTYPES, Model, pretrained
from methods.quantization.formats import IntAsym
from methods.training.batches import split_batch
from methods.training.forward import keep_head
from methods.training.masters import Masters
from methods.training.objectives import CAKLD, CE, Objective
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep
from methods.training.teacher_states import States, TeacherStates

BATCH, LENGTH = 4, 256


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--repetitions", type=int, default=7)
    options.add_argument("--dtype", nargs="*", default=["float32", "bfloat16"])
    options.add_argument("--write", action="store_true", help="keep the figures")
    chosen = options.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = pretrained("smollm2-135m", "bfloat16").run(Path())
    ids = torch.randint(model.vocabulary, (BATCH, LENGTH))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    record = Record("teacher_states", baseline="teacher runs")
    for dtype in chosen.dtype:
        with tempfile.TemporaryDirectory() as work:
            store = partial(_store, Path(work), model, tokens, dtype)
            states = store()
            forms = {
                "teacher runs": _prepare(model, tokens, dtype, CAKLD(0.5), None),
                "states stored": _prepare(model, tokens, dtype, CAKLD(0.5), states),
                "no teacher": _prepare(model, tokens, dtype, CE(), None),
                "storing, once": store,
            }
            seconds = time_in_turn(forms, chosen.repetitions, time.process_time)
        case = f"step in {dtype}, {BATCH} × {LENGTH} tokens, {model.vocabulary} words"
        for form, values in seconds.items():
            record.add(case, form, "CPU s", values)
    record.finish(write=chosen.write)


def _store(work: Path, model: Model, tokens: Tokens, dtype: str) -> States:
    for file in work.iterdir():
        file.unlink()  # what is there is not computed again
    return execute(TeacherStates(model, tokens, dtype, BATCH), {}, work)  # type: ignore[arg-type]


def _prepare(
    model: Model, tokens: Tokens, dtype: str, objective: Objective, states: States | None
) -> Callable[[], object]:
    """A step of a training: gradients of one micro-batch, and the optimizer's move."""
    training = Training(batch_size=BATCH, micro_batch=BATCH, lr=1e-5, dtype=dtype)  # type: ignore[arg-type]
    compute = DTYPES[dtype]
    masters = Masters.of(model, IntAsym(2, 64), training.trained, compute)
    teacher = None
    if objective.needs_teacher:
        teacher = ALONE.split(model if states is None else keep_head(model), compute)
    read = None if states is None else states.read
    step = TrainingStep(training, objective, None, masters, teacher, read)
    batch = split_batch(tokens, torch.arange(BATCH), BATCH, ALONE, masters.network.device)

    def run() -> None:
        _, norm = step.compute_gradients(batch)
        step.update(training.lr, norm)

    return run


if __name__ == "__main__":
    main()
