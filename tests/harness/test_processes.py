"""Why several processes ended, from what they leave: a killed one, a record, or nothing."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness import processes, worker
from harness import run as running
from harness.compute import Failed, fail
from harness.errors import BitgridError
from harness.processes import _cause, _follow
from harness.stage import Resources
from harness.store import Store
from tests.harness.test_run import Silent
from tests.harness.toys import Made, Rounded, Scored, toy_plan

# As torchrun writes it.
KILLED = """
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
harness.worker FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-01-01_00:00:00
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 31)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 31
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-01-01_00:00:00
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 32)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 32
============================================================
"""


def test_a_killed_process_explains_what_the_others_met(tmp_path: Path) -> None:
    stage, store = Made("A", 2), Store(tmp_path)
    fail(stage, RuntimeError("Connection closed by peer"), store)
    said = str(_cause(stage, store, KILLED))
    assert said == "process 1 was killed by signal 9, as the system does where memory runs out"


def test_a_record_is_the_cause_the_inputs_first(tmp_path: Path) -> None:
    above = Rounded(Made("A", 2))  # type: ignore[arg-type]
    stage, store = Scored(above, "one"), Store(tmp_path)  # type: ignore[arg-type]
    fail(stage, ValueError("later"), store)
    own = _cause(stage, store, "")
    assert isinstance(own, Failed) and (own.key, str(own)) == (stage.key, "ValueError: later")
    fail(above, ValueError("planted"), store)
    inner = _cause(stage, store, "")
    assert isinstance(inner, Failed) and inner.key == above.key
    assert str(inner) == "Rounded failed: ValueError: planted"


def test_else_the_first_error_that_is_printed(tmp_path: Path) -> None:
    log = "Traceback\n  File x\n[rank1]: ImportError: no module\n" + KILLED.replace("-9", "1")
    said = _cause(Made("A", 2), Store(tmp_path), log)
    assert str(said) == "the processes ended without a value: ImportError: no module"


def test_progress_is_passed_on() -> None:
    heard: list[object] = []
    lines = io.StringIO('a library says hello\n{"done": 1, "total": 2, "metrics": {"loss": 0.5}}\n')
    _follow(lines, lambda done, total, metrics: heard.append((done, total, metrics)))
    assert heard == [(1, 2, {"loss": 0.5})]


def test_processes_are_told_how_often_a_stage_was_made_leaner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Ended:
        """A process that does nothing."""

        def __init__(self, command: list[str], **_: object) -> None:
            started.append(command)
            self.stdin, self.stdout = io.StringIO(), io.StringIO()

        def wait(self) -> int:
            return 1

        poll = wait

    monkeypatch.setattr(Made, "resources", Resources(gpus=2))
    monkeypatch.setattr(processes.subprocess, "Popen", Ended)
    with pytest.raises(BitgridError, match="ended without a value"):
        processes.together(Made("A", 2), tmp_path / "g.yaml", Store(tmp_path), print, halvings=2)
    (command,) = started
    given = worker._parser().parse_args(command[command.index("harness.worker") + 1 :])
    assert (given.halvings, given.key, given.attached) == (2, Made("A", 2).key, True)


def test_a_run_hands_the_halvings_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int]] = []

    def together(stage: Made, grid: Path, store: Store, step: object, halvings: int) -> None:
        heard.append((stage.key, halvings))
        store.commit(stage, {"bits": 2}, {})

    monkeypatch.setattr(running.processes, "together", together)
    monkeypatch.setattr(Made, "resources", Resources(gpus=2))
    grid, plan = toy_plan(tmp_path / "toy.yaml")
    keys = tuple(key for key in plan.nodes if plan.nodes[key].kind == "Made")[:2]
    share = running.Share(keys, halvings={keys[0]: 3})
    running.run(grid, plan, Store(tmp_path), Silent(), share=share)
    assert heard == [(keys[0], 3), (keys[1], 0)]
