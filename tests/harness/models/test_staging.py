"""Copies of models on a node's own disk: once, checked, never another model, never a key."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.errors import ModelError
from harness.core.execution import execute
from harness.models import FolderModel, pretrained, staging
from harness.models.hub import HubModel, snapshot_folder
from harness.models.registry import ModelSource, Pin
from harness.models.sources import find_source

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITGRID_NODE_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch" / f"bitgrid-{os.geteuid()}"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def find(folder: Path) -> tuple[FolderModel, Pin]:
    source = FolderModel(folder)
    return source, source.pin(str(folder))


def read_from(source: ModelSource, pin: Pin) -> Path:
    with staging.staged(source, pin) as place:
        where = Path(place["where"])
        return where / place["gguf_file"] if "gguf_file" in place else where


def test_a_model_is_copied_once_and_read_from_there(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, pin = find(folder)
    assert read_from(source, pin) == scratch / pin.digest
    names = {path.name for path in (scratch / pin.digest).iterdir()}
    assert names == {path.name for path in source.files(pin)} | {".whole.json"}
    monkeypatch.setattr(shutil, "copyfile", None)  # what is there is used
    assert read_from(source, pin) == scratch / pin.digest
    assert scratch.stat().st_mode & 0o777 == 0o700


def test_values_and_keys_are_those_without_a_copy(
    folder: Path, scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = pretrained(str(folder))
    there = execute(stage, {}, tmp_path)
    copied = scratch / stage.digest / "model.safetensors"
    mapped = Path("/proc/self/maps").read_text()
    assert str(copied) in mapped and str(folder / "model.safetensors") not in mapped
    facts = there.save(_made(tmp_path / "there"))
    monkeypatch.delenv("BITGRID_NODE_SCRATCH")
    pretrained.cache_clear()
    again = pretrained(str(folder))
    assert (again.key, again.description()) == (stage.key, stage.description())
    here = execute(again, {}, tmp_path)
    assert here.save(_made(tmp_path / "here")) == facts
    assert _digests(tmp_path / "here") == _digests(tmp_path / "there")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "harm",
    [
        lambda copy: _flip(copy / "model.safetensors"),
        lambda copy: (copy / "config.json").unlink(),
        lambda copy: (copy / "generation_config.json").write_text("{}"),
        lambda copy: (copy / ".whole.json").unlink(),
        lambda copy: (copy / ".whole.json").write_text("[]"),
        lambda copy: (copy / "model.safetensors").write_bytes(b""),
    ],
    ids=["a bit", "purged", "added", "mark purged", "mark torn", "cut"],
)
def test_a_copy_that_was_touched_is_made_anew(
    folder: Path, scratch: Path, harm: Callable[[Path], object]
) -> None:
    source, pin = find(folder)
    copy = read_from(source, pin)
    harm(copy)
    assert read_from(source, pin) == copy
    assert source.holds(pin, [copy / path.name for path in source.files(pin)])


def test_files_that_changed_since_the_grid_was_planned_are_no_model_of_it(
    folder: Path, scratch: Path
) -> None:
    source, pin = find(folder)
    _flip(folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=f"not those that the grid was planned with .*{pin.digest}"
    ):
        read_from(source, pin)
    assert [path.name for path in scratch.iterdir()] == [f"{pin.digest}.lock"]


def test_a_copy_that_reads_otherwise_is_not_used(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copyfile

    def damage(path: Path, into: Path) -> None:
        copy(path, into)
        _flip(into)

    monkeypatch.setattr(shutil, "copyfile", damage)
    source, pin = find(folder)
    assert read_from(source, pin) == folder
    assert f"{scratch / pin.digest}: what was copied there reads otherwise" in _said(capsys)
    assert not (scratch / pin.digest).exists()


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bitgrid: node_scratch: ") and "is read from" in line
    return line


def test_full_scratch_is_said_and_the_model_is_read_where_it_lies(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source, pin = find(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 2**28, 2**28))
    assert read_from(source, pin) == folder
    assert f"{scratch}: 0.25 GiB are free, 0.2" in _said(capsys)


def test_a_disk_that_fills_while_copying_leaves_nothing_half(
    folder: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(path: Path, into: Path) -> None:
        into.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(into))

    monkeypatch.setattr(shutil, "copyfile", fill)
    source, pin = find(folder)
    assert read_from(source, pin) == folder
    assert "No space left on device" in _said(capsys)
    assert [path.name for path in scratch.iterdir()] == [f"{pin.digest}.lock"]


def test_another_user_s_folder_is_not_trusted(
    folder: Path, scratch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, pin = find(folder)
    scratch.parent.mkdir()
    scratch.symlink_to(_made(tmp_path / "theirs"))
    assert read_from(source, pin) == folder
    assert "it is another user's" in _said(capsys)
    scratch.unlink()
    scratch.parent.rmdir()
    scratch.parent.write_text("no folder")
    assert read_from(source, pin) == folder
    assert str(scratch.parent) in _said(capsys)


def _stage_slowly(folder: Path, log: Path, wait_s: float) -> None:
    copy = shutil.copyfile

    def slow(path: Path, into: Path) -> None:
        with log.open("a") as file:
            file.write(f"{path.name}\n")
        time.sleep(wait_s)
        copy(path, into)

    shutil.copyfile = slow  # type: ignore[assignment]
    source, pin = find(folder)
    assert read_from(source, pin) != folder


def test_processes_of_a_node_make_one_copy(folder: Path, scratch: Path, tmp_path: Path) -> None:
    """One is killed while it copies; then of four at once one copies, slowly."""
    log, fork = tmp_path / "copied", multiprocessing.get_context("fork")

    def start(wait_s: float) -> multiprocessing.process.BaseProcess:
        process = fork.Process(target=_stage_slowly, args=(folder, log, wait_s))
        process.start()
        return process

    killed = start(1000)
    while not log.exists():
        assert killed.is_alive()
    killed.kill()
    killed.join()
    several = [start(0.05) for _ in range(4)]
    for process in several:
        process.join(120)
    assert [process.exitcode for process in several] == [0] * 4
    source, pin = find(folder)
    names = log.read_text().split()[1:]
    assert sorted(names) == sorted(path.name for path in source.files(pin))


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def snapshot(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the hub's cache, as its client lays it out."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place = snapshot_folder("org/tiny", COMMIT)
    place.mkdir(parents=True)
    blobs = _made(place.parents[1] / "blobs")
    for path in folder.iterdir():
        content = path.read_bytes()
        small = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = path.suffix == ".safetensors"
        name = hashlib.sha256(content).hexdigest() if large else small
        (blobs / name).write_bytes(content)
        (place / path.name).symlink_to(f"../../blobs/{name}")
    return place


def test_a_model_of_the_hub_s_cache_is_checked_by_its_blobs(
    snapshot: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, pin = HubModel("org/tiny"), Pin("org/tiny", COMMIT)
    assert read_from(source, pin) == scratch / COMMIT
    assert not any(path.is_symlink() for path in (scratch / COMMIT).iterdir())
    shutil.rmtree(scratch)
    _flip((snapshot / "tokenizer.json").resolve())
    with pytest.raises(ModelError, match="they changed, or are damaged"):
        read_from(source, pin)
    (snapshot / "model.safetensors").unlink()
    assert read_from(source, pin) == Path("org/tiny")
    assert "are not all here" in _said(capsys)


def test_a_model_of_which_a_shard_is_not_here_is_not_copied(snapshot: Path, scratch: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    assert HubModel("org/tiny").files(Pin("org/tiny", COMMIT)) == ()


def test_of_a_gguf_file_the_file_alone_is_copied(scratch: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and more")
    pin = Pin(str(file), hashlib.sha256(b"GGUF and more").hexdigest()[:24])
    assert read_from(FolderModel(file), pin) == scratch / pin.digest / "tiny.gguf"


def test_a_packed_model_is_read_where_it_is_unpacked(scratch: Path) -> None:
    assert find_source("smollm2-135m").files(Pin("smollm2-135m", "0")) == ()
