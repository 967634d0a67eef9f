"""The store: complete or absent, one computation a key, and nothing lost to a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from harness.core import claims
from harness.core import store as stores
from harness.core.errors import Damaged, Outbid, StoreError
from harness.core.stage import Stage
from harness.core.store import Store
from harness.core.trash import Trash

ROOT = Path(__file__).parents[3]


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
    child = _python(store, "store.claim('k')\nprint('claimed', flush=True)\ntime.sleep(60)")
    assert child.stdout is not None
    child.stdout.readline()
    assert store.claim("k") is None
    child.kill()  # not even reaped yet
    time.sleep(0.2)
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
    for key in ("a", "b", "c", "d") * 3:
        while not (store.root / "values" / key).exists():
            claim = store.claim(key)
            if claim is None:
                time.sleep(0.001)
                continue
            with claim:
                with open({str(log)!r}, "a") as file:
                    file.write(key + "\\n")
                time.sleep(0.01)
                folder = store.root / "values" / key
                folder.mkdir(parents=True)
                (folder / "manifest.json").write_text("{{}}")
    """
    children = [_python(store, code) for _ in range(6)]
    assert [child.wait(60) for child in children] == [0] * 6
    assert sorted(log.read_text().split()) == ["a", "b", "c", "d"]


def test_kill_at_any_moment_loses_no_finished_value(store: Store) -> None:
    """A writer is killed at twenty different moments; what has a manifest must load."""
    code = """
    from tests.harness.core.test_store import Heavy, Writes
    number = 0
    print("go", flush=True)
    while True:
        text = "x" * (200_000 + number)
        store.commit(Writes(text[:50] + str(number)), Heavy(text), {"number": number})
        number += 1
    """
    for moment in range(20):
        child = _python(store, code)
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


def _python(store: Store, code: str) -> subprocess.Popen[str]:
    head = "import time\nfrom pathlib import Path\nfrom harness.core.store import Store\n"
    head += f"store = Store(Path({str(store.root)!r}))\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


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


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (lambda folder: (folder / "text.txt").unlink(), "text.txt is missing"),
        (lambda folder: (folder / "text.txt").write_text("wo"), "has 2 of 5 bytes"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 99}'), "schema 99"),
        (lambda folder: _change(folder / "manifest.json", "value", 6), "its digest differs"),
        (lambda folder: _change(folder / "manifest.json", "files", {}), "its digest differs"),
        (lambda folder: (folder / "manifest.json").unlink(), None),
    ],
)
def test_what_is_not_whole_is_not_there_and_is_replaced(
    store: Store, fault: Callable[[Path], None], said: str | None
) -> None:
    stage = Writes("words")
    store.commit(stage, Heavy("words"), {"by": "first"})
    fault(store.path(stage.key))
    assert not store.has(stage.key)
    found = store.find_fault(stage.key)
    assert (said in found) if said and found else (said is found is None)
    claim = store.claim(stage.key)
    assert claim is not None
    with claim:
        store.commit(stage, Heavy("words"), {"by": "second"}, None, store.take_over(claim))
    assert store.manifest(stage.key)["by"] == "second"
    assert store.load(stage) == Heavy("words")
    (damaged,) = (store.root / "trash").glob("*/damaged/*")
    assert damaged.name == stage.key
    assert Trash(store.root).restore({stage.key}) == []  # what was damaged does not come back


def _change(path: Path, name: str, to: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), name: to}))


def test_one_bit_of_a_file_is_noticed_when_it_is_loaded(store: Store) -> None:
    stage = Writes("words")
    store.commit(stage, Heavy("words"), {})
    path = store.path(stage.key) / "text.txt"
    path.write_text("wordr")
    assert store.has(stage.key)  # a look at sizes does not tell
    with pytest.raises(Damaged, match=rf"{path} is not what was written: its sha256 differs") as e:
        store.load(stage)
    assert e.value.key == stage.key
    store.discard(stage.key)
    assert not store.has(stage.key)


def test_a_file_is_read_for_its_digest_once_until_it_changes(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, seen = Writes("words"), []
    store.commit(stage, Heavy("words"), {}, {"code": "1"})
    digest = stores.digest_file
    monkeypatch.setattr(
        stores, "digest_file", lambda path: (seen.append(path.name), digest(path))[1]
    )
    store.load(stage)
    store.load(stage)
    assert sorted(seen) == ["code.json", "text.txt"]
    (store.path(stage.key) / "text.txt").write_text("wordt")
    with pytest.raises(Damaged):
        store.load(stage)
    store.load(stage, check=False)


def test_a_value_from_before_there_were_digests_is_read(store: Store) -> None:
    stage = Writes("words")
    store.commit(stage, Heavy("words"), {})
    path = store.path(stage.key) / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(
        json.dumps({k: v for k, v in manifest.items() if k not in ("sha256", "digest")})
    )
    assert store.has(stage.key)
    assert store.load(stage) == Heavy("words")


def test_an_owner_that_was_outbid_leaves_nothing_behind(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was paused on another host for more than a minute, and goes on where it was."""
    stage = Writes("words")
    monkeypatch.setattr(claims, "_place", lambda: "elsewhere")
    paused = store.claim(stage.key)
    assert paused is not None
    scratch = store.take_over(paused)
    (scratch.path / "checkpoint-1.safetensors").write_text("whole")
    (scratch.path / "checkpoint-2.draft").write_text("half")
    monkeypatch.undo()
    os.utime(paused.path, (1, 1))
    claim = store.claim(stage.key)
    assert claim is not None
    with claim:
        mine = store.take_over(claim)
        assert {path.name for path in mine.path.iterdir()} == {"checkpoint-1.safetensors"}
        assert not paused.stands
        assert claim.stands
        with pytest.raises(OSError, match="No such file"):
            (scratch.path / "checkpoint-2.safetensors").write_text("from the past")
        with pytest.raises(Outbid):
            store.commit(stage, Heavy("words"), {"by": "paused"}, None, scratch)
        paused.release()  # not the other's
        assert store.claimed(stage.key) is not None
        store.commit(stage, Heavy("words"), {"by": "other"}, None, mine)
    assert store.manifest(stage.key)["by"] == "other"
    assert not list((store.root / "claims").glob("*")) and not list((store.root / "work").glob("*"))


def test_an_owner_that_is_outbid_while_it_saves_leaves(store: Store) -> None:
    stage, claim = Writes("words"), store.claim(Writes("words").key)
    assert claim is not None
    scratch = store.take_over(claim)

    class Slow(Heavy):
        def save(self, folder: Path) -> dict[str, Any]:
            scratch.path.rename(scratch.path.with_name("another"))
            return super().save(folder)

    with pytest.raises(Outbid):
        store.commit(stage, Slow("words"), {}, None, scratch)
    assert not store.has(stage.key)


def test_a_file_system_that_fails_for_a_moment_takes_nothing_away(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = store.claim("k")
    assert claim is not None
    store.take_over(claim)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "stat", fail)
    assert claim.stands


def test_a_claim_that_cannot_be_read_counts_by_its_heartbeat(store: Store) -> None:
    (store.root / "claims").mkdir(parents=True)
    for number, text in enumerate(["", "{", "[]", '{"host": "new", "version": 2}']):
        path = store.root / "claims" / f"k{number}.0"
        path.write_text(text)
        assert store.claim(f"k{number}") is None
        os.utime(path, (1, 1))
        assert store.claim(f"k{number}") is not None


def test_what_dead_owners_left_is_tidied_away(store: Store) -> None:
    child = _python(
        store,
        """
        for key in ("a", "b"):
            store.take_over(store.claim(key)).path.joinpath("checkpoint-1").write_text("kept")
        print("claimed", flush=True)
        time.sleep(60)
        """,
    )
    assert child.stdout is not None
    child.stdout.readline()
    store.tidy()
    assert set(store.owners()) == {"a", "b"}
    child.kill()
    child.wait()
    for name in (".now.123", ".a.456"):
        (store.root / "claims" / name).touch()
        os.utime(store.root / "claims" / name, (1, 1))
    alive = store.claim("c")
    assert alive is not None
    store.tidy()
    assert [path.name for path in (store.root / "claims").iterdir()] == ["c.0"]
    claim = store.claim("a")
    assert claim is not None
    assert (store.take_over(claim).path / "checkpoint-1").read_text() == "kept"


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
