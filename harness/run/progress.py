"""What a run looks like: a bar on a terminal, a line a stage elsewhere. Not here: any running."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from harness.core.errors import show_text
from harness.core.store import Store
from harness.run.plan import Plan

FIRST_GUESS_S = {"train": 60.0, "generate": 30.0, "lm-eval": 4.0, "perplexity": 4.0}


@dataclass
class Bar:
    """Which stage of how many, its step and loss, and the time left."""

    plan: Plan
    keys: list[str]  # the stored stages to come
    store: Store
    # The file itself, as evaluation redirects the name while it runs.
    console: Console = field(default_factory=lambda: Console(file=sys.stderr))
    done: int = 0
    kind: str = ""
    began: float = 0.0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def __enter__(self) -> Bar:
        self.left = list(self.keys)
        for key in self.plan.stored():
            if self.store.has(key):
                wall = float(self.store.manifest(key).get("wall_s", 0.0))
                self.seconds.setdefault(self.plan.nodes[key].kind, []).append(wall)
        # The title comes last, so that a narrow terminal cuts nothing else.
        self.progress = Progress(
            TextColumn("{task.fields[count]}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[step]}{task.fields[left]}"),
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
            expand=True,
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.task: TaskID = self.progress.add_task("", total=1.0, left="", step="", count="")
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def begin(self, key: str) -> None:
        self.kind, self.began = self.plan.nodes[key].kind, time.monotonic()
        self.words = f"{self.kind} {self.plan.nodes[key].title}"
        self._show(0.0, "")

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        shown = "".join(f" {name} {number:.4g}" for name, number in metrics.items())
        self._show(done / max(total, 1), f"step {done}/{total}{shown} · ")

    def end(self, key: str, state: str, reason: str) -> None:
        self.done += 1
        if key in self.left:
            self.left.remove(key)
        node, took = self.plan.nodes[key], time.monotonic() - self.began
        head = f"[{self.done}/{len(self.keys)}] {node.kind} {node.title}"
        if state == "done":
            self.seconds.setdefault(node.kind, []).append(took)
            if not self.console.is_terminal:
                self._line(f"{head} · {took:.1f} s · {self._left(0.0)}")
        else:
            self._line(f"{head} · {state}: {reason}")

    def waiting(self, owners: list[str]) -> None:
        others = ", ".join(sorted(set(owners))) or "another process"
        self.progress.update(self.task, description=f"waiting for {others}", step="", left="")

    def note(self, text: str) -> None:
        self._line(f"note: {text}")

    def _show(self, fraction: float, step: str) -> None:
        self.progress.update(
            self.task,
            count=f"stage {self.done + 1}/{len(self.keys)}",
            completed=fraction,
            step=step,
            left=self._left(fraction),
            description=self.words,
        )

    def _line(self, text: str) -> None:
        self.progress.console.print(show_text(text), markup=False, highlight=False, soft_wrap=True)

    def _left(self, fraction: float) -> str:
        """Time left: each stage to come costs the mean of its kind, the present one its rest."""
        total = sum(self._expected(self.plan.nodes[key].kind) for key in self.left[1:])
        if self.left:
            spent = time.monotonic() - self.began
            present = self._expected(self.kind)
            rest = spent / fraction * (1 - fraction) if fraction > 0.05 else present - spent
            total += max(0.0, rest)
        minutes, seconds = divmod(int(total), 60)
        return f"{minutes}:{seconds:02d} left"

    def _expected(self, kind: str) -> float:
        took = self.seconds.get(kind)
        return sum(took) / len(took) if took else FIRST_GUESS_S.get(kind, 2.0)
