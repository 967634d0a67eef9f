"""A disk that fails at any call: one line with the path and what to do, and nothing half."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from harness.core.errors import StoreError
from harness.core.files import explained, read_json, write_json
from harness.core.store import Store
from tests.harness.core.test_store import Heavy, Writes

STAGE, VALUE = Writes("words"), Heavy("words")
CALLS = [(Path, name) for name in ("mkdir", "rename", "replace", "open", "touch", "write_text")]
ADVICE = {
    errno.ENOSPC: "free space there, or set BITGRID_STORE to another disk",
    errno.EROFS: "it can be read, and nothing can be kept there: set BITGRID_STORE",
    errno.EACCES: "ask its owner for the right to it, or set BITGRID_STORE",
    errno.EIO: "the disk or the network failed: the same command goes on once it is back",
    errno.ESTALE: "the network file system failed: the same command goes on once it is back",
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@contextlib.contextmanager
def failing(number: int, code: int) -> Iterator[list[str]]:
    """All calls that change a disk fail from the n-th on; which were tried."""
    tried: list[str] = []

    def wrap(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **options: Any) -> Any:
            reads = name == "open" and not {"w", "x", "a"} & set(str(arguments[1:2]))
            if not reads:
                tried.append(name)
                if len(tried) >= number:
                    where = None if name == "fsync" else str(arguments[0])
                    raise OSError(code, os.strerror(code), where)
            return call(*arguments, **options)

        return act

    with pytest.MonkeyPatch.context() as patch:
        for place, name in (*CALLS, (os, "fsync"), (os, "link")):
            patch.setattr(place, name, wrap(name, getattr(place, name)))
        yield tried


def keep(store: Store) -> None:
    claim = store.claim(STAGE.key)
    assert claim is not None
    try:
        store.commit(STAGE, VALUE, {}, {"code": "1"}, store.take_over(claim))
    finally:
        claim.release()


@pytest.mark.parametrize("code", ADVICE)
def test_a_value_is_kept_or_one_line_says_why_not(tmp_path: Path, code: int) -> None:
    with failing(1_000_000, code) as calls:
        keep(Store(tmp_path / "whole"))
    assert {"mkdir", "rename", "replace", "open", "fsync", "link"} <= set(calls)
    share = list(ADVICE).index(code)  # each error has its share of the calls
    for number in range(1 + share, len(calls) + 1, len(ADVICE)):
        store = Store(tmp_path / f"store-{number}")
        with failing(number, code), pytest.raises(StoreError) as caught:
            keep(store)
        message = str(caught.value)
        assert str(store.root) in message and "\n" not in message
        assert f": {os.strerror(code)}; {ADVICE[code]}" in message
        assert not store.has(STAGE.key) and store.find_fault(STAGE.key) is None
        keep(store)  # the disk is back
        assert store.load(STAGE) == VALUE
        assert not list((store.root / "claims").glob("*")) and not os.listdir(store.root / "work")


@pytest.mark.parametrize("code", ADVICE)
def test_a_record_of_a_failure_is_kept_or_one_line_says_why_not(store: Store, code: int) -> None:
    store.fail("k", {"message": "first"})
    for number in (1, 2, 3):
        with failing(number, code), pytest.raises(StoreError, match=ADVICE[code]):
            store.fail("k", {"message": "second"})
        record = store.failure("k")
        assert record is not None and record["message"] == "first"


def test_a_value_that_cannot_be_read_is_not_there_and_says_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store)
    folder, stat = store.path(STAGE.key), os.stat
    for name in ("manifest.json", "text.txt"):

        def refuse(path: Any, name: str = name, **options: Any) -> os.stat_result:
            if str(path) == str(folder / name):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return stat(path, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", refuse)
            assert not store.has(STAGE.key)
            fault = store.find_fault(STAGE.key)
            assert fault == f"{folder / name}: Permission denied; {ADVICE[errno.EACCES]}"
    assert store.has(STAGE.key)


def test_what_lies_where_a_value_is_to_be_blocks_nothing(store: Store) -> None:
    """Without a manifest nobody vouches for it."""
    place = store.path(STAGE.key)
    place.mkdir(parents=True)
    (place / "text.txt").write_text("left by a copy that broke off")
    keep(store)
    assert store.load(STAGE) == VALUE
    store.discard(STAGE.key)
    place.write_text("a file")
    keep(store)
    assert store.load(STAGE) == VALUE


def test_an_error_of_a_library_in_rust_is_one_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "model.safetensors"
    with (
        pytest.raises(StoreError, match=r"^value: No such file or directory$"),
        explained(Path("value")),
    ):
        save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(StoreError, match=ADVICE[errno.ENOSPC]), explained(Path("value")):
        raise RuntimeError("Error while serializing: I/O error: No space left (os error 28)")
    with pytest.raises(ValueError, match="another"), explained(Path("value")):
        raise ValueError("another")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1'])
def test_what_is_no_json_is_one_line_with_its_path(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"^{path} ") as caught:
        read_json(path)
    assert "\n" not in str(caught.value)
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["plan.json"]
