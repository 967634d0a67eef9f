"""When a training counts as diverged: made-up losses, and every one that is committed."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.training.divergence import FEW, SOONEST, WINDOW, LossHistory

RESULTS = Path(__file__).parents[3] / "results"
GOOD = [1.0, 0.9, 0.8, 0.7, 0.6] * 6


def stops(losses: list[float], labels: int = 10**9) -> int | None:
    """The step at which a training with these losses is stopped."""
    history = LossHistory()
    for n, loss in enumerate(losses, 1):
        history.add(loss, labels)
        if history.has_diverged():
            return n
    return None


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


def test_a_first_loss_of_few_labels_says_little() -> None:
    tenfold, fortyfold = [1.0] + [10.0] * 40, [1.0] + [43.0] * 40
    assert [stops(tenfold, labels) for labels in (10, FEW // 5, FEW)] == [None, None, 20]
    assert stops(fortyfold, 10) == 20


@pytest.mark.parametrize("labels", [10, 20, 40, 80])
def test_weights_that_do_not_move_are_not_stopped(labels: int) -> None:
    """Each label's loss 0.02 four times of five, else around 1.5; the rule of twice the first one
    alone stops between 1 and 14 % of them."""
    rng, stopped = random.Random(labels), 0
    for _ in range(300):
        losses = [
            sum(rng.expovariate(1 / 1.5) if rng.random() < 0.2 else 0.02 for _ in range(labels))
            / labels
            for _ in range(100)
        ]
        stopped += stops(losses, labels) is not None
    assert stopped == 0


@given(st.lists(st.floats(0.0, 1e6), max_size=60), st.floats(1e-6, 1e6))
def test_no_history_that_comes_back_is_stopped(losses: list[float], start: float) -> None:
    """Whatever happens between, if one step in ten is below twice the first."""
    history = [start]
    for n, loss in enumerate(losses):
        history += [loss, *([2 * start] if n % (WINDOW - 1) == 0 else [])]
    assert stops(history) is None


@pytest.mark.parametrize(
    "file", sorted(RESULTS.glob("*/curves.jsonl")), ids=lambda f: f.parent.name
)
def test_no_committed_training_would_have_been_stopped(file: Path) -> None:
    curves: dict[str, list[float]] = defaultdict(list)
    first: dict[str, int] = {}
    for line in file.read_text().splitlines():
        row = json.loads(line)
        curves[row["cell"]].append(row["loss"])
        first.setdefault(row["cell"], row["tokens"])
    found = {cell: stops(losses, first[cell]) for cell, losses in curves.items()}
    assert found == dict.fromkeys(curves)
