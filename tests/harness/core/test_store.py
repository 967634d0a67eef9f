"""The store: complete or absent, one computation a key, and nothing lost to a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from harness.core import claims
from harness.core.errors import Damaged, StoreError
from harness.core.stage import Stage
from harness.core.store import Store
from tests.support.forked import ForkedPopen


@dataclass(frozen=True)
class Number(Stage[dict]):
    kind: ClassVar[str] = "test-number"
    of: int

    def run(self, work: Path) -> dict[str, Any]:
        return {"square": self.of**2}


@dataclass(frozen=True)
class Heavy:
    """A value with files of its own."""

    text: str

    def save(self, folder: Path) -> dict[str, Any]:
        (folder / "text.txt").write_text(self.text)
        return {"length": len(self.text)}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Heavy:
        found = cls((folder / "text.txt").read_text())
        assert facts == {"length": len(found.text)}
        return found


@dataclass(frozen=True)
class Tensors:
    """A value that safetensors writes."""

    def save(self, folder: Path) -> dict[str, Any]:
        save_file({"a": torch.zeros(2)}, folder / "a.safetensors")
        return {}

    @classmethod
    def load(cls, folder: Path, facts: dict[str, Any]) -> Tensors:
        return cls()


@dataclass(frozen=True)
class Writes(Stage[Heavy]):
    kind: ClassVar[str] = "test-writes"
    text: str


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_value_comes_back(store: Store) -> None:
    stage = Number(3)
    assert not store.has(stage.key)
    store.commit(stage, {"square": 9}, {"code": "abc"})
    assert store.load(stage) == {"square": 9}
    assert store.manifest(stage.key)["code"] == "abc"
    assert store.keys() == [stage.key]


def test_a_value_with_files_and_metrics_comes_back(store: Store) -> None:
    stage = Writes("words")
    claim = store.claim(stage.key)
    assert claim is not None
    with claim:
        scratch = store.take_over(claim)
        (scratch.path / "metrics.jsonl").write_text('{"step": 1}\n')
        store.commit(stage, Heavy("words"), {}, None, scratch)
    assert store.load(stage) == Heavy("words")
    assert (store.path(stage.key) / "metrics.jsonl").read_text() == '{"step": 1}\n'
    assert not (store.root / "work" / stage.key).exists()


@pytest.mark.parametrize(("umask", "rights"), [(0o002, 0o664), (0o022, 0o644), (0o077, 0o600)])
def test_files_of_a_value_have_the_rights_that_the_umask_leaves(
    store: Store, umask: int, rights: int
) -> None:
    """safetensors would have its own be their writer's alone: colleagues could not read them."""
    before = os.umask(umask)
    try:
        store.commit(Writes("a"), Tensors(), {})
    finally:
        os.umask(before)
    files = list(store.path(Writes("a").key).iterdir())
    assert {"a.safetensors", "manifest.json"} <= {file.name for file in files}
    assert {file.stat().st_mode & 0o777 for file in files} == {rights}


def test_without_a_manifest_there_is_no_value(store: Store) -> None:
    stage = Writes("words")
    store.commit(stage, Heavy("words"), {})
    (store.path(stage.key) / "manifest.json").unlink()
    assert not store.has(stage.key)
    with pytest.raises(StoreError, match="nothing is stored"):
        store.load(stage)


def test_a_value_that_cannot_be_saved_leaves_nothing(store: Store) -> None:
    class Broken:
        def save(self, folder: Path) -> None:
            (folder / "half").write_text("half")
            raise OSError("disk full")

    stage = Writes("x")
    with pytest.raises(StoreError, match=r"value\.draft: disk full$"):
        store.commit(stage, Broken(), {})
    assert not store.has(stage.key)
    assert not list(store.root.rglob("*.draft"))


def test_the_first_commit_wins(store: Store) -> None:
    stage = Number(3)
    store.commit(stage, {"square": 9}, {"by": "first"})
    store.commit(stage, {"square": 9}, {"by": "second"})
    assert store.manifest(stage.key)["by"] == "first"


def test_other_schemas_and_broken_manifests_are_named(store: Store) -> None:
    stage = Number(3)
    store.commit(stage, {"square": 9}, {})
    path = store.path(stage.key) / "manifest.json"
    path.write_text(json.dumps({"schema": 99}))
    with pytest.raises(StoreError, match="schema 99, this version reads 1"):
        store.manifest(stage.key)
    for text in ("{", "", "[" * 100_000, "[]", "\xff"):
        path.write_bytes(text.encode("latin1"))
        with pytest.raises(Damaged, match=rf"{path} (is no JSON|holds list)"):
            store.manifest(stage.key)
        assert not store.has(stage.key)


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    for act in (store.check, lambda: store.claim("k"), lambda: store.fail("k", {})):
        with pytest.raises(StoreError, match=r"file/store.*: Not a directory"):
            act()
    with pytest.raises(StoreError, match=r"file/store.*: Not a directory"):
        store.commit(Number(3), {"square": 9}, {})


def test_failures_are_records_until_the_value_is_there(store: Store) -> None:
    stage = Number(3)
    assert store.failure(stage.key) is None
    store.fail(stage.key, {"message": "no"})
    assert (store.failure(stage.key) or {})["message"] == "no"
    assert not store.has(stage.key)
    store.commit(stage, {"square": 9}, {})
    assert store.failure(stage.key) is None


def test_one_claim_at_a_time(store: Store) -> None:
    claim = store.claim("k")
    assert claim is not None
    with claim:
        assert store.claim("k") is None
        assert (store.claimed("k") or {})["pid"] == os.getpid()
    assert store.claimed("k") is None
    assert store.claim("k") is not None


def test_no_claim_on_a_value_that_is_there(store: Store) -> None:
    stage = Number(3)
    store.commit(stage, {"square": 9}, {})
    assert store.claim(stage.key) is None
    assert store.claimed(stage.key) is None


def test_a_dead_process_of_this_host_loses_its_claim_at_once(store: Store) -> None:
    child = run_python(store, "store.claim('k')\nprint('claimed', flush=True)\ntime.sleep(60)")
    assert child.stdout is not None
    child.stdout.readline()
    assert store.claim("k") is None
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # and it is not even reaped yet
    claim = store.claim("k")
    child.wait()
    assert claim is not None
    with claim:
        assert store.claim("k") is None
    assert list((store.root / "claims").iterdir()) == []


def test_a_claim_from_another_host_expires_by_its_heartbeat(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_place", lambda: "elsewhere")
    assert store.claim("k") is not None
    monkeypatch.undo()
    assert store.claim("k") is None
    (path,) = (store.root / "claims").glob("k.*")
    old = path.stat().st_mtime - claims.EXPIRY_S - 1
    os.utime(path, (old, old))
    assert store.claim("k") is not None


def test_a_heartbeat_keeps_a_claim(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT_S", 0.02)
    claim = store.claim("k")
    assert claim is not None
    with claim:
        os.utime(claim.path, (1, 1))
        deadline = time.monotonic() + 5
        while claim.path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert claim.path.stat().st_mtime > 2


def test_many_processes_compute_a_value_once(store: Store, tmp_path: Path) -> None:
    """Each of six processes wants each of four keys; a file is appended to at each computation."""
    log = tmp_path / "log"
    code = f"""
    from tests.harness.core.test_store import Number
    for stage in [Number(number) for number in range(4)] * 3:
        while not store.has(stage.key):
            claim = store.claim(stage.key)
            if claim is None:
                time.sleep(0.001)
                continue
            with claim:
                with open({str(log)!r}, "a") as file:
                    file.write(f"{{stage.of}}\\n")
                time.sleep(0.01)
                store.commit(stage, {{"square": 1}}, {{}}, None, store.take_over(claim))
    """
    children = [run_python(store, code) for _ in range(6)]
    assert [child.wait(60) for child in children] == [0] * 6
    assert sorted(log.read_text().split()) == ["0", "1", "2", "3"]


def test_kill_at_any_moment_loses_no_finished_value(store: Store) -> None:
    """A writer is killed at twenty different moments after its first; what has a manifest loads."""
    code = """
    from tests.harness.core.test_store import Heavy, Writes
    import itertools
    for number in itertools.count():
        text = "x" * (200_000 + number)
        store.commit(Writes(text[:50] + str(number)), Heavy(text), {"number": number})
        if number == 0:
            print("go", flush=True)
    """
    for moment in range(20):
        child = run_python(store, code)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(0.001 * moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
    found = store.keys()
    assert found
    for key in found:
        folder, facts = store.path(key), store.manifest(key)
        assert len(Heavy.load(folder, facts["value"]).text) == 200_000 + facts["number"]


def run_python(store: Store, code: str) -> subprocess.Popen[str]:
    head = "import time\nfrom pathlib import Path\nfrom harness.core.store import Store\n"
    head += f"store = Store(Path({str(store.root)!r}))\n"
    command = [sys.executable, "-c", head + textwrap.dedent(code)]
    return ForkedPopen(command, stdout=subprocess.PIPE, text=True)


def test_files_that_another_host_has_just_written_are_waited_for(store: Store) -> None:
    """The manifest is there; a file of it is missing at first. On this host it would be damage."""
    stage = Writes("words")
    store.commit(stage, Heavy("words"), {"host": "elsewhere"})
    path = store.path(stage.key) / "text.txt"
    path.write_text("wo")
    assert not store.has(stage.key)
    assert store.is_arriving(stage.key)
    store.commit(stage, Heavy("words"), {"host": "here"})  # the first one still wins
    assert store.manifest(stage.key)["host"] == "elsewhere"
    path.write_text("words")
    assert store.has(stage.key)
    assert not store.is_arriving(stage.key)
    path.unlink()
    old = time.time() - 61
    os.utime(path.parent / "manifest.json", (old, old))
    assert not store.is_arriving(stage.key)


def test_progress_is_told_and_goes_with_the_work(store: Store) -> None:
    stage = Number(3)
    assert store.progress(stage.key) is None
    claim = store.claim(stage.key)
    assert claim is not None
    store.take_over(claim).say_progress({"done": 1})
    assert (store.progress(stage.key) or {})["done"] == 1
    store.commit(stage, {"square": 9}, {})
    assert store.progress(stage.key) is None


def test_owners_and_failures_of_all_keys_are_those_of_each(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert (store.owners(), store.failed()) == ({}, set())
    elsewhere = {"host": "far", "place": "far away", "pid": 1, "started": 0.0}
    claims = {
        "alive.0": 0,
        "expired.0": 3600,
        "taken.0": 3600,
        "taken.1": 0,
        "late.0": 0,
        "late.1": 3600,
    }
    (tmp_path / "claims").mkdir()
    for name, age in claims.items():
        path = tmp_path / "claims" / name
        path.write_text(json.dumps(elsewhere))
        os.utime(path, (time.time() - age, time.time() - age))
    store.fail("broken", {"message": "planted"})
    keys = ["alive", "expired", "taken", "late", "broken", "other"]
    assert store.owners() == {key: owner for key in keys if (owner := store.claimed(key))}
    assert set(store.owners()) == {"alive", "taken", "late"}
    assert store.failed() == {key for key in keys if store.failure(key)}
