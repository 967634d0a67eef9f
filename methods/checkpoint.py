"""What a training run leaves in its work folder: a checkpoint to go on from, and a line a step.

    <work>/checkpoint.safetensors   weights and optimizer state after some step, replaced by rename
    <work>/metrics.jsonl            one JSON object a step

Both are whole at any moment that a process may be killed, and agree after a resume: the log is cut
back to the checkpoint. Not here: when to write (`train`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

_STATE = ("step", "exp_avg", "exp_avg_sq")  # of AdamW, a weight


@dataclass(frozen=True)
class Checkpoint:
    """The file that a killed run goes on from."""

    path: Path

    def save(
        self,
        step: int,
        weights: Mapping[str, nn.Parameter],
        optimizer: torch.optim.Optimizer,
        facts: Mapping[str, Any],
    ) -> None:
        """Weights, optimizer moments and JSON `facts` after `step` steps, whole or not at all."""
        tensors: dict[str, Tensor] = {}
        for name, weight in weights.items():
            tensors[f"weight/{name}"] = weight.detach()
            state = optimizer.state.get(weight, {})
            tensors |= {f"{part}/{name}": state[part] for part in _STATE if part in state}
        draft = self.path.with_suffix(".draft")
        save_file(tensors, draft, {"facts": json.dumps({**facts, "step": step})})
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(self.path)

    def load(
        self, weights: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer
    ) -> dict[str, Any] | None:
        """Fill weights and optimizer; returns the facts, with `step`. None where nothing is saved."""
        if not self.path.exists():
            return None
        with safe_open(self.path, framework="pt") as file, torch.no_grad():
            facts = json.loads(file.metadata()["facts"])
            kept = set(file.keys())
            for name, weight in weights.items():
                weight.copy_(file.get_tensor(f"weight/{name}"))
                for part in _STATE:
                    if f"{part}/{name}" in kept:
                        saved = file.get_tensor(f"{part}/{name}")
                        optimizer.state[weight][part] = saved.to(weight.device, copy=True)
        return dict(facts)


class Metrics:
    """A JSON-lines file that holds each step once, also over resumes."""

    def __init__(self, path: Path, step: int) -> None:
        """Open for what follows `step`, dropping lines after it and a half line at the end."""
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [row for row in map(_parsed, lines) if row is not None and row["step"] <= step]
        self.last: dict[str, Any] | None = kept[-1] if kept else None
        draft = path.with_suffix(".draft")
        draft.write_text("".join(json.dumps(row) + "\n" for row in kept))
        draft.replace(path)
        self._file = path.open("a")

    def write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """On the disk: before a checkpoint that counts on the lines."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "step" in found else None
