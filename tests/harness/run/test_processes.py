"""Why several processes ended, from what they leave: a killed one, a record, or nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from harness import models
from harness.core.errors import BitgridError
from harness.core.scratch import Scratch
from harness.core.stage import Resources
from harness.core.store import Store
from harness.models import devices
from harness.run import processes, worker
from harness.run import runner as running
from harness.run.compute import Failed, fail
from harness.run.plan import rebuild_stages
from harness.run.processes import _cause, _follow
from tests.harness.run.test_run import Silent
from tests.support.toys import Made, Rounded, Scored, toy_plan

# As torchrun writes it.
KILLED = """
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
harness.run.worker FAILED
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
    assert str(inner) == "toy-rounded failed: ValueError: planted"


def test_else_the_first_error_that_is_printed(tmp_path: Path) -> None:
    log = "Traceback\n  File x\n[rank1]: ImportError: no module\n" + KILLED.replace("-9", "1")
    said = _cause(Made("A", 2), Store(tmp_path), log)
    assert str(said) == "the processes ended without a value: ImportError: no module"


def test_progress_is_passed_on() -> None:
    heard: list[object] = []
    lines = io.StringIO(
        'a library says hello\n{"done": 1, "total": 2, "metrics": {"loss": 0.5}}\n'
        '{"note": "short"}\n'
    )
    _follow(lines, lambda done, total, metrics: heard.append((done, total, metrics)), heard.append)
    assert heard == [(1, 2, {"loss": 0.5}), "short"]


def test_processes_are_told_how_often_a_stage_was_made_leaner_and_shun_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []

    class Ended:
        """A process that does nothing."""

        def __init__(self, command: list[str], env: dict[str, str], **_: object) -> None:
            started.append(command)
            assert env["PYTHONSAFEPATH"] == "1"  # a folder methods/ there takes no package's place
            self.stdin, self.stdout = io.StringIO(), io.StringIO()

        def wait(self) -> int:
            return 1

        poll = wait

    monkeypatch.setattr(Made, "resources", Resources(gpus=2))
    monkeypatch.setattr(processes.subprocess, "Popen", Ended)
    store = Store(tmp_path)
    scratch = store.open_scratch(Made("A", 2).key)
    with pytest.raises(BitgridError, match="ended without a value"):
        processes.run_together(Made("A", 2), store, scratch, print, print)
    (command,) = started
    given = worker._parser().parse_args(command[command.index("harness.run.worker") + 1 :])
    assert (given.scratch, given.attached) == (scratch.path, True)
    described = json.loads((scratch.path / processes.STAGES).read_text())
    assert rebuild_stages(described) == {Made("A", 2).key: Made("A", 2)}


def test_a_stage_of_several_nodes_is_refused_where_there_are_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Made, "resources", Resources(gpus=4, nodes=2))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(processes, "device", lambda: torch.device("cuda"))
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    processes.check(Made("A", 2))  # two GPUs of each
    for there in ("1", None):
        monkeypatch.delenv("SLURM_JOB_NUM_NODES") if there is None else monkeypatch.setenv(
            "SLURM_JOB_NUM_NODES", there
        )
        with pytest.raises(BitgridError, match="asks for 2 nodes and there is 1 here"):
            processes.check(Made("A", 2))


def test_torchrun_is_started_on_each_node(tmp_path: Path) -> None:
    """A stand-in for srun starts the two at once; they meet, and each has a process."""
    (tmp_path / "srun").write_text(
        '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\n"$@" & "$@" & wait\n'
    )
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "say.py").write_text(
        "import os, signal\nfrom pathlib import Path\n"
        "deaf = signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN\n"
        "said = [os.environ[name] for name in ('LOCAL_RANK', 'WORLD_SIZE')]\n"
        "Path(__file__).with_name('rank' + os.environ['RANK']).write_text(f'{said} {deaf}')\n"
    )
    command = [*processes._on_nodes(2, "name"), "--nproc-per-node", "1", str(tmp_path / "say.py")]
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(command, env={**os.environ, "PATH": path}, check=True, timeout=100)
    for rank in ("rank0", "rank1"):
        assert (tmp_path / rank).read_text() == "['0', '2'] True"


def test_a_run_hands_the_halvings_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int]] = []
    monkeypatch.setattr(Made, "leaner", lambda stage: replace(stage, halvings=stage.halvings + 1))

    def together(stage: Made, store: Store, scratch: Scratch, *_: object) -> None:
        heard.append((stage.key, stage.halvings))
        store.commit(stage, {"bits": 2}, {}, None, scratch)

    monkeypatch.setattr(running.processes, "run_together", together)
    monkeypatch.setattr(Made, "resources", Resources(gpus=2))
    plan = toy_plan(tmp_path / "toy.yaml")
    keys = tuple(key for key in plan.nodes if plan.nodes[key].kind == "toy-made")[:2]
    share = running.Share(keys, halvings={keys[0]: 3})
    running.run(plan, Store(tmp_path), Silent(), share=share)
    assert heard == [(keys[0], 3), (keys[1], 0)]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked of CUDA, in turn, on a machine that is said to show two GPUs."""
    asked: list[str] = []
    current: list[int] = []

    def empty(*_: object, device: str) -> torch.Tensor:
        asked.append(f"tensor on {device}")
        return SimpleNamespace(device=torch.device(device))  # type: ignore[return-value]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda at: (current.append(at), asked.append(f"set {at}"))
    )
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(
        worker.dist,
        "init_process_group",
        lambda backend, device_id=None, **_: asked.append(f"join {backend} {device_id}"),
    )
    monkeypatch.setenv("BITGRID_DEVICE", "")
    devices._usable.cache_clear()
    yield asked
    devices._usable.cache_clear()


@pytest.mark.parametrize(("local", "gpu"), [("1", 1), ("3", 1), ("2", 0)])
def test_a_process_touches_its_own_gpu_first_and_no_other(
    gpus: list[str], local: str, gpu: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", local)
    worker.join_processes()
    here = f"cuda:{gpu}"
    assert gpus == [f"set {gpu}", f"tensor on {here}", f"join cpu:gloo,cuda:nccl {here}"]
    assert models.device() == torch.device(here)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")


def test_a_process_that_is_to_use_the_cpu_touches_no_gpu(
    gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITGRID_DEVICE", "cpu")
    worker.join_processes()
    assert gpus == ["join gloo None"]


def test_after_a_failure_a_process_is_gone_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever else would wait at the end of it, here a thread."""
    code = """if True:
        import sys, threading, time
        from harness.run import worker
        threading.Thread(target=time.sleep, args=(60,)).start()
        print("said last", file=sys.stderr, end="")
        worker._leave(int(sys.argv[1]))
    """
    assert subprocess.run([sys.executable, "-c", code, "1"], timeout=50).returncode == 1
    assert "said last" in capfd.readouterr().err
