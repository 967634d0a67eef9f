"""What a launch is said to cost: by what stages of the same kinds took, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cluster import waves
from harness.cluster.cost import Cost, estimate_cost
from harness.cluster.profile import Profile
from harness.core.store import Store
from tests.support.toys import Made, Rounded, Scored, toy_plan


def keep(store: Store, stage: Made | Rounded | Scored, seconds: float) -> None:
    store.commit(stage, {"bits": 2}, {"wall_s": seconds, "stage": stage.description()})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def estimate(tmp_path: Path, store: Store) -> str:
    plan = toy_plan(tmp_path / "toy.yaml")
    missing = [key for key in plan.stored() if not store.has(key)]
    jobs = [job for job in waves.jobs(plan, missing, Profile()) if job.keys]
    for job in jobs:
        object.__setattr__(job, "gpus", 2)
    return str(estimate_cost(plan, store, jobs))


def test_what_has_not_run_has_no_figure(tmp_path: Path, store: Store) -> None:
    assert estimate(tmp_path, store) == "no stage of these kinds has run yet"


@pytest.mark.parametrize(
    ("hours", "said"), [(0.0, "0"), (0.0312, "0.031"), (9.87, "9.9"), (1234.5, "1,234")]
)
def test_hours_are_plain_numbers(hours: float, said: str) -> None:
    """A kind that ran on no GPU has run, too: it costs none."""
    cost = Cost(hours, hours, hours, known=1)
    assert str(cost).startswith(f"{said}, between {said} and {said}, by what stages")


def test_other_grids_tell_of_kinds_that_this_one_has_not_run(tmp_path: Path, store: Store) -> None:
    plan = toy_plan(tmp_path / "toy.yaml")
    made = sum(node.kind == "toy-made" and node.stored for node in plan.nodes.values())
    keep(store, Made("elsewhere", 2), 1800.0)
    keep(store, Made("elsewhere", 3), 5400.0)
    said = estimate(tmp_path, store)
    # Two GPUs for an hour each on the mean, half of that and half as much again.
    mean, least, most = (f"{2 * made * hours:.2g}" for hours in (1.0, 0.5, 1.5))
    assert said.startswith(f"{mean}, between {least} and {most}, by what stages of the same kinds")
    assert "(toy-made: in other grids)" in said and "which have not run" in said


def test_a_grid_that_has_run_some_is_judged_by_these(tmp_path: Path, store: Store) -> None:
    plan = toy_plan(tmp_path / "toy.yaml")
    keys = [key for key, node in plan.nodes.items() if node.kind == "toy-made" and node.stored]
    keep(store, Made("elsewhere", 2), 999_999.0)
    own = plan.stages(keys[:1])[keys[0]]
    assert isinstance(own, Made)
    keep(store, own, 3600.0)
    left = 2 * (len(keys) - 1)
    said = estimate(tmp_path, store)
    assert said.startswith(f"{left}, between {left} and {left},") and "other grids" not in said
