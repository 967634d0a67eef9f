"""What a launch chooses: what is missing, what a retry adds, and what is done about memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli import cluster
from harness.cluster import status as watch
from harness.cluster import submit as launching
from harness.cluster.launches import Launch
from harness.core.errors import GridError
from harness.core.store import Store
from harness.grid import expand as grids
from harness.run.plan import Plan
from tests.harness.cluster.test_status import fail, job
from tests.support import fakeslurm
from tests.support.fakeslurm import Slurm, launched
from tests.support.toys import toy_plan

ROOT = Path(__file__).parents[3]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return fakeslurm.install(tmp_path / "lab", monkeypatch)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return toy_plan(tmp_path / "toy.yaml")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def made(plan: Plan, store: Store, slurm: Slurm) -> Launch:
    """Four cells launched at 1000 s: the first failed since, the second was lost, two queued."""
    launch = launched(store.root, Path(plan.path), [job(plan, cell) for cell in range(4)])
    slurm.queue(*(f"7|{task}|PENDING|Priority|{launch.name(0)}" for task in (2, 3)))
    fail(plan, store, job(plan, 0)[0], when=1001.0)
    return launch


def chosen(plan: Plan, store: Store, retry: bool) -> tuple[set[str], int]:
    keys, left_out = cluster.choose_stages(watch.look(plan, store), store, retry)
    return set(keys), left_out


def leaner(
    plan: Plan, store: Store, cell: int, halve: bool = False
) -> tuple[dict[str, int], list[str]]:
    return cluster.meet_memory(plan, store, watch.look(plan, store), job(plan, cell), halve)


def test_a_launch_leaves_out_what_failed_and_a_retry_takes_it_alone(
    plan: Plan, store: Store, made: Launch
) -> None:
    cells = [set(job(plan, cell)) for cell in range(4)]
    assert chosen(plan, store, retry=False) == (cells[1] | cells[2] | cells[3], 3)
    assert chosen(plan, store, retry=True) == (cells[0] | cells[1], 0)


def test_a_failed_rebuild_is_free_to_be_tried_again(plan: Plan, store: Store, slurm: Slurm) -> None:
    fail(plan, store, plan.cells[0].model, when=1001.0)
    scores = set(job(plan, 0)[1:])
    assert chosen(plan, store, retry=True) == (scores | {job(plan, 0)[0]}, 0)
    assert scores < chosen(plan, store, retry=False)[0]


def test_memory_of_a_gpu_a_larger_request_or_a_halved_batch(
    plan: Plan, store: Store, made: Launch
) -> None:
    key = job(plan, 0)[0]
    assert leaner(plan, store, 0) == ({}, [])  # it failed of something else
    record = {"code": plan.nodes[key].code, "when": 1001.0, "exception": "OutOfMemoryError"}
    store.fail(key, record)
    assert leaner(plan, store, 0) == ({}, [key])
    assert leaner(plan, store, 0, halve=True) == ({key: 1}, [])
    # What was done once stays so, and a second halving halves again.
    again = replace(made, id="20261124-000000-cd34", halvings={key: 1}, created=1002.0)
    again.write()
    assert leaner(plan, store, 0, halve=True) == ({key: 2}, [])
    store.forget_failure(key)
    assert leaner(plan, store, 0) == ({key: 1}, [])
    replace(again, halvings={}, large=(key,)).write()
    assert leaner(plan, store, 0) == ({}, [key])


def test_memory_of_the_host_is_read_from_the_log(plan: Plan, store: Store, made: Launch) -> None:
    log = made.folder / "logs/0/7_1_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\n")
    assert leaner(plan, store, 1) == ({}, [job(plan, 1)[0]])


def test_a_cell_is_found_by_words_that_only_it_has(plan: Plan) -> None:
    assert cluster.find_cell(plan, "a BITS=3").id == "A bits=3 seed=0"
    assert cluster.find_cell(plan, "B bits=2 seed=0").id == "B bits=2 seed=0"
    with pytest.raises(GridError, match="cell 'bits=3' fits 2 cells: A bits=3 seed=0; B bits=3"):
        cluster.find_cell(plan, "bits=3")
    with pytest.raises(GridError, match=r"no cell 'A bits=4 seed=0'; did you mean 'A bits=. seed"):
        cluster.find_cell(plan, "A bits=4 seed=0")


@pytest.mark.parametrize("name", ["quickstart", "inside-testbed", "teacher-testbed"])
def test_the_grid_that_jobs_read_means_the_same(tmp_path: Path, name: str) -> None:
    """Bases taken in, defaults written out: equal cells with equal keys."""
    grid = grids.load(ROOT / f"experiments/{name}.yaml", allow_code_execution=True)
    launching._write_grid(grid, tmp_path / f"{name}.yaml")
    copy = grids.load(tmp_path / f"{name}.yaml", allow_code_execution=True)
    assert copy.question == grid.question
    assert [cell.id for cell in copy.cells] == [cell.id for cell in grid.cells]
    assert [[s.key for s in c.roots] for c in copy.cells] == [
        [s.key for s in c.roots] for c in grid.cells
    ]
