"""The hyper-parameters of a training, and what follows from them alone: steps and learning rates.

Not here: what is done with them (`train`, `step`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from harness.core.checked import Checked, Count, CountOrNone
from harness.core.errors import SettingError
from harness.core.stage import added, incidental
from methods.training.masters import Trained
from methods.training.optimizer import Optimizer

Minutes: TypeAlias = Annotated[float, Field(ge=0, le=100_000)]
Share: TypeAlias = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True)
class Training(Checked):
    """The hyper-parameters. Defaults are BitDistiller's, where it publishes them.

    `trained`: "linears" the quantised weights only; "body" everything but embeddings and head, so
    norms too; `all` (the published code) also those, which then leave the 16-bit model's. The
    default keeps them as they are, since all methods compared here share them. "parameters" trains
    those of formats alone (`int-lsq`'s steps), on weights that stay.
    """

    steps: Count | None = None  # optimizer steps; null: as many as `epochs` needs
    # Times that each sequence is seen, where `steps` is null.
    epochs: Annotated[float, Field(gt=0, le=10_000)] = 4.0
    batch_size: Count = 128  # sequences a step
    lr: Annotated[float, Field(gt=0, le=10)] = 8e-6  # learning rate, at its highest
    # Of the learning rate after the warm-up.
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: CountOrNone = 0  # steps in which the learning rate rises to `lr`
    # Of matrices; never of norms and biases.
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)  # Adam's
    clip_norm: Annotated[float, Field(ge=0, le=1e6)] = 1.0  # of all gradients together; 0: off
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the computation; masters are float32
    optimizer: Optimizer = "adamw"  # 8-bit moments need torchao
    # Without embeddings and head, the rounded matrices alone, all, or formats' parameters alone.
    trained: Trained = "body"
    # Learning rate of formats' parameters, on the same schedule; null: `lr`, the one rate of the
    # papers (LSQ, ParetoQ). It was not tuned here: with Adam a step moves by it, however large.
    parameter_lr: Annotated[float, Field(gt=0, le=10)] | None = added(None)
    micro_batch: Count = incidental(8)  # sequences a process runs at once
    gradient_checkpointing: bool = incidental(False)  # blocks run again in the backward pass
    # Whether each training runs the teacher, or reads last states that are stored once for all on
    # the same data: the same to rounding, on a disk that has room.
    teacher_states: Literal["run", "stored"] = incidental("run")
    # Processes that share the model and the batch, on all nodes together.
    gpus: Annotated[Count, Field(le=100_000)] = incidental(1)
    nodes: Annotated[Count, Field(le=10_000)] = incidental(1)  # machines that these are spread over
    checkpoint_every: CountOrNone = incidental(100)  # steps between checkpoints; 0: not by steps
    # Between checkpoints, beside the steps; 0: not by minutes.
    checkpoint_minutes: Minutes = incidental(10.0)
    deterministic: bool = incidental(True)  # on a GPU: slower, and the same bits each time
    stop_diverged: bool = incidental(True)  # False: goes on, and keeps checkpoints, at any loss

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gpus % self.nodes:
            raise SettingError(
                f"{self.gpus} GPUs are not as many on each of {self.nodes} nodes; "
                "gpus counts those of all nodes",
                "nodes",
            )

    def count_steps(self, sequences: int) -> tuple[int, int]:
        """Steps, and sequences seen in all, for a data set of `sequences`.

        Counted in epochs the last step may be smaller, so that each sequence is seen equally often.
        """
        if self.steps is not None:
            return self.steps, self.steps * self.batch_size
        seen = max(1, round(self.epochs * sequences))
        return math.ceil(seen / self.batch_size), seen

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of step 0, 1, … `steps` − 1: linear warm-up, then the schedule to 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * done))
        return self.lr * (1 - done) if self.schedule == "linear" else self.lr
