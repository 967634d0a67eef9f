"""The teacher's last hidden states, computed once and kept for all trainings on the same data.

    states = TeacherStates(teacher, tokens, "bfloat16")     # a stage, which cells share
    Train(…, states=states)                                 # its head alone is run in training

What is kept is what the teacher's trunk gives, in the dtype in which a training runs it: nothing is
rounded, and the head makes the same logits of it. A training that runs its teacher itself has the
same states to the last bit where a row of a product does not depend on how many there are: on a
CPU and a GPU alike libraries promise that for equal shapes only, so states are computed in
micro-batches of the training's own size. Where texts end early the padding differs, and with it, at
most, the last bits.

    states-00000000.safetensors     "states" (N, D), "counts" (B,), and a digest of both

A file has so many sequences as fit in 256 MiB, a power of two. Those that are whole are not
computed again after a kill. Not here: how a training reads them (`step`), the states behind every
block, which are as many times larger as there are blocks.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.errors import BitgridError, ModelError
from harness.core.stage import Input, Resources, Stage, incidental, report, value
from harness.data import Tokens, count_asked
from harness.models import (
    DTYPES,
    Model,
    Pass,
    find_first_broken,
    host_gib,
    list_passes,
    run_trunk,
    states_gib,
)
from methods.tensor_files import is_whole, map_tensors, write_checked
from methods.training.determinism import compute_deterministically
from methods.training.forward import Labels
from methods.training.objectives import Objective
from methods.training.preflight import check_split, find_block_objective
from methods.training.settings import Training
from methods.training.shards import ALONE

_FILE_BYTES = 2**28  # of states, at most: what a kill loses, and what is held while it is made


@dataclass(frozen=True, eq=False)
class States:
    """Last hidden states at the label positions of B sequences, in files that are mapped: of them
    only what is read takes memory.

    files: of consecutive sequences each; parts: (N, D) of each file; counts: (B,) int64, the label
    positions of each sequence; digests: of each file; tokens: of the sequences.
    """

    files: tuple[Path, ...]
    parts: tuple[Tensor, ...]
    counts: tuple[Tensor, ...]
    digests: tuple[str, ...]
    tokens: str

    @classmethod
    def open(cls, files: Sequence[Path], tokens: str) -> States:
        held, digests = zip(*map(map_tensors, files), strict=True)
        parts, counts = (tuple(each[name] for each in held) for name in ("states", "counts"))
        return cls(tuple(files), parts, counts, digests, tokens)

    def read(self, rows: Tensor) -> Tensor:
        """Those of the sequences `rows` (b,), one after the other: (N, D), a copy on the host.

        Of a number below 0, a row that fills up a batch, there are none.
        """
        chosen = [self._read_row(row) for row in rows.tolist() if row >= 0]
        return torch.cat(chosen) if chosen else self.parts[0][:0].clone()

    def _read_row(self, row: int) -> Tensor:
        number = bisect_right(self._firsts, row) - 1
        ends, place = self._ends[number], row - self._firsts[number]
        return self.parts[number][ends[place] : ends[place + 1]]

    @cached_property
    def _firsts(self) -> list[int]:
        """The first sequence of each file."""
        return list(accumulate((len(each) for each in self.counts), initial=0))[:-1]

    @cached_property
    def _ends(self) -> list[list[int]]:
        """Of each file where its sequences end, after a 0."""
        return [[0, *each.cumsum(0).tolist()] for each in self.counts]

    def check_fits(self, tokens: Tokens) -> None:
        """Raise BitgridError where they are of other sequences."""
        if self.tokens != digest_tokens(tokens):
            raise BitgridError(
                "the stored states of the teacher are of other sequences than those that are "
                "trained on: the text has changed; train.teacher_states: run"
            )

    def fingerprint(self) -> Mapping[str, str]:
        """The digests that the files were written with: reading them through takes minutes, and
        nothing gives out what they map but copies."""
        names = (file.name for file in self.files)
        return {"tokens": self.tokens, **dict(zip(names, self.digests, strict=True))}

    def save(self, folder: Path) -> dict[str, Any]:
        for file in self.files:
            try:
                os.link(file, folder / file.name)  # a name more, no second copy
            except OSError:
                shutil.copyfile(file, folder / file.name)
        return {
            "files": [file.name for file in self.files],
            "tokens": self.tokens,
            "sequences": sum(map(len, self.counts)),
            "labels": sum(map(len, self.parts)),
            "width": self.parts[0].shape[1],
            "dtype": str(self.parts[0].dtype).removeprefix("torch."),
        }

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> States:
        return cls.open([folder / name for name in facts["files"]], facts["tokens"])


def digest_tokens(tokens: Tokens) -> str:
    """Of ids and mask."""
    parts = (tokens.ids.contiguous(), tokens.mask.contiguous())
    digest = hashlib.sha256(repr([tuple(part.shape) for part in parts]).encode())
    for part in parts:
        digest.update(part.numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class TeacherStates(Stage[States]):
    """The teacher's last hidden states at every label position of the data, in `dtype`.

    `rows`: sequences that are run at once, as a training's micro-batch.
    """

    kind: ClassVar[str] = "teacher-states"
    on_host: ClassVar[bool] = True
    teacher: Input[Model]
    tokens: Input[Tokens]
    dtype: Literal["float32", "bfloat16"]
    rows: int = incidental(8)

    @property
    def resources(self) -> Resources:
        count, length = count_asked(self.tokens) or (0, 0)
        return Resources(
            gpus=1,
            memory_gib=host_gib(self.teacher, 16.0),
            hours=8.0,
            disk_gib=states_gib(self.teacher, count * max(0, length - 1), DTYPES[self.dtype]),
        )

    def run(self, work: Path) -> States:
        """Raises ModelError where a state is NaN or Inf, or the head needs more than states;
        BitgridError where the disk has no room."""
        tokens = value(self.tokens)
        teacher = ALONE.split(value(self.teacher), DTYPES[self.dtype])
        check_split(teacher)
        with compute_deterministically(teacher.device):
            writer = _Writer(teacher, tokens, self.rows)
            return writer.run(work)


@list_passes.register
def _of_states(stage: TeacherStates) -> tuple[Pass, ...]:
    assert isinstance(stage.teacher, Stage)
    count, length = count_asked(stage.tokens) or (0, 0)
    return (Pass(stage.teacher, count * length, "read"),)


def build_states(
    teacher: Stage[Model], tokens: Stage[Tokens], objective: Objective, training: Training
) -> TeacherStates | None:
    """The stage that a training reads its teacher's states from; None where it runs the teacher, or
    has none. Raises BitgridError for an objective that needs more states than are kept."""
    if training.teacher_states == "run" or not objective.needs_teacher:
        return None
    if seen := find_block_objective(objective):
        raise BitgridError(
            f"objective {seen!r} sees the teacher's states behind every block, and "
            "train.teacher_states: stored keeps those behind the last; train.teacher_states: run"
        )
    return make_states(teacher, tokens, training)


def make_states(teacher: Stage[Model], tokens: Stage[Tokens], training: Training) -> TeacherStates:
    """The stage that keeps what a training's teacher gives."""
    most = math.ceil(training.batch_size / training.gpus)
    return TeacherStates(teacher, tokens, training.dtype, min(training.micro_batch, most))


@dataclass(frozen=True)
class _Writer:
    """Computes states, a file after the other."""

    teacher: Model
    tokens: Tokens
    rows: int

    @torch.no_grad()
    def run(self, work: Path) -> States:
        probe = run_trunk(self._network, self.tokens.ids[:1, :1].to(self.teacher.device))
        width, dtype = probe.shape[-1], probe.dtype
        counts = self.tokens.mask[:, 1:].sum(1)
        longest = self.tokens.ids.shape[1] * width * dtype.itemsize
        size = 1 << max(1, _FILE_BYTES // longest).bit_length() - 1
        starts = range(0, len(self.tokens), size)
        files = [work / f"states-{start:08}.safetensors" for start in starts]
        whole = [is_whole(file) for file in files]
        left = sum(
            int(own.sum()) for own, done in zip(counts.split(size), whole, strict=True) if not done
        )
        _check_room(work, left * width * dtype.itemsize)
        for start, file, own, done in zip(starts, files, counts.split(size), whole, strict=True):
            if not done:
                states = torch.empty(int(own.sum()), width, dtype=dtype)
                self._fill(states, start, own)
                parts = {"states": states, "counts": own}
                specs = {name: (each.dtype, each.shape) for name, each in parts.items()}
                write_checked(file, specs, parts.values())
            report(start + len(own), len(self.tokens))
        return States.open(files, digest_tokens(self.tokens))

    @property
    def _network(self) -> PreTrainedModel:
        return self.teacher.network

    def _fill(self, states: Tensor, start: int, counts: Tensor) -> None:
        """Write the states (N, D) of the sequences from `start` on that have `counts` (b,)
        labels."""
        ends = counts.cumsum(0).tolist()
        for places in self._split(start, counts):
            found = self._compute(start + places).to(states.device)
            for place, own in zip(
                places.tolist(), found.split(counts[places].tolist()), strict=True
            ):
                states[ends[place] - len(own) : ends[place]] = own

    def _split(self, start: int, counts: Tensor) -> Iterator[Tensor]:
        """Sequences with labels, by their places after `start`, those of like length together and
        as many at a time as a training has; the last ones once more where too few are left."""
        mask = self.tokens.mask[start : start + len(counts)]
        ends = (mask * torch.arange(mask.shape[1])).amax(1)
        order = ends.argsort(stable=True, descending=True)
        order = order[counts[order] > 0]
        for end in range(self.rows, len(order) + self.rows, self.rows):
            last = min(end, len(order))
            yield order[max(0, last - self.rows) : last]

    def _compute(self, rows: Tensor) -> Tensor:
        """The states (N, D) of these sequences, as `step` has them."""
        ids, mask = self.tokens.ids[rows], self.tokens.mask[rows]
        longest = int((mask * torch.arange(mask.shape[1])).max()) + 1
        ids, mask = (each[:, :longest].to(self.teacher.device) for each in (ids, mask))
        states = Labels.of(ids, mask).pick(run_trunk(self._network, ids))
        if not bool(states.isfinite().all()):
            rerun = partial(run_trunk, self._network, ids)
            first = find_first_broken({"": self._network}, rerun)
            dtype = str(states.dtype).removeprefix("torch.")
            raise ModelError(
                f"the teacher's last hidden states are not finite in {dtype}"
                + (f", first {first}" if first else "")
            )
        return states


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise BitgridError(
            f"the teacher's states take {needed / 2**30:.1f} GiB, and the store's disk has "
            f"{free / 2**30:.1f} GiB left; train.teacher_states: run"
        )
