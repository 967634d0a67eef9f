"""A toy method and a grid of it: real stages without real work, for tests of the engine.

The environment decides what goes wrong: TOY_FAIL (a label whose model fails), TOY_SLEEP (seconds a
score takes), TOY_LOG (a file that gets a line for each stage that runs), TOY_DIE (label and
bits of a model that kills its process).
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.core.records import NO_FILTER, ItemScores, Precision, Score
from harness.core.stage import Input, Stage, incidental, report, value
from harness.evaluation.scores import Scores
from harness.grid.expand import Cell, Grid, GridFile
from harness.models import Model
from harness.run.plan import Plan, build


def log(words: str) -> None:
    if "TOY_LOG" in os.environ:
        with open(os.environ["TOY_LOG"], "a") as file:
            file.write(words + "\n")


@dataclass(frozen=True)
class Made(Stage[dict]):
    """Stands for a trained model."""

    kind: ClassVar[str] = "toy-made"
    label: str
    bits: int
    halvings: int = incidental(0)

    def run(self, work: Path) -> dict[str, int]:
        log(f"made {self.label} {self.bits}")
        if os.environ.get("TOY_FAIL") == self.label:
            raise ValueError("planted")
        if os.environ.get("TOY_DIE") == f"{self.label} {self.bits}":
            os.kill(os.getpid(), signal.SIGKILL)
        (work / "metrics.jsonl").write_text('{"step": 1, "tokens": 8, "loss": 2.5}\n')
        return {"bits": self.bits}


@dataclass(frozen=True)
class Rounded(Stage[dict]):
    """Stands for a model that is rebuilt rather than kept."""

    kind: ClassVar[str] = "toy-rounded"
    stored = False
    model: Input[dict]

    def run(self, work: Path) -> dict[str, int]:
        log("rounded")
        if os.environ.get("TOY_FAIL") == "rounding":
            raise ValueError("planted")
        return value(self.model)


@dataclass(frozen=True)
class Scored(Stage[Scores]):
    kind: ClassVar[str] = "toy-scored"
    model: Input[dict]
    task: str
    limit: int | None = None

    def run(self, work: Path) -> Scores:
        bits = value(self.model)["bits"]
        log(f"scored {self.task}")
        report(1, 2, loss=0.5)
        time.sleep(float(os.environ.get("TOY_SLEEP", "0")))
        return make_scores(self.task, [0.0, bits / 8], bits, float(bits))


def make_scores(task: str, scores: list[float], bits: int, bits_per_weight: float) -> Scores:
    """The mean of the scores of a toy's items."""
    row = Score(
        task=task,
        metric="acc",
        filter=NO_FILTER,
        group=None,
        primary=True,
        value=sum(scores) / len(scores),
        stderr=0.01,
        n=len(scores),
        higher_is_better=True,
        aggregation="mean",
        num_fewshot=0,
        bos=False,
        chat_template=False,
        limit=None,
        protocol="toy",
        window=None,
        tokenizer=None,
        task_version="1",
        lm_eval=None,
        caveat="Toy rows.",
    )
    precision = Precision(
        format="toy", bits=bits, group_size=0, bits_per_weight=bits_per_weight, dtype=None
    )
    items = ItemScores(task=task, metric="acc", filter=NO_FILTER, items=None, scores=scores)
    return Scores([row], precision, [items])


def toy_grid(
    path: Path, labels: tuple[str, ...] = ("A", "B"), bits: tuple[int, ...] = (2, 3)
) -> Grid:
    """Cells of labels × bits with two tasks each; the file only has to exist."""
    path.write_text("# Do toys work?\nevaluate: [one, two]\n")
    cells = []
    for label in labels:
        for b in bits:
            model: Stage[Model] = Rounded(Made(label, b))  # type: ignore[assignment]
            scores = tuple(Scored(model, task) for task in ("one", "two"))  # type: ignore[arg-type]
            cells.append(
                Cell(f"{label} bits={b} seed=0", "toy", label, {"bits": b}, 0, "toy", model, scores)
            )
    file = GridFile(model="toy", method="toy", evaluate=["one", "two"])
    return Grid(path.stem, path, (path,), "Do toys work?", file, tuple(cells))


def toy_plan(path: Path) -> Plan:
    return build(toy_grid(path))
