"""A throttle over all arrays: never more jobs at once, however long they take; nothing stranded."""

from __future__ import annotations

import heapq
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cluster import snapshots
from harness.cluster import submit as launching
from harness.cluster.profile import Request
from harness.cluster.throttle import throttle
from harness.cluster.waves import Array, Job
from harness.core.store import Store
from harness.run.plan import build
from tests.harness.cluster.test_submit import SPLIT, flags
from tests.support import fakeslurm
from tests.support.toys import toy_grid


def make(sizes: list[int], after: list[set[int]], hours: list[float]) -> tuple[list, list]:  # type: ignore[type-arg]
    jobs: list[Job] = []
    arrays: list[Array] = []
    for size, above, each in zip(sizes, after, hours, strict=True):
        request = Request(hours=each)
        own = tuple(range(len(jobs), len(jobs) + size))
        jobs += [Job((f"{n}",), 1, 1, request, frozenset(), frozenset(), 1, each) for n in own]
        wave = 1 + max((arrays[a].wave for a in above), default=0)
        arrays.append(Array(own, frozenset(above), frozenset(), wave, 1, 1, request))
    return arrays, jobs


def run(arrays: list[Array], took: dict[int, float]) -> tuple[int, float]:
    """What SLURM does: `afterany` on whole arrays, `%N` within one. The most jobs at once, the end.

    Raises AssertionError where jobs are left that nothing will start.
    """
    left = [list(array.jobs) for array in arrays]
    running: list[tuple[float, int]] = []  # end, array
    now, most = 0.0, 0
    while any(left) or running:
        for number, array in enumerate(arrays):
            busy = {a for _, a in running} | {a for a, jobs in enumerate(left) if jobs}
            while (
                left[number]
                and not array.after & busy
                and sum(a == number for _, a in running) < (array.parallel or 10**6)
            ):
                heapq.heappush(running, (now + took[left[number].pop(0)], number))
        assert running, "nothing runs, and something waits"
        most = max(most, len(running))
        now, _ = heapq.heappop(running)
        while running and running[0][0] == now:
            heapq.heappop(running)
    return most, now


@st.composite
def launches(draw: st.DrawFn) -> tuple[list[Array], list[Job], int, int]:
    count = draw(st.integers(1, 7))
    sizes = draw(st.lists(st.integers(1, 6), min_size=count, max_size=count))
    hours = draw(st.lists(st.sampled_from([0.1, 1.0, 12.0]), min_size=count, max_size=count))
    after = [draw(st.sets(st.integers(0, n - 1), max_size=3)) if n else set() for n in range(count)]
    arrays, jobs = make(sizes, after, hours)
    return arrays, jobs, draw(st.integers(1, 9)), draw(st.integers(0, 10**6))


@settings(max_examples=300, deadline=None)
@given(launches())
def test_no_more_jobs_run_at_once_than_there_are_slots(
    case: tuple[list[Array], list[Job], int, int],
) -> None:
    arrays, jobs, most, seed = case
    limited = throttle(arrays, jobs, most)
    for before, after in zip(arrays, limited, strict=True):
        assert before.after <= after.after and before.jobs == after.jobs
    for number, array in enumerate(limited):
        assert all(above < number for above in array.after)  # as they are submitted
        assert 1 <= (array.parallel or 0) <= min(most, len(array.jobs))
    chance = random.Random(seed)
    took = {number: chance.choice([0.01, 1.0, 3.0, 50.0]) for number in range(len(jobs))}
    assert run(limited, took)[0] <= most


def test_slots_are_shared_by_hours() -> None:
    arrays, jobs = make([8, 8, 4], [set(), set(), {0}], [3.0, 1.0, 1.0])
    first, second, third = throttle(arrays, jobs, 4)
    assert (first.parallel, second.parallel, third.parallel) == (3, 1, 4)
    assert first.after == second.after == frozenset()
    assert third.after == {0, 1}  # it takes the slot of the second, too
    took = dict.fromkeys(range(20), 1.0) | dict.fromkeys(range(8), 3.0)
    # Three rounds of the first, beside all of the second; 36 hours of work take 9 at the least.
    assert run([first, second, third], took) == (4, 10.0)
    alone = throttle(arrays, jobs, 100)
    assert [array.after for array in alone] == [array.after for array in arrays]


def test_an_array_takes_the_slots_of_those_that_it_waits_for() -> None:
    arrays, jobs = make([2, 2, 2, 2], [set(), set(), {0}, {1}], [1.0] * 4)
    assert [sorted(a.after) for a in throttle(arrays, jobs, 4)] == [[], [], [0], [1]]
    # With one slot they are a chain; what a chain has waited for is not listed again.
    assert [sorted(a.after) for a in throttle(arrays, jobs, 1)] == [[], [0], [0, 1], [1, 2]]


def test_a_launch_has_the_throttle_in_its_scripts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = fakeslurm.install(tmp_path / "lab", monkeypatch)
    monkeypatch.setattr(snapshots, "PACKAGES", ("harness/published",))
    plan, store = build(toy_grid(tmp_path / "toy.yaml")), Store(tmp_path / "store")
    profile = SPLIT.model_copy(update={"launch_parallelism": 2})
    prepared = launching.prepare(plan, store, profile, plan.stored())
    launching.launch(prepared, plan, store, profile)
    took = dict.fromkeys(range(len(prepared.jobs)), 1.0)
    assert run(prepared.arrays, took)[0] == 2
    for array, text in zip(prepared.arrays, slurm.submitted, strict=True):
        asked = flags(text)
        after = [str(above + 1) for above in sorted(array.after)]
        assert asked.get("dependency") == (f"afterany:{':'.join(after)}" if after else None)
        if len(array.jobs) > 1:
            assert asked["array"].endswith(f"%{array.parallel}")
