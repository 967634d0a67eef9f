"""The index of manifests: a cache that saves reading and is never believed against the files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness.core import found
from harness.core.files import digest_json, write_json
from harness.core.store import Store

COUNT = 3


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(found, "_FEW", COUNT)
    store = Store(tmp_path)
    for number in range(COUNT):
        _write(store, f"k{number}", "c")
    return store


def _write(store: Store, key: str, code: str) -> None:
    place = store.path(key)
    place.mkdir(parents=True, exist_ok=True)
    (place / "weights").write_text("12345678")
    manifest = {"schema": 1, "key": key, "code": code, "host": "a", "packages": {"torch": "2"}}
    manifest |= {"files": {"weights": 8}, "value": {}}
    write_json(place / "manifest.json", {**manifest, "digest": digest_json(manifest)})


def _look(store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Whole values as another process sees them, and the manifests that it read for that."""
    fresh, read = Store(store.root), list[str]()
    plain = Store.manifest

    def count(self: Store, key: str) -> dict[str, object]:
        read.append(key)
        return plain(self, key)

    monkeypatch.setattr(Store, "manifest", count)
    whole = [key for key in (f"k{number}" for number in range(COUNT)) if fresh.has(key)]
    fresh.index.save()
    monkeypatch.setattr(Store, "manifest", plain)
    return whole, read


def test_a_second_look_reads_no_manifest(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [f"k{number}" for number in range(COUNT)]
    assert _look(store, monkeypatch) == (everything, everything)
    assert _look(store, monkeypatch) == (everything, [])
    assert Store(store.root).look("k1") == store.look("k1")  # as the manifest itself says


def test_what_has_changed_is_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _look(store, monkeypatch)
    _write(store, "k1", "another")
    (store.path("k0") / "weights").write_text("short")
    whole, read = _look(store, monkeypatch)
    assert whole == ["k1", "k2"] and read == ["k1"]
    (store.path("k2") / "manifest.json").unlink()
    assert _look(store, monkeypatch)[0] == ["k1"]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "values": {"k0": [1]}, "packages": []}']
)
def test_an_index_that_is_no_index_costs_a_look(
    store: Store, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    (store.root / "index.json").write_text(text)
    whole, read = _look(store, monkeypatch)
    assert len(whole) == len(read) == COUNT


def test_damage_is_not_remembered(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = store.path("k0") / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"c"', '"d"'))
    for _ in range(2):
        whole, read = _look(store, monkeypatch)
        assert whole == ["k1", "k2"] and "k0" in read


def test_a_flipped_digit_in_the_index_damages_no_value(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = _look(store, monkeypatch)[0]
    index = store.root / "index.json"
    text = index.read_text()
    assert '"weights": 8' in text
    index.write_text(text.replace('"weights": 8', '"weights": 9', 1))
    assert _look(store, monkeypatch) == (everything, everything)
    assert _look(store, monkeypatch) == (everything, [])  # it was written anew


def test_values_that_are_gone_leave_the_index(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _look(store, monkeypatch)
    for number in range(COUNT):
        shutil.rmtree(store.path(f"k{number}"))
    _write(store, "other", "c")
    assert _look(store, monkeypatch) == ([], [])
    assert json.loads((store.root / "index.json").read_text())["index"]["values"] == {}
