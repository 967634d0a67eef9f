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
    """Which stage of how many, its step and loss, and the time left: a line for each process."""

    plan: Plan
    keys: list[str]  # the stored stages to come
    store: Store
    # The file itself, as evaluation redirects the name while it runs.
    console: Console = field(default_factory=lambda: Console(file=sys.stderr))
    done: int = 0
    seconds: dict[str, list[float]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)  # not begun yet
    lanes: list[Lane] = field(default_factory=list)

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
        self.progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.progress.stop()

    def add_lane(self) -> Lane:
        """A line for one more process, which is told what that process does."""
        task = self.progress.add_task("", total=1.0, left="", step="", count="")
        self.lanes.append(Lane(self, task))
        return self.lanes[-1]

    def say(self, text: str) -> None:
        self.progress.console.print(show_text(text), markup=False, highlight=False, soft_wrap=True)

    def describe_left(self) -> str:
        """Time left: each stage to come costs the mean of its kind, a present one its rest."""
        total = sum(self.expect(self.plan.nodes[key].kind) for key in self.left)
        total += sum(lane.rest for lane in self.lanes)
        minutes, seconds = divmod(int(total / max(1, len(self.lanes))), 60)
        return f"{minutes}:{seconds:02d} left"

    def expect(self, kind: str) -> float:
        """Seconds that a stage of a kind takes."""
        took = self.seconds.get(kind)
        return sum(took) / len(took) if took else FIRST_GUESS_S.get(kind, 2.0)


@dataclass
class Lane:
    """What one process does, on a line of its own."""

    bar: Bar
    task: TaskID
    kind: str = ""  # of the stage under way; "" between two
    began: float = 0.0
    fraction: float = 0.0

    def begin(self, key: str) -> None:
        node = self.bar.plan.nodes[key]
        self.kind, self.began, self.fraction = node.kind, time.monotonic(), 0.0
        if key in self.bar.left:
            self.bar.left.remove(key)
        self.words = f"{node.kind} {node.title}"
        self._show("")

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        shown = "".join(f" {name} {number:.4g}" for name, number in metrics.items())
        self.fraction = done / max(total, 1)
        self._show(f"step {done}/{total}{shown} · ")

    def end(self, key: str, state: str, reason: str) -> None:
        bar = self.bar
        bar.done += 1
        if key in bar.left:
            bar.left.remove(key)
        node, took = bar.plan.nodes[key], time.monotonic() - self.began
        self.kind = ""
        head = f"[{bar.done}/{len(bar.keys)}] {node.kind} {node.title}"
        if state == "done":
            bar.seconds.setdefault(node.kind, []).append(took)
            if not bar.console.is_terminal:
                bar.say(f"{head} · {took:.1f} s · {bar.describe_left()}")
        else:
            bar.say(f"{head} · {state}: {reason}")

    def waiting(self, owners: list[str]) -> None:
        others = ", ".join(sorted(set(owners))) or "another process"
        self.bar.progress.update(self.task, description=f"waiting for {others}", step="", left="")

    def note(self, text: str) -> None:
        self.bar.say(f"note: {text}")

    def rest_idle(self) -> None:
        """Say that the process has nothing to do."""
        self.bar.progress.update(self.task, completed=0.0, description="", step="", left="")

    @property
    def rest(self) -> float:
        """Seconds that the stage under way still takes."""
        if not self.kind:
            return 0.0
        spent = time.monotonic() - self.began
        if self.fraction > 0.05:
            return spent / self.fraction * (1 - self.fraction)
        return max(0.0, self.bar.expect(self.kind) - spent)

    def _show(self, step: str) -> None:
        bar = self.bar
        bar.progress.update(
            self.task,
            count=f"stage {min(bar.done + 1, len(bar.keys))}/{len(bar.keys)}",
            completed=self.fraction,
            step=step,
            left=bar.describe_left(),
            description=self.words,
        )
