"""Values that are not what was written: seen, not used, replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core import store as stores
from harness.core.errors import Damaged
from harness.core.store import Store
from harness.core.trash import Trash
from tests.harness.core.test_store import Heavy, Writes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


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
