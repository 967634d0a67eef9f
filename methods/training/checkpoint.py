"""What a training run leaves in its work folder: checkpoints to go on from, and a line a step.

    <work>/checkpoint-<step>.safetensors   weights and optimizer state after a step; the last two
    <work>/metrics.jsonl                   one JSON object a step

A checkpoint carries a digest of its bytes: one that is torn, or that two owners wrote at once, is
refused, and the one before it used. One and the log agree after a resume: only a checkpoint is used
all of whose steps are in the log, which is cut back to it. Not here: when to write (`train`).
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import safe_open
from torch import Tensor, nn

from harness.core.errors import Outbid
from methods.tensor_files import is_whole, write_checked
from methods.training.divergence import LossHistory
from methods.training.optimizer import MOMENTS, restore, to_plain
from methods.training.shards import Shards, find_rows

KEPT = 2  # checkpoints, the last ones


@dataclass(frozen=True)
class Checkpoints:
    """The files that a killed run goes on from.

    They hold whole tensors, so that any number of processes goes on from what any other number
    left. `places`: the network's parameters, which say what rows a process holds.
    """

    folder: Path
    shards: Shards
    places: Mapping[str, Tensor]

    def save(
        self,
        step: int,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        facts: Mapping[str, Any],
    ) -> None:
        """Weights, optimizer moments and JSON `facts` after `step` steps, whole or not at all.

        Tensors are gathered and written one at a time: together they are 12 bytes a parameter.
        Raises OSError, in the main process, where the disk fails; Outbid where the folder is gone:
        it is another owner's now.
        """
        specs = {
            name: (torch.float32, self.shards.full_shape(part, place))
            for name, part, place in self._parts(weights, optimizer)
        }
        tensors = (
            self.shards.gather(part, place) for _, part, place in self._parts(weights, optimizer)
        )
        if self.shards.is_main:
            try:
                write_checked(self._path(step), specs, tensors, {**facts, "step": step})
            except OSError:
                if not self.folder.exists():
                    raise Outbid("the training was taken over by another process") from None
                _exhaust(tensors)  # the other processes still give their rows
                raise
            for old in self._list()[:-KEPT]:
                self._path(old).unlink(missing_ok=True)
        else:
            _exhaust(tensors)  # this process has given its rows

    def _path(self, step: int) -> Path:
        return self.folder / f"checkpoint-{step}.safetensors"

    def _list(self) -> list[int]:
        """Steps of the checkpoints that are there, in order."""
        names = (path.stem for path in self.folder.glob("checkpoint-*.safetensors"))
        return sorted(
            int(name) for _, _, name in (n.partition("-") for n in names) if name.isdecimal()
        )

    def _find_last(self, logged: int) -> int | None:
        """The last whole checkpoint whose steps are all in the log, the same in all processes."""
        found: int | None = None
        for step in reversed(self._list() if self.shards.is_main else []):
            if step <= logged and is_whole(self._path(step)):
                found = step
                break
            why = "is torn" if step <= logged else f"is ahead of the log, which ends at {logged}"
            warnings.warn(f"{self._path(step)} {why}: the one before it is used", stacklevel=1)
        return self.shards.find_first(found)

    def _parts(
        self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What there is to save of this process's rows: a name, float32, and what it is spread
        like."""
        for name, weight in weights.items():
            place, state = self.places[name], optimizer.state.get(weight, {})
            if weight.requires_grad:  # else it is as it was at the start
                yield f"weight/{name}", weight.detach(), place
            for moment in (m for m in MOMENTS if m in state):
                values, scale = to_plain(state[moment])
                yield f"{moment}/{name}", values, place
                if scale is not None and (scale.ndim > 1 or self.shards.world == 1):
                    yield f"{moment}_scale/{name}", scale, place
            if "step" in state:
                yield f"step/{name}", state["step"], state["step"]

    def load(
        self,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        logged: int,
    ) -> dict[str, Any] | None:
        """Fill weights and optimizer; returns the facts, with `step`. None where nothing is saved.

        `logged`: up to which step the log is whole.
        """
        step = self._find_last(logged)
        if step is None:
            return None
        with safe_open(self._path(step), framework="pt") as file, torch.no_grad():
            facts = json.loads(file.metadata()["facts"])
            stored_names = set(file.keys())

            for name, weight in weights.items():
                mine = find_rows(self.places[name])

                def part(key: str, mine: slice | None = mine) -> Tensor:
                    return file.get_tensor(key) if mine is None else file.get_slice(key)[mine]

                if weight.requires_grad:
                    weight.copy_(part(f"weight/{name}"))
                for moment in (m for m in MOMENTS if f"{m}/{name}" in stored_names):
                    scale = None
                    if (key := f"{moment}_scale/{name}") in stored_names:
                        flat = len(file.get_slice(key).get_shape()) == 1
                        scale = None if flat and mine is not None else part(key)
                    restore(optimizer, weight, moment, part(f"{moment}/{name}"), scale)
                if f"step/{name}" in stored_names:
                    restore(optimizer, weight, "step", file.get_tensor(f"step/{name}"), None)
        return dict(facts)


def _exhaust(tensors: Iterable[object]) -> None:
    for _ in tensors:
        pass


def find_last_step(log: Path) -> int:
    """Up to which step a log has all lines, from 1; 0 where it is not there."""
    try:
        steps = {row["step"] for row in _read_rows(log)}
    except OSError:
        return 0
    last = 0
    while last + 1 in steps:
        last += 1
    return last


class Metrics:
    """A JSON-lines file that holds each step once, also over resumes."""

    def __init__(self, path: Path, step: int, writes: bool = True) -> None:
        """Open for what follows `step`, dropping lines after it and a half line at the end.

        Of several processes that train together one `writes`; to the others this is nothing.
        """
        self.last: dict[str, Any] | None = None
        self.history: LossHistory | None = None  # the one that writes knows
        self._file: TextIO | None = None
        if not writes:
            return
        rows = _read_rows(path) if path.exists() else []
        earlier_rows = [row for row in rows if row["step"] <= step]
        self.last = earlier_rows[-1] if earlier_rows else None
        self.history, seen = LossHistory(), 0
        for row in earlier_rows:
            self.history.add(row["loss"], row["tokens"] - seen)
            seen = row["tokens"]
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in earlier_rows))
        draft.replace(path)
        self._file = path.open("a")

    def write(self, row: Mapping[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def sync(self) -> None:
        """On the disk: before a checkpoint that counts on the lines."""
        if self._file:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file:
            self._file.close()


def _read_rows(log: Path) -> list[dict[str, Any]]:
    """The lines of a log that can be read. Raises OSError."""
    return [row for line in log.read_bytes().splitlines() if (row := _parse(line)) is not None]


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
