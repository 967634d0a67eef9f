"""Several processes share a grid on one machine: each stage once, whatever becomes of a process."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from harness.cli.main import main
from harness.cluster import launches, workers
from harness.cluster import status as watch
from harness.cluster.profile import Request
from harness.cluster.waves import Job
from harness.cluster.workers import Crew, _Pool, _Process, find_devices
from harness.core.errors import BitgridError
from harness.core.store import Store
from harness.run.progress import Bar
from tests.support.forked import fork_processes
from tests.support.toys import toy_plan

TOYS = (sys.executable, "-m", "tests.support.toy_lane")
# A process that begins the first stage of a job and says who it is.
STUCK = """
import json, os, sys, time
job = json.loads(sys.stdin.readline())
print(json.dumps({"begin": job["keys"][0]}), flush=True)
open(os.environ["STUCK_PID"], "w").write(str(os.getpid()))
sys.stdin.readline()
"""


def _run(tmp_path: Path, command: tuple[str, ...], **patches: Any) -> tuple[Any, Any, str]:
    plan, store = toy_plan(tmp_path / "toy.yaml"), Store(tmp_path / "store")
    out = io.StringIO()
    with Bar(plan, plan.stored(), store, Console(file=out, width=200)) as bar:
        for name, value in patches.items():
            setattr(bar, name, value)
        with Crew(store, ["cpu", "cpu"], command=command) as crew:
            outcome = workers.run(plan, store, plan.stored(), bar, crew)
    return plan, outcome, out.getvalue()


def test_two_processes_compute_each_stage_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a process that dies costs the stage under way, not its job nor the others."""
    fork_processes(monkeypatch)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("TOY_SLEEP", "0.2")
    monkeypatch.setenv("TOY_DIE", "B 3")
    plan, outcome, shown = _run(tmp_path, TOYS)
    ran = Counter((tmp_path / "log").read_text().splitlines())
    assert {words: n for words, n in ran.items() if words.startswith("made")} == dict.fromkeys(
        [f"made {label} {bits}" for label in "AB" for bits in (2, 3)], 1
    )
    assert (ran["scored one"], ran["scored two"]) == (3, 3)
    kinds = {key: plan.nodes[key].kind for key in plan.nodes}
    assert Counter(kinds[key] for key in outcome.computed) == {"toy-made": 3, "toy-scored": 6}
    assert [kinds[key] for key in outcome.failed] == ["toy-made"]
    assert [kinds[key] for key in outcome.blocked] == ["toy-scored"] * 2
    record = Store(tmp_path / "store").failure(outcome.failed[0])
    assert record is not None and record["message"] == (
        "its process was killed by SIGKILL, as the system does where memory runs out"
    )
    assert shown.count("killed by SIGKILL") == 1 and "[12/12]" in shown
    ((launch,), _) = launches.every(Store(tmp_path / "store"))
    logs = [path.read_text() for job in launch.jobs if (path := launch.log(job))]
    assert len(logs) == 12 and sum(text.count("done toy-scored") for text in logs) == 6
    assert sum("toy-made B bits=3 seed=0 (" in text for text in logs) == 1


def test_an_interruption_ends_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUCK_PID", str(tmp_path / "pid"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.run.progress.Lane.begin", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, (sys.executable, "-c", STUCK))
    deadline = time.monotonic() + 10
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


WAITING = """
import os, pathlib, sys, time
pathlib.Path(os.environ["WAITING"], str(os.getpid())).touch()
time.sleep(60)
"""


def test_processes_begin_before_the_plan_and_end_where_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At once, though none of them reads that its input is at an end."""
    begun = tmp_path / "begun"
    begun.mkdir()
    monkeypatch.setenv("WAITING", str(begun))
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", WAITING))
    (tmp_path / "grid.yaml").write_text("# No?\nmodel: testbed\nmethod: none such\n")

    def plan_late(*_: object) -> None:
        while len(list(begun.iterdir())) < 2:
            time.sleep(0.01)
        raise BitgridError("no plan can be made")

    monkeypatch.setattr("harness.cli.running._plan_anew", plan_late)
    began = time.monotonic()
    words = ["run", str(tmp_path / "grid.yaml"), "--workers", "2", "--store", str(tmp_path / "s")]
    assert main(words) == 2
    assert "no plan can be made" in capsys.readouterr().err
    assert time.monotonic() - began < 50
    for path in begun.iterdir():
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name), 0)


def test_what_a_process_says_before_its_first_job_is_in_the_log(tmp_path: Path) -> None:
    broken = (sys.executable, "-c", "raise ImportError('no module of ours')")
    _, outcome, shown = _run(tmp_path, broken)
    assert not outcome.computed and outcome.failed
    assert "its process ended with 1: ImportError: no module of ours" in shown


def test_a_run_is_seen_and_cancelled_from_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUCK_PID", str(tmp_path / "pid"))
    monkeypatch.setattr(workers, "CANCEL_S", 0.05)
    seen: dict[str, Any] = {}

    def look() -> None:
        plan, store = toy_plan(tmp_path / "toy.yaml"), Store(tmp_path / "store")
        while not (tmp_path / "pid").exists():
            time.sleep(0.02)
        ((launch,), _) = launches.of_grid(store, Path(plan.path), [])
        seen["words"] = {stage.words for stage in watch.look(plan, store).of("queued")}
        seen["runner"] = launch.runner
        launch.ask_to_end()

    looking = threading.Thread(target=look)
    looking.start()
    with pytest.raises(BitgridError, match="cancelled: what is finished is kept"):
        _run(tmp_path, (sys.executable, "-c", STUCK))
    looking.join()
    assert seen["runner"]["pid"] == os.getpid()
    assert seen["words"] == {f"waits in the run of {seen['runner']['host']}:{os.getpid()}"}
    ((launch,), _) = launches.every(Store(tmp_path / "store"))
    assert launch.runner is None


class Sent(_Pool):
    """A pool that notes which jobs it starts."""

    def _send(self, process: _Process, job: Job, together: Any) -> None:
        self.sent.append((self.jobs.index(job), [each.number for each in together]))

    sent: list[tuple[int, list[int]]]


def _pool(tmp_path: Path, jobs: list[Job], count: int, memory_gib: float) -> Sent:
    plan, store = toy_plan(tmp_path / "toy.yaml"), Store(tmp_path / "store")
    with Bar(plan, [], store, Console(file=io.StringIO())) as bar:
        record = workers._record(plan, store, jobs)
        pool = Sent(plan, store, jobs, Crew(store, ["cpu"] * count), record, bar)
    pool.sent, pool.memory_gib = [], memory_gib
    return pool


def _job(number: int, gpus: int = 1, gib: float = 1.0, tail: float = 1.0, needs: Any = ()) -> Job:
    request = Request(memory_gib=gib, hours=1.0)
    return Job((f"key{number}",), gpus, 1, request, frozenset(needs), frozenset(), 1, tail)


def test_the_longest_goes_first_and_inputs_before_it(tmp_path: Path) -> None:
    pool = _pool(tmp_path, [_job(0), _job(1, tail=3), _job(2, tail=9, needs=[0])], 2, 100)
    pool._start_ready()
    assert pool.sent == [(1, [0]), (0, [1])]
    pool._free(pool.processes[1])
    pool._start_ready()
    assert pool.sent[2:] == [(2, [1])]


def test_the_memory_of_the_host_is_a_limit_that_one_job_may_pass(tmp_path: Path) -> None:
    pool = _pool(tmp_path, [_job(0, gib=50, tail=9), _job(1, gib=5), _job(2, gib=6)], 3, 10)
    pool._start_ready()
    assert [job for job, _ in pool.sent] == [0]
    pool._free(pool.processes[0])
    pool._start_ready()
    assert [job for job, _ in pool.sent] == [0, 1]


def test_a_stage_of_several_gpus_takes_several_and_is_not_overtaken(tmp_path: Path) -> None:
    pool = _pool(tmp_path, [_job(0, tail=9), _job(1, gpus=2, tail=5), _job(2), _job(3, 8)], 2, 100)
    pool._start_ready()
    assert pool.sent == [(0, [0])]
    pool._free(pool.processes[0])
    pool._start_ready()
    assert pool.sent[1:] == [(1, [0, 1])]
    pool._free(pool.processes[0])
    pool._start_ready()
    pool._free(pool.processes[0])
    pool._start_ready()
    assert pool.sent[2:] == [(2, [0]), (3, [0, 1])]  # of more than there are, all


def test_devices_are_gpus_or_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BITGRID_DEVICE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    assert find_devices("auto", None) == ["cpu"] * 3
    assert find_devices("2", None) == ["cpu"] * 2
    for words, why in [
        ((None, "0"), "--gpus 0: '0' is no GPU of its own; the machine has 0"),
        (("0", None), "--workers 0: it should be a number of at least 1, or auto"),
        (("some", None), "--workers some: it should be a number of at least 1, or auto"),
    ]:
        with pytest.raises(BitgridError, match=why):
            find_devices(*words)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert find_devices("auto", None) == [f"cuda:{number}" for number in range(4)]
    assert find_devices(None, "2, 0") == ["cuda:2", "cuda:0"]
    with pytest.raises(BitgridError, match="the machine has 4, 0 to 3"):
        find_devices(None, "0,4")
    with pytest.raises(BitgridError, match="'1' is no GPU of its own"):
        find_devices(None, "1,1")
    with pytest.raises(BitgridError, match="--workers 5: a worker has a GPU"):
        find_devices("5", None)
    monkeypatch.setenv("BITGRID_DEVICE", "cuda:2")
    assert find_devices("1", None) == ["cuda:2"]
    with pytest.raises(BitgridError, match="--workers 2: a worker has a GPU, and cuda:2 is named"):
        find_devices("2", None)
    monkeypatch.setenv("BITGRID_DEVICE", "cpu")
    assert find_devices("2", None) == ["cpu"] * 2
