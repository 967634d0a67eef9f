"""Records of launches, and what a queue and logs say of their jobs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.cluster import launches, scheduler
from harness.core.errors import ClusterError, StoreError
from harness.core.store import Store
from tests.support import fakeslurm
from tests.support.fakeslurm import Slurm, launched


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text("# Do toys work?\n")
    return path


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return fakeslurm.install(tmp_path / "lab", monkeypatch)


def test_a_record_comes_back(store: Store, grid: Path) -> None:
    made = replace(
        launched(store.root, grid, [("a", "b"), ("c",)]), halvings={"a": 2}, large=("c",)
    )
    made.write()
    assert launches.read(made.folder) == made
    assert launches.read(made.folder).submitted == {0: "7"}
    with (made.folder / "submitted.jsonl").open("a") as file:
        file.write('{"array": 1, "jo')  # killed while it wrote
    assert launches.read(made.folder).submitted == {0: "7"}
    assert launches.of_grid(store, grid, []) == ([made], [])
    other = grid.with_name("other.yaml")  # renamed, or another one with some of its stages
    assert launches.of_grid(store, other, ["a", "b", "c", "d"]) == ([made], [])
    assert launches.of_grid(store, other, ["a", "b"]) == ([], [])
    assert launches.of_keys(store, ["b"]) == ([made], [])
    assert launches.of_keys(store, ["d"]) == ([], [])


def test_a_record_that_is_broken_or_of_another_version(store: Store, grid: Path) -> None:
    path = launched(store.root, grid, [("a",)]).folder / "launch.json"
    for text, words in (('{"schema": 0}', "is of another version"), ("{", "cannot be read")):
        path.write_text(text)
        with pytest.raises(StoreError, match=words) as caught:
            launches.read(path.parent)
        assert str(path) in str(caught.value) and "remove its folder" in str(caught.value)


def test_logs_are_found_by_array_and_index(store: Store, grid: Path) -> None:
    made = launched(store.root, grid, [(f"k{n}",) for n in range(12)])
    logs = made.folder / "logs" / "0"
    logs.mkdir(parents=True)
    for name in ("7_1_0_log.out", "7_11_0_log.out", "7_1_0_log.err", "7_1_submission.sh"):
        (logs / name).write_text("")
    assert made.log(made.jobs[1]) == logs / "7_1_0_log.out"
    assert made.log(made.jobs[11]) == logs / "7_11_0_log.out"
    assert made.log(made.jobs[2]) is None


def test_a_job_alone_has_no_index_in_its_log_s_name(store: Store, grid: Path) -> None:
    made = launched(store.root, grid, [("a",)])
    (made.folder / "logs" / "0").mkdir(parents=True)
    (made.folder / "logs" / "0" / "7_0_log.out").write_text("")
    assert made.log(made.jobs[0]) == made.folder / "logs" / "0" / "7_0_log.out"


def test_logs_of_a_local_cluster_are_found_by_what_they_say(store: Store, grid: Path) -> None:
    made = replace(launched(store.root, grid, [("a",), ("b",)]), cluster="local")
    logs = made.folder / "logs" / "0"
    logs.mkdir(parents=True)
    for task, pid in enumerate((900, 17)):
        (logs / f"{pid}_0_log.out").write_text(f"06:00:00 job {task} of {made.id}, attempt 0: 1\n")
    assert [made.log(job) for job in made.jobs] == [logs / "900_0_log.out", logs / "17_0_log.out"]


def test_the_queue_by_name_and_index(slurm: Slurm) -> None:
    slurm.queue(
        "7|0|RUNNING|None|toy:20261123-061917-ab12:0",
        "7|11|PENDING|Resources|toy:20261123-061917-ab12:0",
        "9|N/A|PENDING|Dependency|a|b:20261123-061917-ab12:1",
        "11|N/A|RUNNING|None|bash",
    )
    found = scheduler.queue()
    running = found["toy:20261123-061917-ab12:0", 0]
    assert (running.job, running.state, running.running) == ("7", "RUNNING", True)
    assert found["toy:20261123-061917-ab12:0", 11].reason == "Resources"
    assert found["a|b:20261123-061917-ab12:1", 0].running is False
    assert len(found) == 4 and len(slurm.said("asked")) == 1


def test_stages_that_the_queue_will_compute(slurm: Slurm, store: Store, grid: Path) -> None:
    launched(store.root, grid, [("a", "b"), ("c",), ("d",)])
    slurm.queue(
        "7|0|RUNNING|None|toy:20261123-061917-ab12:0",
        "7|2|PENDING|Priority|toy:20261123-061917-ab12:0",
        "8|0|PENDING|Priority|toy:20261123-000000-ffff:0",  # of another store
        "9|N/A|RUNNING|None|a:b",
    )
    live = launches.live(store, scheduler.queue())
    assert {key: entry.task for key, entry in live.items()} == {"a": 0, "b": 0, "d": 2}
    assert live["a"].since == 1000.0


def test_cancel_takes_out_what_the_grid_has_left(slurm: Slurm, store: Store, grid: Path) -> None:
    made = launched(store.root, grid, [("a",), ("b",)])
    assert launches.cancel([made]) == 0 and slurm.said("cancelled") == []
    slurm.queue(
        f"7|0|RUNNING|None|{made.name(0)}",
        f"7|1|PENDING|None|{made.name(0)}",
        "8|N/A|RUNNING|None|toy:20261123-000000-ffff:0",
    )
    assert launches.cancel([made]) == 2
    assert slurm.said("cancelled") == ["7"]


def test_without_slurm_or_its_controller_there_is_one_line(
    slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.down()
    with pytest.raises(ClusterError) as caught:
        scheduler.queue()
    assert str(caught.value) == (
        "squeue: slurm_load_jobs error: Unable to contact slurm controller"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterError, match="squeue is not installed here: launch where SLURM is"):
        scheduler.queue()


def test_a_launch_that_cannot_be_read_costs_its_own_line(
    slurm: Slurm, store: Store, grid: Path
) -> None:
    made = launched(store.root, grid, [("a",)])
    for name, text in {"x-1": "{", "x-2": '{"schema": 1}', "x-3": "[]", "x-4": "\x00"}.items():
        (store.root / "launches" / name).mkdir()
        (store.root / "launches" / name / "launch.json").write_text(text)
    (made.folder / "submitted.jsonl").write_text('[]\n{"array": 0}\n{"array": 0, "job": "7"}\n{"ar')
    found, broken = launches.of_keys(store, ["a"])
    assert found == [made] and found[0].submitted == {0: "7"}
    assert len(broken) == 4
    for number, line in enumerate(broken, 1):
        assert f"x-{number}/launch.json" in line and "\n" not in line
    slurm.queue(f"7|0|PENDING|Priority|{made.name(0)}", "8|0|PENDING|Priority|g:x-1:0")
    with pytest.raises(StoreError, match=r"x-1/launch\.json"):  # what they compute is not known
        launches.live(store, scheduler.queue())
    assert set(launches.live(store, scheduler.queue(), strict=False)) == {"a"}


def test_records_that_cannot_be_written(
    store: Store, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = launched(store.root, grid, [("a",)])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launches, "write_json", full)
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        made.write()
    made.note(1, "8")
    assert made.submitted == {0: "7", 1: "8"}  # later arrays wait for it


def test_of_two_launches_one_waits(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "WAIT_S", 0.0)
    other = launches.alone(store)
    with launches.alone(store), pytest.raises(ClusterError, match="is launching for too long"):
        other.__enter__()
    with launches.alone(store):
        pass
