"""What gc keeps, by each fault that once made it delete or end in a traceback; by the command."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.cluster import garbage, launches
from harness.core.store import Store, write_json
from harness.core.trash import Trash
from harness.run import plan as plans
from harness.run import remembering
from tests.support import fakeslurm
from tests.support.fakeslurm import Slurm, launched
from tests.support.plans import fill, plan_of, values

ROOT = Path(__file__).parents[3]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.chdir(tmp_path)
    return Store(tmp_path / ".bitgrid")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    return fakeslurm.install(tmp_path / "lab", monkeypatch)


def planned(store: Store, path: Path, numbers: Iterable[int]) -> plans.Plan:
    """A grid that was planned and whose values are there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {numbers}\n")
    plan = remembering.remember(plan_of(path, numbers), store, required=True)
    fill(store, plan.nodes)
    return plan


def gc(*words: str, code: int = 0) -> None:
    assert main(["gc", *words]) == code


def test_a_plan_of_an_older_program_keeps_its_values(store: Store, tmp_path: Path) -> None:
    planned(store, tmp_path / "a.yaml", [4])
    for version in (store.root / "grids").iterdir():
        version.unlink()
    (plan,) = (store.root / "plans").iterdir()
    write_json(plan, {**json.loads(plan.read_text()), "schema": 1})
    gc("--yes", "--lost-grids", "--earlier")
    assert values(store) == {"k1", "k2", "k4"}
    # Planned anew by this program, with other stages: the older plan is an earlier version.
    planned(store, tmp_path / "a.yaml", [3])
    gc("--yes")
    assert values(store) == {"k1", "k2", "k3", "k4"}
    gc("--yes", "--earlier")
    assert values(store) == {"k1", "k3"}


@pytest.mark.parametrize(
    ("place", "text", "words"),
    [
        ("grids", '{"schema": 99}', "is of another version of bitgrid"),
        ("grids", "{", "cannot be read (Expecting"),
        ("grids", '{"schema": 1, "name": "a", "path": "/a"}', "lacks a name, a path or keys"),
        ("plans", '{"schema": 99, "nodes": {}}', "run gc of that version, or `bitgrid plan`"),
        ("plans", "[" * 100_000, "make it readable, or remove it and `bitgrid plan`"),
        ("plans", "[]", "it is no object"),
        ("launches/x", '{"schema": 99}', "wait for the end of its jobs and remove the folder"),
        ("launches/x", "\x00", "plan.json cannot be read"),
    ],
)
def test_what_cannot_be_understood_refuses_in_one_line(
    store: Store,
    tmp_path: Path,
    slurm: Slurm,
    capsys: pytest.CaptureFixture[str],
    place: str,
    text: str,
    words: str,
) -> None:
    planned(store, tmp_path / "a.yaml", [4])
    fill(store, ["unknown"])
    (store.root / place).mkdir(parents=True, exist_ok=True)
    (store.root / place / ("plan.json" if "x" in place else "b-12345678.json")).write_text(text)
    slurm.queue("7|0|PENDING|Priority|b:x:0")
    for asked in ((), ("--yes", "--lost-grids", "--earlier")):
        gc(*asked, code=2)
        error = capsys.readouterr().err
        assert words in error and "nothing is removed" in error
        assert (
            len([line for line in error.splitlines() if not line.endswith("jobs have ended")]) == 1
        )
    assert values(store) == {"k1", "k2", "k4", "unknown"}


def test_a_grid_that_is_renamed_or_lost_is_kept_until_it_is_forgotten(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "study" / "a.yaml"
    planned(store, path, [4])
    path.rename(path.with_name("b.yaml"))
    gc("--yes")
    assert "kept, file lost (--lost-grids): a-" in capsys.readouterr().out
    assert values(store) == {"k1", "k2", "k4"}
    # Another grid in its place is another version: the first one is kept, under either name.
    planned(store, path, [3])
    gc("--yes")
    shown = capsys.readouterr().out
    assert "kept, before an edit (--earlier): a-" in shown and "0 entries moved" in shown
    planned(store, path.with_name("b.yaml"), [4])
    gc("--yes", "--lost-grids", "--earlier")
    assert values(store) == {"k1", "k2", "k3", "k4"}  # b has them
    for grid in path.parent.iterdir():
        grid.unlink()
    gc("--yes", "--lost-grids")
    assert values(store) == set() and "grids that are kept: none" in capsys.readouterr().out
    assert remembering.list_known(store) == []


def test_a_folder_that_is_not_there_may_be_one_that_is_not_mounted(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(store, tmp_path / "mount" / "study" / "a.yaml", [4])
    (tmp_path / "mount").rename(tmp_path / "unmounted")
    gc("--yes", "--lost-grids", "--earlier")
    shown = capsys.readouterr().out
    assert "grids that are kept: a\n" in shown and "out of reach: a-" in shown
    assert values(store) == {"k1", "k2", "k4"}
    (known,) = remembering.list_known(store)
    gc("--forget", known.id[:-1], code=2)
    assert f"did you mean '{known.id}'?" in capsys.readouterr().err
    gc("--forget", known.id, "--yes")
    assert values(store) == set()


def test_a_grid_whose_file_is_there_is_not_forgotten(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(store, tmp_path / "a.yaml", [4])
    (known,) = remembering.list_known(store)
    gc("--forget", known.id, "--yes", code=2)
    assert "a.yaml is there; rename or remove it first" in capsys.readouterr().err
    assert values(store) == {"k1", "k2", "k4"}


def _as_a_user() -> None:
    """Has permissions of files hold for root too, from the next exec on."""
    for capability in (1, 2):  # to write, to read and search what is closed
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def _gc_as_a_user(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", "gc", *words]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        preexec_fn=_as_a_user,
    )
    assert done.returncode == code, done.stderr
    return done


def test_a_closed_home_folder_is_out_of_reach(store: Store, tmp_path: Path) -> None:
    home = tmp_path / "home"
    planned(store, home / "study" / "a.yaml", [4])
    fill(store, ["unknown"])
    home.chmod(0o000)
    try:
        done = _gc_as_a_user("--yes", "--lost-grids", "--earlier")
    finally:
        home.chmod(0o700)
    assert "out of reach: a-" in done.stdout and done.stderr == ""
    assert values(store) == {"k1", "k2", "k4"}


def test_a_store_that_can_only_be_read(store: Store, tmp_path: Path) -> None:
    planned(store, tmp_path / "a.yaml", [4])
    fill(store, ["unknown"])
    store.check()
    folders = [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        done = _gc_as_a_user("--yes", code=2)
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert "values/unknown" in done.stdout and "1 entries to remove" in done.stdout
    assert done.stderr.startswith("bitgrid: the store ") and done.stderr.count("\n") == 1
    assert "cannot be written" in done.stderr


def test_a_value_that_cannot_be_moved_costs_a_line(store: Store, tmp_path: Path) -> None:
    planned(store, tmp_path / "a.yaml", [4])
    fill(store, ["unknown", "other"])
    (store.root / "values" / "other").chmod(0o555)  # to move a folder one must write it
    done = _gc_as_a_user("--yes")
    assert "values/other cannot be moved or removed: Permission denied" in done.stderr
    assert values(store) == {"k1", "k2", "k4", "other"}


@pytest.mark.parametrize("state", ["queued", "unknown"])
def test_queued_jobs_keep_what_their_launch_needs(
    store: Store,
    tmp_path: Path,
    slurm: Slurm,
    capsys: pytest.CaptureFixture[str],
    state: str,
) -> None:
    path = tmp_path / "a.yaml"
    plan = planned(store, path, [4])
    record = launched(store.root, path, [("k4",)])
    plans.write(plan, record.folder / launches.PLAN)
    (store.root / "code" / "abc").mkdir(parents=True)
    planned(store, path, [3])  # an edit
    if state == "queued":
        slurm.queue(f"7|0|PENDING|Priority|{record.name(0)}")
    else:
        slurm.down()
    gc("--yes", "--earlier")
    assert values(store) == {"k1", "k2", "k3", "k4"}
    path.unlink()
    gc("--yes", "--lost-grids")
    told = capsys.readouterr()
    assert ("all launches count as queued" in told.err) == (state == "unknown")
    assert values(store) == {"k1", "k2", "k4"}
    assert record.folder.exists() and (store.root / "code" / "abc").exists()
    slurm.queue()
    (slurm.folder / "down").unlink(missing_ok=True)
    gc("--yes")
    assert values(store) == set()
    assert not record.folder.exists() and not (store.root / "code" / "abc").exists()


def test_the_queue_is_asked_for_everybody_s_jobs(
    store: Store, tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(store, tmp_path / "a.yaml", [4])
    record = launched(store.root, tmp_path / "a.yaml", [("k4",)])
    plans.write(plan, record.folder / launches.PLAN)
    assert garbage.look(store).launches == {}
    assert not any("--user" in line for line in slurm.said("asked"))
    monkeypatch.setattr(os, "getuid", lambda: 12345)  # the jobs of another user may be hidden
    assert garbage.look(store).launches == {record.id: frozenset(plan.nodes)}


def test_a_broken_launch_keeps_its_code_and_costs_a_line(
    store: Store, tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    record = launched(store.root, tmp_path / "gone.yaml", [("k4",)])
    (store.root / "code" / "abc").mkdir(parents=True)
    for text in ("{", '{"schema": 1}', "[]", '{"schema": 2}'):
        (record.folder / "launch.json").write_text(text)
        gc("--yes")
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "launch.json" in error
        assert record.folder.exists() and (store.root / "code" / "abc").exists()


def test_a_live_claim_keeps_its_grid_and_a_strange_one_refuses(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planned(store, tmp_path / "a.yaml", [4])
    (tmp_path / "a.yaml").unlink()
    fill(store, ["unknown"])
    (store.root / "values" / "k4").rename(tmp_path / "k4")
    claim = store.claim("k4")
    assert claim is not None
    with claim:
        gc("--yes", "--lost-grids")
        assert "is being computed: it is kept" in capsys.readouterr().err
        assert values(store) == {"k1", "k2"}
    claim = store.claim("strange")
    assert claim is not None
    with claim:
        gc("--yes", code=2)
        assert "computes strange, which no remembered grid has" in capsys.readouterr().err
    gc("--yes", "--lost-grids")
    assert values(store) == set()


def test_what_is_needed_again_comes_back(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    planned(store, path, [4])
    (store.root / "work" / "k8").mkdir(parents=True)
    planned(store, path, [3])
    gc("--yes", "--earlier")
    assert values(store) == {"k1", "k3"}
    remembering.remember(plan_of(path, [8]), store)
    assert values(store) == {"k1", "k2", "k3", "k4"} and (store.root / "work" / "k8").exists()
    assert Trash(store.root).contents() == [] or all(
        each.place.parts[0] == "grids" for each in Trash(store.root).contents()
    )


def test_the_trash_is_emptied_by_age(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(store, ["young"])
    gc("--yes")
    fill(store, ["old"])
    trash = Trash(store.root)
    day = time.strftime("%Y%m%d-%H%M%S", time.gmtime(time.time() - 8 * 24 * 3600))
    trash.discard(store.root / "values" / "old", trash.folder / f"{day}-abcd")
    capsys.readouterr()
    gc()
    assert "in 1 of 2 entries of the trash have lain there for 7 days" in capsys.readouterr().out
    gc("--yes")
    assert [each.key for each in trash.contents()] == ["young"]
    gc("--yes", "--older", "0")
    assert trash.contents() == [] and list(trash.folder.iterdir()) == []


def test_what_dead_processes_left_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    far = {"host": "far", "place": "far", "pid": 1, "started": 0.0}
    store.check()
    for name in ("dead.0", "dead.1", "done.3"):
        claim = store.root / "claims" / name
        claim.write_text(json.dumps(far))
        os.utime(claim, (0, 0))
    fill(store, ["done"])
    (store.root / "drafts" / "dead.ab12").mkdir(parents=True)
    (store.root / "work" / "dead").mkdir(parents=True)
    draft = store.root / "code" / ".draft.1234"
    draft.mkdir(parents=True)
    with monkeypatch.context() as ahead:  # files have the file system's clock, not this host's
        now = time.time
        ahead.setattr(time, "time", lambda: now() + 3 * 24 * 3600)
        gc("--yes")
    assert draft.exists()  # somebody may write it
    os.utime(draft, (0, 0))
    gc("--yes")
    left = [p for p in store.root.rglob("*") if p.is_file() and "trash" not in p.parts]
    assert left == [] and not draft.exists()


def test_a_store_that_is_not_there_has_nothing_to_remove(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    gc()
    assert "0 entries to remove" in capsys.readouterr().out and not store.root.exists()


def test_other_verbs_go_on_past_a_broken_launch(
    store: Store, tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.yaml"
    planned(store, path, [4])
    launched(store.root, path, [("k4",)])
    (store.root / "launches" / "x").mkdir()
    (store.root / "launches" / "x" / "launch.json").write_text("{")
    (store.root / "plans" / "other-12345678.json").write_text("{")
    for verb in (["status"], ["cancel"]):
        assert main([*verb, str(path)]) == 0
        told = capsys.readouterr()
        assert told.err.count("\n") == 1 and "launches/x/launch.json cannot be read" in told.err
    assert "cancelled 0 jobs" in told.out
