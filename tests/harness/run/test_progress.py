"""The progress bar: what it says, also on a narrow terminal, and elsewhere."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from harness.core.store import Store
from harness.run.progress import Bar
from tests.support.toys import toy_plan


def _shown(tmp_path: Path, terminal: bool, width: int) -> str:
    plan = toy_plan(tmp_path / "toy.yaml")
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=width, color_system=None)
    keys = plan.stored()
    with Bar(plan, keys, Store(tmp_path / "store"), console) as bar:
        lane = bar.add_lane()
        lane.begin(keys[0])
        lane.step(40, 80, {"loss": 0.01234})
        bar.progress.refresh()
        lane.end(keys[0], "done", "")
        lane.begin(keys[1])
        lane.end(keys[1], "failed", "NaN at step 3")
    return out.getvalue()


def test_a_narrow_terminal_sees_stage_step_loss_and_time_left(tmp_path: Path) -> None:
    shown = _shown(tmp_path, terminal=True, width=80)
    line = next(line for line in shown.splitlines() if "0.01234" in line)
    assert "stage 1/12" in line
    assert "step 40/80" in line
    assert "left" in line
    assert "toy-made" in line


def test_without_a_terminal_each_stage_is_a_line(tmp_path: Path) -> None:
    lines = _shown(tmp_path, terminal=False, width=80).splitlines()
    assert lines[0].startswith("[1/12] toy-made A bits=2 seed=0 · 0.0 s · ")
    assert lines[1].endswith("failed: NaN at step 3")
