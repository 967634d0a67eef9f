"""When a training counts as diverged: made-up courses, and every one that is committed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.diagnose import SOONEST, WINDOW, diverged

RESULTS = Path(__file__).parents[2] / "results"
GOOD = [1.0, 0.9, 0.8, 0.7, 0.6] * 6


def stops(losses: list[float]) -> int | None:
    """The step at which a training with these losses is stopped."""
    return next((n for n in range(1, len(losses) + 1) if diverged(losses[:n])), None)


def test_a_loss_that_runs_away_is_seen_and_not_before_step_20() -> None:
    assert stops([1.0, *[100.0] * 40]) == SOONEST == 20
    assert stops(GOOD + [2.1 + 0.1 * n for n in range(20)]) == len(GOOD) + WINDOW


def test_a_spike_that_recovers_is_none() -> None:
    assert stops(GOOD + [500.0] * 9 + GOOD) is None
    assert stops([1.0] + [50.0] * 18 + GOOD) is None  # as a warm-up that is too short makes


def test_nearly_nothing_may_become_little() -> None:
    assert stops([0.0] * 40) is None
    assert stops([0.0, *[1e-6] * 5, *[0.09] * 40]) is None
    assert stops([1e-3] + [0.2] * 40) == 20


@given(st.lists(st.floats(0.0, 1e6), max_size=60), st.floats(1e-6, 1e6))
def test_no_course_that_comes_back_is_stopped(losses: list[float], start: float) -> None:
    """Whatever happens between, if one step in ten is below twice the first."""
    course = [start]
    for n, loss in enumerate(losses):
        course += [loss, *([2 * start] if n % (WINDOW - 1) == 0 else [])]
    assert stops(course) is None


@pytest.mark.parametrize(
    "file", sorted(RESULTS.glob("*/curves.jsonl")), ids=lambda f: f.parent.name
)
def test_no_committed_training_would_have_been_stopped(file: Path) -> None:
    curves: dict[str, list[float]] = defaultdict(list)
    for line in file.read_text().splitlines():
        row = json.loads(line)
        curves[row["cell"]].append(row["loss"])
    assert {cell: stops(losses) for cell, losses in curves.items()} == dict.fromkeys(curves)
