"""The one training loop: a quantised student, an objective, some tokens.

    Train(student, teacher, tokens, IntAsym(bits=2), CAKLD(), gamma, Training(steps=200), seed=0)

Whatever the method, the loop takes one step after another (`step`), writes a checkpoint now and
then and stops where training goes wrong. Where several processes run the stage they share both
model and batch (`shards`); each goes through the same steps, and the loss, the norm and thereby
every decision is the same in all of them.

Training that meets NaN or Inf, or diverges (`divergence`), stops and says where. A checkpoint is
written one step late, once the next loss has shown that its weights are good; the last step's
where they are finite, as no loss follows.

A run goes on from its work folder after a kill, to the same weights bit for bit where hardware,
library versions, number of processes and micro-batch are the same; on a GPU only `deterministic`,
and there it rests on what torch, cuBLAS and NCCL promise: no test here has one.

Not here: the step (`step`), order and micro-batches (`batches`), hyper-parameters (`settings`),
what is written (`checkpoint`), what went wrong (`divergence`).
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from harness.core.errors import BitgridError, TrainingError
from harness.core.halting import find_whole, halt
from harness.core.stage import Input, Resources, Stage, added, report, value
from harness.data import Tokens, count_asked
from harness.models import DTYPES, PROCESS_GIB, Model, Pass, list_passes, weights_gib
from methods.quantization.formats import Format
from methods.training import optimizer
from methods.training.batches import order_rows, split_batch
from methods.training.checkpoint import Checkpoints, Metrics, find_last_step
from methods.training.determinism import compute_deterministically
from methods.training.divergence import LossHistory, describe_checkpoint
from methods.training.forward import keep_head
from methods.training.masters import Masters
from methods.training.objectives import Objective
from methods.training.preflight import check_inputs, find_block_objective
from methods.training.settings import Training
from methods.training.shards import ALONE, Shards
from methods.training.step import TrainingStep
from methods.training.teacher_states import States, make_states


@dataclass(frozen=True)
class Train(Stage[Model]):
    """The student after training: float32 latent weights, which a later stage rounds.

    `teacher` may be None for objectives without one; `statistic` is the value of the stage that
    `objective.build_statistic` returns. The seed decides the data order and nothing else, so cells
    that share a seed see the same batches whatever their objective and format.
    """

    kind: ClassVar[str] = "train"
    student: Input[Model]
    teacher: Input[Model] | None
    tokens: Input[Tokens]
    format: Format
    objective: Objective
    statistic: Input[Any] | None
    training: Training
    seed: int = 0
    until: int | None = added(None)  # the step after which it ends, on the schedule of all of them
    states: Input[States] | None = added(None)  # the teacher's, where the training does not run it

    @property
    def on_host(self) -> bool:  # type: ignore[override]
        """With stored states the head is all that the device needs of the teacher."""
        return self.states is not None

    @property
    def resources(self) -> Resources:
        # The first process has the weights as they are read and as they are changed before
        # training, and at the end the trained ones; the others have what it wrote mapped. One more
        # starts those of a node.
        own = max(2 * weights_gib(self.student), weights_gib(self.student, torch.float32))
        read = own if self.teacher is None else max(own, weights_gib(self.teacher))
        training = self.training
        processes = PROCESS_GIB * (training.gpus // training.nodes + 1)
        asked = math.ceil(processes + read)
        return Resources(training.gpus, memory_gib=asked, hours=24.0, nodes=training.nodes)

    def leaner(self) -> Self:
        smaller = max(1, self.training.micro_batch // 2)
        return replace(self, training=replace(self.training, micro_batch=smaller))

    def preflight(self) -> None:
        optimizer.require(self.training.optimizer)

    def run(self, work: Path) -> Model:
        """Raises TrainingError on NaN, Inf or divergence; ModelError, TextError, FormatError on
        misfits."""
        teacher = None
        if self.objective.needs_teacher:
            if self.teacher is None:
                raise BitgridError(f"the objective {self.objective.name!r} needs a teacher")
            teacher = value(self.teacher)
        student, tokens = value(self.student), value(self.tokens)
        states = None if self.states is None else value(self.states)
        check_inputs(student, teacher, tokens, self.objective, runs_teacher=states is None)
        dtype, shards = DTYPES[self.training.dtype], Shards.here()
        if teacher is not None and states is None:
            teacher = shards.split(teacher, dtype)
        elif teacher is not None and states is not None:
            states.check_fits(tokens)
            teacher = ALONE.split(keep_head(teacher), dtype)  # each process has the head
        step = TrainingStep(
            self.training,
            self.objective,
            None if self.statistic is None else value(self.statistic),
            Masters.of(student, self.format, self.training.trained, dtype, shards),
            teacher,
            None if states is None else states.read,
        )
        device = step.masters.network.device
        same_bits = compute_deterministically(device) if self.training.deterministic else None
        with same_bits or contextlib.nullcontext():
            return _Loop(step, tokens, self.seed, work).run(self.until)


@halt.register
def _of_beginning(stage: Train, share: float) -> Train:
    """The steps of epochs are those of the sequences asked for."""
    sequences, _ = count_asked(stage.tokens) or (0, 0)
    steps, _ = stage.training.count_steps(sequences)
    until = max(1, round(share * steps))
    return replace(stage, until=until) if until < steps else stage


@find_whole.register
def _of_rest(stage: Train) -> Train | None:
    return None if stage.until is None else replace(stage, until=None)


@list_passes.register
def _of_train(stage: Train) -> tuple[Pass, ...]:
    """The student is trained; the teacher reads each batch once, and twice where the objective
    looks at the batch before its first gradient (`TrainingStep`). Of stored states its head reads
    them as often."""
    asked = count_asked(stage.tokens)
    if asked is None:
        return ()
    assert isinstance(stage.student, Stage)
    _, seen = stage.training.count_steps(asked[0])
    if stage.until is not None:
        seen = min(seen, stage.until * stage.training.batch_size)
    trained = Pass(stage.student, seen * asked[1], "trained")
    if not isinstance(stage.teacher, Stage):
        return (trained,)
    terms = stage.objective.list_terms()
    ways = {term.objective if term.objective.weighted else None for term in terms}
    times = 2 if len(ways) > 1 or any(term.share for term in terms) else 1
    read = times * trained.tokens
    if stage.states is not None:
        return trained, Pass(stage.teacher, read, "headed")
    instead = None
    if isinstance(stage.tokens, Stage) and find_block_objective(stage.objective) is None:
        instead = make_states(stage.teacher, stage.tokens, stage.training)
    return trained, Pass(stage.teacher, read, "read", instead)


class _Loop:
    """The steps of a training, from its last checkpoint to its end."""

    def __init__(self, step: TrainingStep, tokens: Tokens, seed: int, work: Path) -> None:
        self.step, self.tokens, self.seed = step, tokens, seed
        self.training, self.masters = step.training, step.masters
        shards = self.masters.shards
        metrics = work / "metrics.jsonl"
        self.checkpoints = Checkpoints(work, shards, self.masters.places)
        facts = self.checkpoints.load(self.masters.weights, step.optimizer, find_last_step(metrics))
        self.done, self.learnt = (int(facts["step"]), int(facts["tokens"])) if facts else (0, 0)
        self.saved = self.done  # the step of the last checkpoint
        self.tried = self.done  # of the last that was to be written: a disk may be full
        self.clock = time.monotonic()  # then
        self.metrics = Metrics(metrics, self.done, shards.is_main)
        self.history = shards.find_first(self.metrics.history) or LossHistory()

    def run(self, until: int | None = None) -> Model:
        training = self.training
        steps, seen = training.count_steps(len(self.tokens))
        end = steps if until is None else min(steps, until)
        batches = order_rows(len(self.tokens), training.batch_size, seen, self.seed, self.done)
        before = self.metrics.last["seconds"] if self.metrics.last else 0.0
        began = last = time.perf_counter()
        try:
            batches = islice(batches, max(0, end - self.done))
            for number, rows in zip(range(self.done + 1, end + 1), batches, strict=True):
                labels = int(self.tokens.mask[rows, 1:].sum())
                loss, norm = self._compute_gradients(number, rows, labels)
                if labels and self._is_due(number - 1):
                    self._save(number - 1)
                rate = training.learning_rate(number - 1, steps)
                self.step.update(rate, norm)
                now = time.perf_counter()
                self.learnt += labels
                self.metrics.write(
                    {
                        "step": number,
                        "tokens": self.learnt,
                        "loss": loss,
                        "grad_norm": norm,
                        "lr": rate,
                        "tokens_per_s": round(labels / (now - last), 1),
                        "seconds": round(before + now - began, 3),
                    }
                )
                last = now
                report(number, end, loss=loss)
            is_due = self._is_due(end) or (end < steps and self.saved < end)
            if is_due and self.masters.are_finite():
                self._save(end)
        finally:
            self.metrics.close()
        return self.masters.build_model()

    def _compute_gradients(self, number: int, rows: Tensor, labels: int) -> tuple[float, float]:
        """Loss and gradient norm of step `number`. Raises TrainingError where it went wrong."""
        masters, training = self.masters, self.training
        micro_batches = split_batch(
            self.tokens, rows, training.micro_batch, masters.shards, masters.network.device
        )
        loss, norm = self.step.compute_gradients(micro_batches)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            cause = self.step.find_cause(micro_batches, loss)
            raise TrainingError(
                f"training met NaN or Inf at step {number}: {cause}; "
                f"{describe_checkpoint(self.saved)}"
            )
        self.history.add(loss, labels)
        if training.stop_diverged and self.history.has_diverged():
            moved = masters.find_furthest()
            raise TrainingError(self.history.describe_divergence(number, *moved, self.saved))
        return loss, norm

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint should be written after `step`, or should have been since the
        last."""
        every, minutes = self.training.checkpoint_every, self.training.checkpoint_minutes
        due = bool(every) and step // every > self.tried // every
        if minutes and step > self.tried:
            late = time.monotonic() - self.clock >= 60 * minutes
            due |= self.masters.shards.all_follow(late)  # clocks differ between processes
        return due and not (self.training.stop_diverged and self.history.is_worse())

    def _save(self, step: int) -> None:
        """Write a checkpoint. Where the disk fails, training goes on from memory all the same.

        Raises Outbid where another owner has taken the stage over.
        """
        self.tried, self.clock = step, time.monotonic()
        try:
            self.metrics.sync()
            facts = {"tokens": self.learnt}
            self.checkpoints.save(step, self.masters.weights, self.step.optimizer, facts)
        except OSError as error:
            warnings.warn(f"no checkpoint at step {step}: {error}", stacklevel=1)
        else:
            self.saved = step
