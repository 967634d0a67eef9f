"""The virtual cluster against schedules computed by hand and losses known in closed form."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.makespan import Task, Virtual, Work, bounds, drawn, queued, replay, stand_in
from harness.cluster.profile import Profile

BARE = Virtual(8, start=0.0, requeue=0.0, save=0.0)
FOLDER = Path(__file__).parents[1] / "experiments"


def task(array: int, gpus: int, *hours: float, saves: bool = False) -> Task:
    return Task(array, gpus, sum(hours), [Work(one, saves) for one in hours])


def test_a_whole_array_is_waited_for() -> None:
    tasks = [task(0, 1, 1.0), task(0, 1, 3.0), task(1, 8, 2.0), task(2, 1, 4.0)]
    found = replay(tasks, [frozenset(), frozenset({0}), frozenset()], BARE)
    assert found.ends == [1.0, 3.0, 6.0, 4.0]
    assert (found.makespan, found.busy, found.useful, found.lost) == (6.0, 24.0, 24.0, 0.0)


def test_a_node_is_kept_for_an_earlier_job_that_needs_all_of_it() -> None:
    tasks = [task(0, 1, 2.0), task(1, 8, 1.0), task(2, 1, 5.0), task(3, 0, 4.0)]
    alone = replay(tasks, [frozenset()] * 4, BARE)
    assert alone.ends == [2.0, 3.0, 8.0, 4.0]  # what needs no GPU is in nobody's way
    tasks = [task(0, 1, 2.0), task(1, 8, 1.0), task(2, 1, 5.0)]
    assert replay(tasks, [frozenset()] * 3, Virtual(16, start=0.0)).ends == [2.0, 1.0, 5.0]


def test_an_attempt_keeps_finished_stages_and_whole_periods() -> None:
    cluster = Virtual(8, start=0.25, checkpoint=0.5, save=0.125)
    one = Task(0, 2, 9.0, [Work(1.0), Work(2.0, saves=True), Work(1.0)])
    # Three checkpoints within two hours: none is written at the end.
    assert one.left(cluster) == 0.25 + 1.0 + (2.0 + 3 * 0.125) + 1.0
    # 0.25 to start, 1 for the first, 0.625 for half an hour of the second, 0.6 of the next period.
    assert one.interrupt(0.25 + 1.0 + 0.625 + 0.6, cluster) == 1.5
    assert (one.done, one.saved) == (1, 0.5)
    assert one.interrupt(0.2, cluster) == 0.0  # not even started
    assert one.left(cluster) == 0.25 + (1.5 + 2 * 0.125) + 1.0
    assert one.interrupt(0.25 + 1.75 + 0.9, cluster) == 1.5
    assert (one.done, one.saved) == (2, 0.0)


@pytest.mark.parametrize(("period", "rate"), [(0.5, 0.02), (2.0, 0.1), (8.0, 0.2)])
def test_the_loss_of_an_interruption_is_half_a_period_and_the_start(
    period: float, rate: float
) -> None:
    """Less than half where a period is long: the time since the last checkpoint, if λ breaks an
    hour, is 1/λ − T/(exp(λT) − 1) on average, for a start of no length."""
    cluster = Virtual(8, preemptions=rate / 4, checkpoint=period, start=0.0, requeue=0.1, save=0.0)
    found = [
        replay([task(0, 4, 3000.0, saves=True)], [frozenset()], cluster, seed) for seed in range(8)
    ]
    breaks = sum(result.interruptions for result in found)
    lost = sum(result.lost for result in found) / breaks / 4
    exact = 1 / rate - period / math.expm1(rate * period)
    assert lost == pytest.approx(exact, abs=4 * period / math.sqrt(12 * breaks))
    assert exact == pytest.approx(period / 2, rel=period * rate / 3)
    for result in found:
        assert result.useful == pytest.approx(4 * 3000.0)
        assert result.busy == pytest.approx(result.useful + result.lost)
        assert result.makespan == pytest.approx(result.busy / 4 + 0.1 * result.interruptions)


def test_a_start_is_lost_with_each_interruption() -> None:
    cluster = Virtual(8, preemptions=0.02, checkpoint=0.5, start=0.25, save=0.0)
    found = [
        replay([task(0, 1, 2000.0, saves=True)], [frozenset()], cluster, seed) for seed in range(20)
    ]
    breaks = sum(result.interruptions for result in found)
    assert breaks > 500
    lost = sum(result.lost for result in found) / breaks
    assert lost == pytest.approx(0.5 / 2 + 0.25, abs=0.03)


def test_a_node_that_breaks_takes_its_jobs_with_it() -> None:
    tasks = [task(0, 1, 4.0) for _ in range(8)]
    cluster = Virtual(8, failures=0.02, repair=2.0, start=0.0, requeue=0.0)
    found = [replay([task(0, 1, 4.0) for _ in tasks], [frozenset()], cluster, s) for s in range(40)]
    assert {result.interruptions % 8 for result in found} == {0}
    broken = [result for result in found if result.interruptions]
    assert 0 < len(broken) < 40
    for result in broken:
        times = result.interruptions // 8
        assert result.makespan == pytest.approx(4.0 + result.lost / 8 + 2.0 * times)


def test_the_planners_order_is_near_the_bound_on_a_table_of_the_paper() -> None:
    """With stages as long as foreseen; what chance adds `python -m benchmarks.makespan` shows."""
    plan = stand_in(FOLDER / "paper-general-llama2-7b.yaml")
    assert {plan.nodes[key].gpus for key in plan.stored()} == {1, 8}
    hours = drawn(plan, 0.0, 0)
    for gpus in (32, 64):
        profile = Profile(gpus=gpus)
        plain, close = bounds(plan, hours, gpus)
        assert plain <= close
        ratio = replay(*queued(plan, profile, hours), Virtual(gpus)).makespan / plain
        assert 1.0 <= ratio < 1.05  # an array is waited for whole: docs/scaling.md


def test_bounds_by_hand() -> None:
    """LLaMA-2-7B's table: the longest chain is generation, confidence, training, then MMLU; eight
    GPUs are busier than that."""
    plan = stand_in(FOLDER / "objective.yaml")
    hours = drawn(plan, 0.0, 0)
    # Generation of 5000 sequences of 8000, confidence, training, MMLU.
    chain = 3.0 * 5 / 8 + 0.1 + 1.2 + 1.2
    # 21 models trained on 8 GPUs and scored, two texts, one search, one confidence.
    scores = 0.05 + 1.2 + 0.4 + 3 * 0.1
    work = 21 * (8 * 1.2 + scores) + 3.0 + 0.3 + 0.1
    assert bounds(plan, hours, 10**6)[0] == pytest.approx(chain)
    assert bounds(plan, hours, 8)[0] == pytest.approx(work / 8)
    # On 64 GPUs 21 trainings take three rounds, between generation (some objectives need no
    # confidence) and the longest task.
    assert bounds(plan, hours, 64)[1] == pytest.approx(3.0 * 5 / 8 + 3 * 1.2 + 1.2)
