"""The one training loop: a quantised student, an objective, some tokens.

    Train(student, teacher, tokens, IntAsym(bits=2), CAKLD(), gamma, Training(steps=200), seed=0)

Whatever the method, a step is: round the masters once; for each micro-batch run teacher and student
trunks, then head and objective a chunk of label tokens at a time, each chunk's gradient going back
to the hidden states at once, so that logits of a whole batch never exist; one backward through the
trunk; then one AdamW step on the float32 masters. Gradients are sums over label tokens divided by
the whole batch's weight, so micro-batches of unequal length add up to the big batch: down to
rounding, which in bfloat16 is of each one's gradients to 8 bits and shows in the losses.

Where several processes run the stage they share both model and batch (`shards`); each goes through
the same steps, and the loss, the norm and thereby every decision is the same in all of them.

Training that meets NaN or Inf, or diverges (`diagnose`), stops and says where. A checkpoint is
written one step late, once the next loss has shown that its weights are good; the last step's
where they are finite, as no loss follows.

A run goes on from its work folder after a kill, to the same weights bit for bit where hardware,
library versions, number of processes and micro-batch are the same; on a GPU only `deterministic`,
and there it rests on what torch, cuBLAS and NCCL promise: no test here has one.

In this file: `Training`, `Train`, order and schedule. Not here: the weights (`masters`), what is
written (`checkpoint`), what a loss is (`objectives`), what went wrong (`diagnose`), how weights and
batch are shared out (`shards`).
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.core.checked import Checked
from harness.core.errors import BitgridError, SettingError, TrainingError
from harness.core.stage import Input, Resources, Stage, incidental, report, value
from harness.data import Tokens
from harness.models import DTYPES, PROCESS_GIB, Model, weights_gib
from methods.quantization.formats import Format
from methods.training import optimizer as optimizers
from methods.training.checkpoint import Checkpoint, Metrics
from methods.training.divergence import Course, diagnose, kept
from methods.training.forward import (
    Labels,
    check,
    chunks,
    each_state,
    hidden,
    logits,
    recompute,
    repeatable,
)
from methods.training.masters import Masters, Trained
from methods.training.objectives import Objective, token_nll
from methods.training.shards import Shards


@dataclass(frozen=True)
class Training(Checked):
    """The hyper-parameters. Defaults are BitDistiller's, where it publishes them.

    `trained`: `linears` the quantised weights only; `body` everything but embeddings and head, so
    norms too; `all` (the published code) also those, which then leave the 16-bit model's. The
    default keeps them as they are, since all methods compared here share them.
    """

    steps: int | None = None  # optimizer steps; None: as many as `epochs` needs
    epochs: float = 4.0
    batch_size: int = 128  # sequences a step
    lr: float = 8e-6
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0  # steps
    weight_decay: float = 0.0  # of matrices; never of norms and biases
    betas: tuple[float, float] = (0.9, 0.999)
    clip_norm: float = 1.0  # 0: off
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; masters are float32
    optimizer: optimizers.Optimizer = "adamw"  # 8-bit moments need torchao
    trained: Trained = "body"
    micro_batch: int = incidental(8)  # sequences a process runs at once
    gradient_checkpointing: bool = incidental(False)  # blocks run again in the backward pass
    gpus: int = incidental(1)  # processes that share the model and the batch
    checkpoint_every: int = incidental(100)  # steps; 0: never
    deterministic: bool = incidental(True)  # on a GPU: slower, and the same bits each time
    stop_diverged: bool = incidental(True)  # False: goes on, and keeps checkpoints, at any loss

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            "batch_size",
            "micro_batch",
            "gpus",
            "epochs" if self.steps is None else "steps",
        ):
            if getattr(self, name) <= 0:
                raise SettingError(f"{name} {getattr(self, name)} is not positive")
        for name in ("lr", "warmup", "weight_decay", "clip_norm", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise SettingError(f"{name} {getattr(self, name)} is negative")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise SettingError(f"betas {self.betas} are not from 0 to below 1")
        for name, choices in (
            ("schedule", ("constant", "cosine", "linear")),
            ("dtype", ("float32", "bfloat16")),
            ("trained", ("body", "linears", "all")),
            ("optimizer", ("adamw", "adamw-8bit")),
        ):
            if getattr(self, name) not in choices:
                raise SettingError(
                    f"{name} {getattr(self, name)!r} is unknown; choices: {', '.join(choices)}"
                )

    def extent(self, sequences: int) -> tuple[int, int]:
        """Steps, and sequences seen in all, for a data set of `sequences`.

        Counted in epochs the last step may be smaller, so that each sequence is seen equally often.
        """
        if self.steps is not None:
            return self.steps, self.steps * self.batch_size
        seen = max(1, round(self.epochs * sequences))
        return math.ceil(seen / self.batch_size), seen

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, … `steps` − 1: linear warm-up, then the schedule to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * (1 - done) if self.schedule == "linear" else self.lr


@dataclass(frozen=True)
class Train(Stage[Model]):
    """The student after training: float32 latent weights, which a later stage rounds.

    `teacher` may be None for objectives without one; `statistic` is the value of the stage that
    `objective.statistic` returns. The seed decides the data order and nothing else, so cells that
    share a seed see the same batches whatever their objective and format.
    """

    student: Input[Model]
    teacher: Input[Model] | None
    tokens: Input[Tokens]
    format: Format
    objective: Objective
    statistic: Input[float] | None
    training: Training
    seed: int = 0

    @property
    def resources(self) -> Resources:
        # The first process has the weights as they are read and as they are changed before training,
        # and at the end the trained ones; the others have what it wrote mapped. One more starts them.
        own = max(2 * weights_gib(self.student), weights_gib(self.student, torch.float32))
        read = own if self.teacher is None else max(own, weights_gib(self.teacher))
        processes = PROCESS_GIB * (self.training.gpus + 1)
        asked = math.ceil(processes + read)
        return Resources(gpus=self.training.gpus, memory_gib=asked, hours=24.0)

    def leaner(self) -> Self:
        smaller = max(1, self.training.micro_batch // 2)
        return replace(self, training=replace(self.training, micro_batch=smaller))

    def preflight(self) -> None:
        optimizers.require(self.training.optimizer)

    def run(self, work: Path) -> Model:
        """Raises TrainingError on NaN, Inf or divergence; ModelError, TextError, FormatError on
        misfits."""
        teacher = None
        if self.objective.teacher:
            if self.teacher is None:
                raise BitgridError(f"the objective {self.objective.name!r} needs a teacher")
            teacher = value(self.teacher)
        student, tokens = value(self.student), value(self.tokens)
        check(student, teacher, tokens)
        dtype, shards = DTYPES[self.training.dtype], Shards.here()
        loop = _Loop(
            self.training,
            self.objective,
            None if self.statistic is None else value(self.statistic),
            Masters.of(student, self.format, self.training.trained, dtype, shards),
            None if teacher is None else shards.split(teacher, dtype),
            tokens,
            self.seed,
        )
        steady = self.training.deterministic
        with repeatable(loop.masters.network.device) if steady else contextlib.nullcontext():
            return loop.run(work)


@dataclass
class _Loop:
    training: Training
    objective: Objective
    statistic: float | None
    masters: Masters
    teacher: Model | None
    tokens: Tokens
    seed: int
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        if self.training.gradient_checkpointing:
            recompute(self.masters.network)
        self.optimizer = optimizers.adamw(
            self.training.optimizer,
            self.masters.weights.values(),
            self.training.lr,
            self.training.betas,
            self.training.weight_decay,
        )

    def run(self, work: Path) -> Model:
        training, masters, shards = self.training, self.masters, self.masters.shards
        steps, seen = training.extent(len(self.tokens))
        checkpoint = Checkpoint(work / "checkpoint.safetensors", shards, masters.places)
        facts = checkpoint.load(masters.weights, self.optimizer) or {"step": 0, "tokens": 0}
        first, tokens = int(facts["step"]), int(facts["tokens"])
        saved = first
        metrics = Metrics(work / "metrics.jsonl", first, shards.leads)
        course = shards.first(metrics.course) or Course()
        before = metrics.last["seconds"] if metrics.last else 0.0
        began = last = time.perf_counter()

        def keep(step: int) -> None:
            metrics.sync()
            checkpoint.save(step, masters.weights, self.optimizer, {"tokens": tokens})

        batches = order(len(self.tokens), training.batch_size, seen, self.seed, first)
        try:
            for step, rows in zip(range(first + 1, steps + 1), batches, strict=True):
                rate = training.rate(step - 1, steps)
                micro = self._micro_batches(rows)
                loss, norm = self._gradients(micro)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise TrainingError(self._cause(step, micro, loss, saved))
                labels = int(self.tokens.mask[rows, 1:].sum())
                course.add(loss, labels)
                if training.stop_diverged and course.diverged():
                    raise TrainingError(course.divergence(step, *masters.furthest(), saved))
                if labels and self._due(step - 1, saved, course):
                    keep(step - 1)
                    saved = step - 1
                self._update(rate, norm)
                now = time.perf_counter()
                tokens += labels
                metrics.write(
                    {
                        "step": step,
                        "tokens": tokens,
                        "loss": loss,
                        "grad_norm": norm,
                        "lr": rate,
                        "tokens_per_s": round(labels / (now - last), 1),
                        "seconds": round(before + now - began, 3),
                    }
                )
                last = now
                report(step, steps, loss=loss)
            if self._due(steps, saved, course) and masters.finite():
                keep(steps)
        finally:
            metrics.close()
        return masters.model()

    def _gradients(self, micro: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
        """Loss and gradient norm of a batch; the gradients stand in the masters."""
        self.masters.refresh()
        sums = torch.zeros(2, device=self.masters.network.device)
        for ids, mask in micro:
            sums += self._backward(ids, mask)
            self.masters.gather()
        total, weight = self.masters.shards.sum(sums).tolist()
        scale = 1 / weight if weight else 0.0
        return total * scale, float(self.masters.settle(scale))

    def _backward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Σ weight·loss and Σ weight of a micro-batch: (2,); the sum's gradients are left behind.

        ids (B, T) int64, mask (B, T) bool.
        """
        network, labels = self.masters.network, Labels.of(ids, mask)
        guide = weights = None
        if self.teacher is not None:
            with torch.no_grad():
                guide = labels.pick(hidden(self.teacher.network, ids))
        if self.objective.weighted:
            weights = self._weights(guide, labels)
        states = labels.pick(hidden(network, ids))
        total = torch.zeros((), device=ids.device)
        gradient = torch.zeros_like(states)
        for part in chunks(len(states), network.config.vocab_size, states.device):
            piece = states[part].detach().requires_grad_()
            target = None
            if self.teacher is not None and guide is not None:
                with torch.no_grad():
                    target = logits(self.teacher.network, guide[part])
            losses = self.objective.tokens(
                logits(network, piece), target, labels.ids[part], self.statistic
            )
            summed = (losses if weights is None else losses * weights[part]).sum()
            summed.backward()
            total += summed.detach()
            assert piece.grad is not None
            gradient[part] = piece.grad
        states.backward(gradient)
        weight = total.new_tensor(float(len(states))) if weights is None else weights.sum()
        return torch.stack([total, weight])

    def _weights(self, guide: Tensor | None, labels: Labels) -> Tensor:
        """(N,): the objective's token weights, from the teacher's loss on every label.

        guide (N, D): the teacher's states.
        """
        assert self.teacher is not None and guide is not None
        nll = labels.spread(each_state(self.teacher.network, guide, labels, token_nll))
        return self.objective.weights(nll, labels.where)[labels.where]

    def _update(self, rate: float, norm: float) -> None:
        """Clip the masters' gradients to the norm allowed, let the optimizer step, and let them go."""
        limit, masters = self.training.clip_norm, self.masters.weights.values()
        if limit and norm > limit:
            grads = [w.grad for w in masters if w.grad is not None]
            torch._foreach_mul_(grads, limit / (norm + 1e-6))
        optimizers.set_rate(self.optimizer, rate)
        self.optimizer.step()
        for master in masters:
            master.grad = None

    def _micro_batches(self, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
        """ids and mask of each micro-batch of this process, sequences of like length together,
        padding cut off; none where the step has no labels.

        All processes have equally many, since their collectives must meet: where rows do not go
        round, rows without labels fill up.
        """
        ids, mask = self.tokens.ids[rows], self.tokens.mask[rows]
        if not bool(mask[:, 1:].any()):
            return []
        shards = self.masters.shards
        lacking = (0, 0, 0, -len(rows) % shards.world)
        ids, mask = F.pad(ids, lacking), F.pad(mask, lacking)
        places = torch.arange(mask.shape[1])
        ends = (mask * places).amax(1) + 1
        by_length = shards.deal(ends.argsort(stable=True, descending=True))
        device = self.masters.network.device
        return [
            (
                ids[some, : int(ends[some].max())].to(device),
                mask[some, : int(ends[some].max())].to(device),
            )
            for some in by_length.split(self.training.micro_batch)
        ]

    def _due(self, step: int, saved: int, course: Course) -> bool:
        """Whether a checkpoint should be written after `step`, or should have been since `saved`."""
        every = self.training.checkpoint_every
        bad = self.training.stop_diverged and course.worse()
        return bool(every) and step // every > saved // every and not bad

    def _cause(self, step: int, micro: list[tuple[Tensor, Tensor]], loss: float, saved: int) -> str:
        networks = {"": self.masters.network}
        if self.teacher is not None:
            networks["teacher's "] = self.teacher.network
        self.masters.refresh()
        found = diagnose(
            networks,
            lambda: [self._backward(*pair) for pair in micro],
            gradients=math.isfinite(loss),
        )
        found = self.masters.shards.first(found)
        where = found or f"the objective {self.objective.name!r} itself, at a loss of {loss}"
        return f"training met NaN or Inf at step {step}: {where}; {kept(saved)}"


def order(sequences: int, batch: int, seen: int, seed: int, first: int = 0) -> Iterator[Tensor]:
    """The rows of each step from `first` on: int64 (batch,), the last one shorter if it must be.

    One permutation of all sequences after another, cut into batches across epochs, so that none is
    left out and each is seen as often as any other, give or take one.
    """
    generator = torch.Generator().manual_seed(seed)
    stream = torch.empty(0, dtype=torch.int64)
    for step, start in enumerate(range(0, seen, batch)):
        size = min(batch, seen - start)
        while len(stream) < size:
            stream = torch.cat([stream, torch.randperm(sequences, generator=generator)])
        rows, stream = stream[:size], stream[size:]
        if step >= first:
            yield rows
