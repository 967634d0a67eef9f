"""Submission: sbatch files, snapshots, refusals; a job as SLURM would start it, from a snapshot."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
import yaml

from harness.cli import main
from harness.cluster import launches, scheduler, snapshots
from harness.cluster import submit as launching
from harness.cluster.profile import Profile, Request
from harness.core.errors import ClusterError
from harness.core.store import Store
from harness.grid.expand import Grid
from harness.run.plan import Plan, build
from tests.support import fakeslurm
from tests.support.fakeslurm import Slurm, launched
from tests.support.toys import toy_grid

ROOT = Path(__file__).parents[3]
# Models and scores on two partitions: two arrays, the second after the first.
SPLIT = Profile(partition="cpu", stages={"toy-made": Request(partition="gpu", hours=2.5, cpus=4)})
TINY = {
    "model": "testbed-small",
    "method": "rtn",
    "defaults": {"format.bits": 3, "format.group_size": 32},
    "evaluate": [{"testbed_knowledge": {"limit": 2}}],
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return fakeslurm.install(tmp_path / "lab", monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "my store")


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Grid, Plan]:
    monkeypatch.setattr(snapshots, "PACKAGES", ("harness/published",))  # is copied faster
    monkeypatch.setattr(launching.waves, "ENOUGH", 2)  # arrays: one for models, one for scores
    grid = toy_grid(tmp_path / "toy.yaml")
    return grid, build(grid)


def prepare(
    made: tuple[Grid, Plan], store: Store, profile: Profile, given_up: Collection[str] = ()
) -> launching.Prepared:
    plan = made[1]
    return launching.prepare(plan, store, profile, plan.stored(), given_up=given_up)


def flags(text: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.MULTILINE))


def test_dry_shows_what_would_be_submitted(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    profile = SPLIT.model_copy(
        update={
            "setup": ["module load cuda/12.4"],
            "array_parallelism": 3,
            "sbatch": {"mail-type": "FAIL"},
        }
    )
    prepared = prepare(made, store, profile)
    assert (len(prepared.jobs), len(prepared.arrays), prepared.waves) == (8, 2, 2)
    models, scores = launching.dry(prepared, made[1], store, profile)
    asked = flags(models)
    assert "dependency" not in asked
    assert (asked["partition"], asked["time"], asked["cpus-per-task"]) == ("gpu", "150", "4")
    assert (asked["mem"], asked["array"], asked["job-name"]) == ("4GB", "0-3%3", "toy:ID:0")
    asked = flags(scores)
    assert asked["dependency"] == "'afterany:<array 0>'"
    assert (asked["partition"], asked["time"], asked["signal"]) == ("cpu", "120", "USR2@90")
    assert (asked["requeue"], asked["mail-type"], asked["open-mode"]) == ("", "FAIL", "append")
    lines = scores.splitlines()
    assert lines.index("module load cuda/12.4") < len(lines) - 1
    assert (
        f"export PYTHONPATH='{store.root}/code'${{PYTHONPATH:+:$PYTHONPATH}} PYTHONSAFEPATH=1"
        in lines
    )
    assert "srun" in lines[-1] or "srun" in lines[-2]
    assert slurm.submitted == [] and not (store.root / "launches").exists()


def test_arrays_wait_for_those_that_make_their_inputs(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    launch = launching.launch(prepare(made, store, SPLIT), made[1], store, SPLIT)
    models, scores = slurm.submitted
    assert flags(models)["job-name"] == f"toy:{launch.id}:0"
    assert flags(scores)["dependency"] == "afterany:1"
    assert launches.read(launch.folder) == launch and launch.submitted == {0: "1", 1: "2"}
    assert sorted(key for job in launch.jobs for key in job.keys) == sorted(made[1].stored())
    assert f"export PYTHONPATH='{launch.code}'" in scores and Path(launch.code).is_dir()
    written = yaml.safe_load((launch.folder / "toy.yaml").read_text())
    assert written["evaluate"] == ["one", "two"]


def test_a_parameter_of_sbatch_is_text_a_flag_or_left_out(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    own = {"nodelist": "1e3", "exclusive": True, "overcommit": False, "nodes": None, "mem": None}
    profile = SPLIT.model_copy(update={"sbatch": own, "requeues": 0})
    asked = flags(next(launching.dry(prepare(made, store, profile), made[1], store, profile)))
    assert (asked["nodelist"], asked["exclusive"], asked["no-overcommit"]) == ("1e3", "", "")
    assert asked.keys().isdisjoint({"requeue", "nodes", "mem", "comment", "wckey"})
    assert "no-requeue" in asked


def test_what_is_queued_is_left_out_and_waited_for(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    models = tuple(key for key, node in made[1].nodes.items() if node.kind == "toy-made")
    earlier = launched(store.root, made[0].path, [models])
    slurm.queue(f"7|N/A|RUNNING|None|{earlier.name(0)}")
    prepared = prepare(made, store, SPLIT)
    assert set(prepared.queued) == set(models) and len(prepared.jobs) == 4
    (text,) = launching.dry(prepared, made[1], store, SPLIT)
    assert flags(text)["dependency"] == "afterany:7"
    again = prepare(made, store, SPLIT, given_up=models[:1])  # failed in the job that still runs
    assert set(again.queued) == set(models[1:]) and len(again.jobs) == 5


def test_arrays_and_jobs_keep_within_slurm_s_limits(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "find_max_array", lambda: 3)
    assert [len(a.jobs) for a in prepare(made, store, SPLIT).arrays] == [3, 1, 3, 1]
    slurm.limit("CLUSTER: lab\nnlp||6||normal\nother||100||normal\n")
    slurm.queue("1|N/A|RUNNING|None|bash", "2|0|PENDING|None|x", "2|1|PENDING|None|x")
    assert [len(job.keys) for job in prepare(made, store, SPLIT).jobs] == [4, 8]  # 3 are left
    prepared = prepare(made, store, SPLIT.model_copy(update={"max_jobs": 4}))
    assert len(prepared.jobs) == 4
    first = prepare(made, store, SPLIT.model_copy(update={"max_jobs": 1}))
    assert [len(job.keys) for job in first.jobs] == [4] and first.left == 1  # the models
    slurm.limit("nlp||3||normal\n")
    with pytest.raises(ClusterError, match="8 jobs are to be submitted, and no more may be queued"):
        prepare(made, store, SPLIT)


WRONG = (
    "sbatch: error: invalid partition specified: gpuu\n"
    "sbatch: error: Batch job submission failed: Invalid partition name specified"
)


def test_a_refusal_is_told_in_slurm_s_words_and_leaves_nothing(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    slurm.refuse(WRONG, since=1)
    with pytest.raises(ClusterError) as caught:
        launching.launch(prepare(made, store, SPLIT), made[1], store, SPLIT)
    assert re.fullmatch(
        r"sbatch refuses toy:[\w-]+:0: invalid partition specified: gpuu; Batch job submission "
        r"failed: Invalid partition name specified; nothing was submitted",
        str(caught.value),
    )
    assert launches.every(store) == ([], [])


def test_what_was_submitted_before_a_refusal_is_cancelled(
    made: tuple[Grid, Plan], store: Store, slurm: Slurm
) -> None:
    slurm.refuse(WRONG, since=2)
    with pytest.raises(ClusterError, match=r"gpuu;.*; 1 jobs that were submitted before are canc"):
        launching.launch(prepare(made, store, SPLIT), made[1], store, SPLIT)
    assert slurm.said("cancelled") == ["1"]


def test_a_snapshot_is_the_code_once(tmp_path: Path, store: Store) -> None:
    folder = snapshots.take_snapshot(store)
    assert snapshots.take_snapshot(store) == folder
    assert (folder / "harness/cluster/job.py").read_bytes() == (
        ROOT / "harness/cluster/job.py"
    ).read_bytes()
    assert (folder / "methods/training/train.py").exists() and not list(folder.rglob("__pycache__"))
    assert len(list((store.root / "code").iterdir())) == 1
    said = "from harness.core import provenance; print(provenance.find_commit())"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    head = str(snapshots.provenance.find_commit())
    found = subprocess.run(
        [sys.executable, "-c", said], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.stdout.strip() in (head, f"{head}+")


@pytest.mark.parametrize("lost", ["methods", "methods/training/train.py", ""])
def test_a_snapshot_that_was_purged_is_refused_and_taken_again(store: Store, lost: str) -> None:
    """Else what it lacks would be imported from elsewhere."""
    folder = snapshots.take_snapshot(store)
    if (folder / lost).is_dir():
        shutil.rmtree(folder / lost)
    else:
        (folder / lost).unlink()
    with pytest.raises(ClusterError, match="is not the code that was launched: files are missing"):
        launching.check_snapshot(folder)
    assert snapshots.take_snapshot(store) == folder
    launching.check_snapshot(folder)
    (folder / "methods/training/train.py").write_text("other code")
    with pytest.raises(ClusterError, match="or changed"):
        launching.check_snapshot(folder)


def test_a_job_runs_the_code_and_the_grid_as_they_were(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Launched from a checkout which is then broken; started there as SLURM would."""
    checkout = tmp_path / "checkout"
    for part in (*snapshots.PACKAGES, "reports"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / part, checkout / part, ignore=ignored)
    (checkout / "tiny.yaml").write_text("# Does it run?\n" + yaml.safe_dump(TINY))
    (checkout / "cluster.yaml").write_text("{}\n")
    monkeypatch.setenv("PYTHONPATH", str(checkout))
    monkeypatch.setenv("BITGRID_DEVICE", "cpu")
    words = ["launch", "tiny.yaml", "--cluster", "cluster.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *words],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.search("jobs +1 in 1 arrays, 1 waves", done.stdout)
    for path in ("harness/__init__.py", "methods/__init__.py", "tiny.yaml"):
        (checkout / path).write_text("raise SystemExit('broken')\n")

    srun = slurm.folder / "bin/srun"  # the command after srun's own words
    srun.write_text(f'#!/bin/sh\nuntil test "$1" = {sys.executable}; do shift; done\nexec "$@"\n')
    job = {"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"}
    job |= {"SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "here"}
    done = subprocess.run(
        ["bash", str(slurm.folder / "sbatch.1")],
        cwd=checkout,
        env={**os.environ, **job},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "attempt 0: 1 stages" in done.stdout
    store = Store(checkout / ".bitgrid")
    (key,) = store.keys()
    manifest = store.manifest(key)
    assert (manifest["job"], manifest["attempt"]) == ("1", 0)
    ((launch,), _) = launches.every(store)
    assert launch.jobs[0].keys == (key,)


# The verbs


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a grid of one cell and a profile, where the verbs are called."""
    (tmp_path / "tiny.yaml").write_text("# Does it run?\n" + yaml.safe_dump(TINY))
    (tmp_path / "cluster.yaml").write_text("partition: gpu\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BITGRID_STORE", raising=False)
    monkeypatch.setattr(snapshots, "PACKAGES", ("harness/published",))
    return tmp_path


def bitgrid(*words: str) -> int:
    return main([*words])


LAUNCH = ("launch", "tiny.yaml", "--cluster", "cluster.yaml")


def test_launch_status_and_cancel(
    tiny: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bitgrid(*LAUNCH, "--dry") == 0
    said = capsys.readouterr().out
    assert "1 in 1 arrays" in said and "#SBATCH --partition=gpu" in said
    assert slurm.submitted == []
    assert bitgrid(*LAUNCH) == 0
    assert "1 jobs as 1\n" in capsys.readouterr().out
    assert bitgrid(*LAUNCH) == 0
    said = capsys.readouterr().out
    assert "queued by another launch: 1" in said and "nothing to submit" in said
    assert bitgrid("status", "tiny.yaml") == 0
    assert re.search(r"^1 +lm-eval +1$", capsys.readouterr().out, re.MULTILINE)
    assert bitgrid("logs", "tiny.yaml", "rtn") == 1
    assert "no job of it has started" in capsys.readouterr().err
    assert bitgrid("cancel", "tiny.yaml") == 0
    assert "cancelled 1 jobs" in capsys.readouterr().out and slurm.said("cancelled") == ["1"]
    slurm.queue()
    assert bitgrid("status", "tiny.yaml") == 0
    assert "lost: lm-eval" in (said := capsys.readouterr().out)
    assert "cancelled before it started" in said
    slurm.down()
    assert bitgrid("status", "tiny.yaml") == 0
    told = capsys.readouterr()
    assert re.search(r"^1 +lm-eval +1$", told.out, re.MULTILINE)
    assert told.err == (
        "bitgrid: the queue is not known: squeue: slurm_load_jobs error: Unable to contact slurm "
        "controller\n"
    )
    slurm.folder.joinpath("down").unlink()
    (tiny / "tiny.yaml").unlink()
    assert bitgrid("gc", "--yes", "--lost-grids") == 0
    assert "launches/" in (said := capsys.readouterr().out) and "code/" in said
    assert list((tiny / ".bitgrid/launches").iterdir()) == []
    assert list((tiny / ".bitgrid/code").iterdir()) == []


def test_bad_input_is_one_line(
    tiny: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        assert bitgrid(*words) == 2
        error = capsys.readouterr().err
        assert error.startswith("bitgrid: ") and error.count("\n") == 1
        return error

    assert "nowhere.yaml does not exist" in refused(
        "launch", "tiny.yaml", "--cluster", "nowhere.yaml"
    )
    assert "give --retry failed too" in refused(*LAUNCH, "--halve-micro-batch")
    (tiny / "cluster.yaml").write_text("partitoin: gpu\n")
    assert "cluster.yaml:1: key 'partitoin' is unknown; did you mean 'partition'?" in refused(
        *LAUNCH
    )
    (tiny / "cluster.yaml").write_text("partition: gpuu\n")
    slurm.refuse(WRONG)
    assert "invalid partition specified: gpuu" in refused(*LAUNCH)
    slurm.down()
    assert "Unable to contact slurm controller" in refused(*LAUNCH)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "squeue is not installed here: launch where SLURM is" in refused(*LAUNCH)


def test_a_local_cluster_runs_jobs_here(
    tiny: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No SLURM: the same jobs from the same snapshot, one array after the other, waited for."""
    monkeypatch.undo()
    monkeypatch.chdir(tiny)
    (tiny / "cluster.yaml").write_text("cluster: local\n")
    assert bitgrid(*LAUNCH) == 0
    ((launch,), _) = launches.every(Store(tiny / ".bitgrid"))
    assert bitgrid("status", "tiny.yaml") == 0
    assert re.search(r"^1 +lm-eval +1$", capsys.readouterr().out, re.MULTILINE)
    assert Store(tiny / ".bitgrid").keys() == [launch.jobs[0].keys[0]]
    assert bitgrid("logs", "tiny.yaml", "rtn") == 0
    assert f"job 0 of {launch.id}, attempt 0: 1 stages" in capsys.readouterr().out
