"""What a training run leaves in its work folder: a checkpoint to go on from, and a line a step.

    <work>/checkpoint.safetensors   weights and optimizer state after some step, replaced by rename
    <work>/metrics.jsonl            one JSON object a step

Both are whole at any moment that a process may be killed, and agree after a resume: the log is cut
back to the checkpoint. Not here: when to write (`train`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors import safe_open
from torch import Tensor, nn

from harness.core.errors import TrainingError
from methods.training.divergence import LossHistory
from methods.training.optimizer import MOMENTS, restore, to_plain
from methods.training.shards import Shards, find_rows


@dataclass(frozen=True)
class Checkpoint:
    """The file that a killed run goes on from.

    It holds whole tensors, so that any number of processes goes on from what any other number left.
    `places`: the network's parameters, which say what rows a process holds.
    """

    path: Path
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
        """
        shapes = {
            name: self.shards.full_shape(part, place)
            for name, part, place in self._parts(weights, optimizer)
        }
        tensors = (
            self.shards.gather(part, place) for _, part, place in self._parts(weights, optimizer)
        )
        if self.shards.is_main:
            draft = self.path.with_suffix(".draft")
            _write(draft, shapes, tensors, {**facts, "step": step})
            draft.replace(self.path)
        else:
            for _ in tensors:
                pass  # this process has given its rows

    def _parts(
        self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        """What there is to save of this process's rows: a name, float32, and what it is spread
        like."""
        for name, weight in weights.items():
            place, state = self.places[name], optimizer.state.get(weight, {})
            yield f"weight/{name}", weight.detach(), place
            for moment in (m for m in MOMENTS if m in state):
                values, scale = to_plain(state[moment])
                yield f"{moment}/{name}", values, place
                if scale is not None and (scale.ndim > 1 or self.shards.world == 1):
                    yield f"{moment}_scale/{name}", scale, place
            if "step" in state:
                yield f"step/{name}", state["step"], state["step"]

    def load(
        self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """Fill weights and optimizer; returns the facts, with `step`. None where nothing is
        saved."""
        if not self.path.exists():
            return None
        with safe_open(self.path, framework="pt") as file, torch.no_grad():
            facts = json.loads(file.metadata()["facts"])
            stored_names = set(file.keys())

            for name, weight in weights.items():
                mine = find_rows(self.places[name])

                def part(key: str, mine: slice | None = mine) -> Tensor:
                    return file.get_tensor(key) if mine is None else file.get_slice(key)[mine]

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


def _write(
    path: Path,
    shapes: Mapping[str, torch.Size],
    tensors: Iterable[Tensor | None],
    facts: Mapping[str, Any],
) -> None:
    """A safetensors file, of which the library's own writer would want all tensors at once."""
    header: dict[str, Any] = {"__metadata__": {"facts": json.dumps(facts)}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape.numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for (name, shape), tensor in zip(shapes.items(), tensors, strict=True):
            # The offsets above count on it, and a file that breaks them reads as other weights.
            if tensor is None or tensor.shape != shape or tensor.dtype != torch.float32:
                stored_type = None if tensor is None else (tensor.dtype, tuple(tensor.shape))
                raise TrainingError(
                    f"checkpoint: {name} is {stored_type}, not float32 {tuple(shape)}"
                )
            file.write(tensor.contiguous().view(-1).numpy().data)
        file.flush()
        os.fsync(file.fileno())


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
        lines = path.read_text().splitlines() if path.exists() else []
        earlier_rows = [
            row for row in map(_parsed, lines) if row is not None and row["step"] <= step
        ]
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


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None
