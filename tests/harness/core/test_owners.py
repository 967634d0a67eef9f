"""Owners of stages: who was outbid leaves, and what the dead left is tidied away."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from harness.core import claims
from harness.core.errors import Outbid
from harness.core.store import Store
from tests.harness.core.test_store import Heavy, Writes, run_python


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


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
    child = run_python(
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
