"""A small grid of real trainings that takes a second: what faults are tried on.

Two trainings of a tiny random Llama, with checkpoints, and two scores of each: six kept values. A
score is a mean loss under the trained weights, so that one flipped bit shows. Each computation adds
a line to the file in FAULTS_JOURNAL.

Not here: what goes wrong (a module for each kind), processes and judgements
(`benchmarks.faults.trial`).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from harness.core.stage import Input, Resources, Stage, value
from harness.core.store import Store
from harness.data import Tokens
from harness.evaluation.scores import Scores
from harness.grid.expand import Cell, Grid, GridFile
from harness.models import Model
from harness.run.plan import Plan, build
from methods.quantization.formats import IntAsym
from methods.training.objectives import KL
from methods.training.settings import Training
from methods.training.train import Train
from tests.methods.conftest import make_llama
from tests.support.toys import make_scores

JOURNAL = "FAULTS_JOURNAL"
TASKS = ("one", "two")
TIMED = {"seconds", "tokens_per_s"}  # of a line of metrics.jsonl


def note(line: str) -> None:
    """Append a line to the journal; one write, so that several processes may share it."""
    if path := os.environ.get(JOURNAL):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.write(descriptor, f"{line}\n".encode())
        os.close(descriptor)


@dataclass(frozen=True)
class Untrained(Stage[Model]):
    """A tiny random Llama, rebuilt rather than kept."""

    kind: ClassVar[str] = "fault-model"
    stored: ClassVar[bool] = False
    seed: int = 0

    def run(self, work: Path) -> Model:
        return make_llama(self.seed)


@dataclass(frozen=True)
class RandomTokens(Stage[Tokens]):
    kind: ClassVar[str] = "fault-tokens"
    stored: ClassVar[bool] = False
    seed: int = 0

    def run(self, work: Path) -> Tokens:
        generator = torch.Generator().manual_seed(self.seed)
        ids = torch.randint(3, 97, (16, 12), generator=generator)
        return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


@dataclass(frozen=True)
class Trained(Train):
    """The project's own training. FAULTS_FAIL is the seed of one that fails."""

    kind: ClassVar[str] = "fault-train"

    @property
    def resources(self) -> Resources:
        return Resources()

    def run(self, work: Path) -> Model:
        note(f"train {self.seed}")
        if os.environ.get("FAULTS_FAIL") == str(self.seed):
            raise ValueError("planted")
        return super().run(work)


@dataclass(frozen=True)
class Scored(Stage[Scores]):
    kind: ClassVar[str] = "fault-score"
    model: Input[Model]
    task: str
    number: int  # the training's seed, for the journal

    def run(self, work: Path) -> Scores:
        note(f"score {self.task} {self.number}")
        network = value(self.model).network
        ids = RandomTokens(len(self.task)).run(work).ids
        with torch.no_grad():
            logits = network(input_ids=ids).logits
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
        time.sleep(float(os.environ.get("FAULTS_SLEEP", "0")))
        return make_scores(self.task, losses.mean(1).tolist(), bits=3, bits_per_weight=3.5)


@dataclass(frozen=True)
class World:
    """A grid of `seeds` trainings of `steps` steps, with a checkpoint after each `every`."""

    path: Path  # the grid's file; what is in it does not matter
    seeds: int = 2
    steps: int = 6
    every: int = 2

    def grid(self) -> Grid:
        if not self.path.exists():
            self.path.write_text("# What do faults cost?\n")
        cells = []
        for seed in range(self.seeds):
            model = self.training(seed)
            scores = tuple(Scored(model, task, seed) for task in TASKS)  # type: ignore[arg-type]
            cells.append(
                Cell(f"A seed={seed}", "toy", "A", {"bits": 3}, seed, "toy", model, scores)  # type: ignore[arg-type]
            )
        file = GridFile(model="toy", method="toy", evaluate=list(TASKS))
        name = self.path.stem
        return Grid(name, self.path, (self.path,), "What do faults cost?", file, tuple(cells))

    def training(self, seed: int) -> Stage[Any]:
        settings = Training(
            steps=self.steps,
            batch_size=2,
            lr=1e-3,
            dtype="float32",
            checkpoint_every=self.every,
        )
        student: Any = Untrained(0)
        teacher: Any = Untrained(1)
        tokens: Any = RandomTokens(0)
        format = IntAsym(bits=3, group_size=32)
        return Trained(student, teacher, tokens, format, KL(), None, settings, seed)

    def plan(self) -> Plan:
        return build(self.grid())

    def names(self) -> dict[str, str]:
        """What the journal calls a stage -> its key."""
        keys = {}
        for cell in self.grid().cells:
            keys[f"train {cell.seed}"] = cell.model.key
            for stage in cell.scores:
                keys[f"score {stage.task} {cell.seed}"] = stage.key  # type: ignore[attr-defined]
        return keys


def digest_value(store: Store, key: str) -> str | None:
    """Of all that a value says and holds, times aside; None where it is not there or not whole."""
    digest = hashlib.sha256()
    folder = store.path(key)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        digest.update(json.dumps([manifest["stage"], manifest["value"]], sort_keys=True).encode())
        for name in sorted(set(manifest["files"]) - {"code.json"}):
            content = (folder / name).read_bytes()
            if name == "metrics.jsonl":
                rows = [json.loads(line) for line in content.splitlines()]
                kept = [{n: v for n, v in row.items() if n not in TIMED} for row in rows]
                content = json.dumps(kept).encode()
            digest.update(name.encode() + content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return digest.hexdigest()


def digest_values(store: Store, keys: list[str]) -> dict[str, str | None]:
    return {key: digest_value(store, key) for key in keys}
