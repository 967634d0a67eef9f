"""What a launch chooses: what is missing, what a retry adds, and what is done about memory."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cli.verb import find_cell, select_cells
from harness.cluster import choice, waves
from harness.cluster import status as watch
from harness.cluster import submit as launching
from harness.cluster.launches import Launch
from harness.cluster.profile import Profile
from harness.core.errors import GridError
from harness.core.store import Store
from harness.grid import expand as grids
from harness.run import renewal
from harness.run.plan import Plan, build
from harness.run.runner import run
from tests.harness.cluster.test_status import fail, job
from tests.harness.run.test_healing import Silent
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


def chosen(
    plan: Plan, store: Store, retry: str | None = None, cells: Collection[str] | None = None
) -> tuple[set[str], int]:
    keys, left_out = choice.choose_stages(watch.look(plan, store), store, retry, cells)
    return set(keys), left_out


def leaner(
    plan: Plan, store: Store, cell: int, halve: bool = False
) -> tuple[dict[str, int], list[str]]:
    return choice.meet_memory(plan, store, watch.look(plan, store), job(plan, cell), halve)


def test_a_launch_leaves_out_what_failed_and_a_retry_takes_it_alone(
    plan: Plan, store: Store, made: Launch
) -> None:
    cells = [set(job(plan, cell)) for cell in range(4)]
    assert chosen(plan, store, None) == (cells[1] | cells[2] | cells[3], 3)
    assert chosen(plan, store, "failed") == (cells[0] | cells[1], 0)
    assert chosen(plan, store, "lost") == (cells[1], 3)
    assert chosen(plan, store, cells={plan.cells[2].id}) == (cells[2], 0)
    assert chosen(plan, store, "failed", {plan.cells[0].id}) == (cells[0], 0)


def test_what_was_taken_out_is_submitted_though_its_scores_are_there(
    plan: Plan, store: Store, slurm: Slurm
) -> None:
    run(plan, store, Silent())
    assert chosen(plan, store) == (set(), 0)
    key = job(plan, 0)[0]
    renewal.take_out(store, key)
    assert chosen(plan, store) == ({key}, 0)
    assert chosen(plan, store, cells={plan.cells[1].id}) == (set(), 0)


def test_a_failed_rebuild_is_free_to_be_tried_again(plan: Plan, store: Store, slurm: Slurm) -> None:
    fail(plan, store, plan.cells[0].model, when=1001.0)
    scores = set(job(plan, 0)[1:])
    assert chosen(plan, store, "failed") == (scores | {job(plan, 0)[0]}, 0)
    assert scores < chosen(plan, store, None)[0]


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


@pytest.mark.parametrize(
    ("exception", "message"),
    [
        ("MemoryError", "MemoryError"),
        ("_ArrayMemoryError", "_ArrayMemoryError: Unable to allocate 8.00 GiB"),
        ("RuntimeError", "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried"),
        ("OSError", "OSError: [Errno 12] Cannot allocate memory"),
        (
            "BitgridError",
            "process 1 was killed by signal 9, as the system does where memory runs out",
        ),
    ],
)
def test_memory_of_the_host_is_read_from_a_failure(
    plan: Plan, store: Store, made: Launch, exception: str, message: str
) -> None:
    key = job(plan, 0)[0]
    record = {"code": plan.nodes[key].code, "when": 1001.0, "exception": exception}
    store.fail(key, {**record, "message": message})
    assert leaner(plan, store, 0) == ({}, [key])


def test_what_ended_for_lack_of_something_is_not_submitted_with_as_little(
    plan: Plan, store: Store, made: Launch
) -> None:
    key = job(plan, 1)[0]
    placed = [replace(each, memory_gib=4.0) for each in made.jobs]
    replace(made, jobs=tuple(placed)).write()
    log = made.folder / "logs/0/7_1_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\n")
    view = watch.look(plan, store)
    for gib, refused in ((4.0, True), (4.5, False)):
        jobs = waves.jobs(plan, job(plan, 1), Profile(memory_gib=gib))
        hopeless = choice.find_hopeless(view, store, jobs)
        assert (set(hopeless) == {key}) == refused
        assert choice.leave_out(plan, job(plan, 1), hopeless) == (
            [] if refused else [*job(plan, 1)]
        )
    words = "toy-made: out of memory (of the host): 4 GiB asked; launch asks for `large`, or give "
    assert choice.find_hopeless(view, store, waves.jobs(plan, [key], Profile(memory_gib=4)))[
        key
    ] == (f"{words}toy-made more memory_gib; it would get 4 GiB")


def test_a_cell_is_found_by_words_that_only_it_has(plan: Plan) -> None:
    assert find_cell(plan, "a BITS=3").id == "A bits=3 seed=0"
    assert find_cell(plan, "B bits=2 seed=0").id == "B bits=2 seed=0"
    with pytest.raises(GridError, match="cell 'bits=3' fits 2 cells: A bits=3 seed=0; B bits=3"):
        find_cell(plan, "bits=3")
    assert find_cell(plan, "a its=2").id == "A bits=2 seed=0"
    assert [cell.id[0] for cell in select_cells(plan, ["bits=3", "A"])] == ["A", "B", "A"]
    with pytest.raises(GridError, match=r"no cell 'A bits=4 seed=0'; did you mean 'A bits=. seed"):
        find_cell(plan, "A bits=4 seed=0")


@pytest.mark.parametrize("name", ["quickstart", "inside-testbed", "teacher-testbed"])
def test_the_grid_that_jobs_read_means_the_same(tmp_path: Path, name: str) -> None:
    """Bases taken in, defaults written out: equal cells with equal keys."""
    grid = grids.load(ROOT / f"experiments/{name}.yaml", allow_code_execution=True)
    launching._write_grid(build(grid), tmp_path / f"{name}.yaml")
    copy = grids.load(tmp_path / f"{name}.yaml", allow_code_execution=True)
    assert copy.question == grid.question
    assert [cell.id for cell in copy.cells] == [cell.id for cell in grid.cells]
    assert [[s.key for s in c.roots] for c in copy.cells] == [
        [s.key for s in c.roots] for c in grid.cells
    ]
