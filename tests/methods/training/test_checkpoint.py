"""Checkpoints: the file that the library reads, whole or not at all, a tensor at a time."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import tempfile
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.core.errors import BitgridError, Outbid
from methods.tensor_files import is_whole, write_checked
from methods.training.checkpoint import Checkpoints, Metrics, find_last_step
from methods.training.optimizer import make_adamw
from methods.training.shards import Shards


class Counting(Shards):
    """Notes how many of the tensors that it gathered are alive when it gathers the next."""

    seen: ClassVar[list[weakref.ref[Tensor]]] = []
    alive: ClassVar[list[int]] = []

    def gather(self, part: Tensor, place: Tensor) -> Tensor | None:
        whole = part.clone()
        self.alive.append(sum(ref() is not None for ref in self.seen))
        self.seen.append(weakref.ref(whole))
        return whole


def trained() -> tuple[dict[str, nn.Parameter], torch.optim.Optimizer]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a.weight": (5, 3), "norm": (7,), "z": (4, 2)}
    weights = {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}
    optimizer = make_adamw("adamw", weights.values(), 1e-2, (0.9, 0.99), 0.1)
    for _ in range(3):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weights, optimizer


def test_the_library_reads_it(tmp_path: Path) -> None:
    weights, optimizer = trained()
    Checkpoints(tmp_path, Counting(), weights).save(3, weights, optimizer, {"tokens": 8})
    assert max(Counting.alive) <= 1  # the one before, which is being written
    path = tmp_path / "checkpoint-3.safetensors"
    found = load_file(path)
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["facts"]) == {"tokens": 8, "step": 3}
    digest = hashlib.sha256(path.read_bytes()[:-32]).digest()
    assert bytes(found.pop("sha256").tolist()) == digest
    assert len(found) == 4 * len(weights)
    for name, weight in weights.items():
        assert torch.equal(found[f"weight/{name}"], weight)
        for part, state in optimizer.state[weight].items():
            assert torch.equal(found[f"{part}/{name}"], state), (part, name)
    others, again = trained()
    facts = Checkpoints(tmp_path, Shards(), others).load(others, again, 3)
    assert facts == {"tokens": 8, "step": 3}


def test_one_that_is_not_finished_leaves_the_one_before(tmp_path: Path) -> None:
    weights, optimizer = trained()
    place = Checkpoints(tmp_path, Shards(), weights)
    place.save(1, weights, optimizer, {})

    class Killed(Shards):
        def gather(self, part: Tensor, place: Tensor) -> Tensor | None:
            if part.shape == (4, 2):
                raise KeyboardInterrupt
            return part

    with pytest.raises(KeyboardInterrupt):
        Checkpoints(tmp_path, Killed(), weights).save(2, weights, optimizer, {})
    assert load_step(tmp_path) == 1
    place.save(2, weights, optimizer, {})  # over what was left half written
    assert load_step(tmp_path) == 2


def load_step(folder: Path, logged: int = 999) -> int | None:
    weights, optimizer = trained()
    facts = Checkpoints(folder, Shards(), weights).load(weights, optimizer, logged)
    return None if facts is None else int(facts["step"])


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    weights, optimizer = trained()
    for step in (5, 10, 100):
        Checkpoints(tmp_path, Shards(), weights).save(step, weights, optimizer, {})
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"checkpoint-10.safetensors", "checkpoint-100.safetensors"}
    assert load_step(tmp_path) == 100


@pytest.mark.parametrize("fault", ["mixed", "cut", "longer", "empty", "flipped"])
def test_a_torn_one_is_refused_and_the_one_before_used(tmp_path: Path, fault: str) -> None:
    """As two owners leave it that write one file at once, or a disk that loses bytes."""
    weights, optimizer = trained()
    place = Checkpoints(tmp_path, Shards(), weights)
    place.save(10, weights, optimizer, {})
    for weight in weights.values():
        weight.data += 1
    place.save(20, weights, optimizer, {})
    old, path = (tmp_path / f"checkpoint-{step}.safetensors" for step in (10, 20))
    new = path.read_bytes()
    half = len(new) * 2 // 3
    torn = {
        "mixed": new[:half] + old.read_bytes()[half:],
        "cut": new[:half],
        "longer": new + b"0",
        "empty": b"",
        "flipped": new[:-40] + bytes([new[-40] ^ 64]) + new[-39:],
    }
    path.write_bytes(torn[fault])
    if fault in ("mixed", "flipped"):
        load_file(path)  # the library has no complaint
    with pytest.warns(UserWarning, match="checkpoint-20.safetensors is torn: the one before it"):
        assert load_step(tmp_path) == 10
    old.unlink()
    with pytest.warns(UserWarning, match="is torn"):
        assert load_step(tmp_path) is None


def test_one_that_is_ahead_of_the_log_is_not_used(tmp_path: Path) -> None:
    weights, optimizer = trained()
    place = Checkpoints(tmp_path, Shards(), weights)
    place.save(10, weights, optimizer, {})
    place.save(20, weights, optimizer, {})
    with pytest.warns(UserWarning, match="ahead of the log, which ends at 15"):
        assert load_step(tmp_path, logged=15) == 10


def test_the_log_is_whole_up_to_its_first_gap(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert find_last_step(log) == 0
    lines = [json.dumps({"step": step}) for step in (1, 2, 3, 5)]
    log.write_text("\n".join(lines) + '\n{"st')
    assert find_last_step(log) == 3
    log.write_bytes(b'{"step": 1}\n{"step": "2"}\n[3]\n{"step": 4, "\xff": 0}\n')
    assert find_last_step(log) == 1


def test_a_log_that_is_not_utf_8_is_cut_back_to_what_can_be_read(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    first = json.dumps({"step": 1, "loss": 2.5, "tokens": 8})
    log.write_bytes(first.encode() + b'\n{"step": 2, "loss": \xff\xfe}\n')
    Metrics(log, 2).close()
    assert log.read_text() == first + "\n"


def test_a_full_disk_keeps_the_one_before_and_takes_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several processes the others wait until each tensor was gathered."""
    weights, optimizer = trained()
    place = Checkpoints(tmp_path, Shards(), weights)
    place.save(1, weights, optimizer, {})
    gathered: list[torch.Size] = []

    class Counted(Shards):
        def gather(self, part: Tensor, place: Tensor) -> Tensor | None:
            gathered.append(part.shape)
            return part

    def refuse(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            Checkpoints(tmp_path, Counted(), weights).save(2, weights, optimizer, {})
    assert len(gathered) == 4 * len(weights)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1.safetensors"}
    assert load_step(tmp_path) == 1


def test_an_owner_whose_folder_is_gone_leaves(tmp_path: Path) -> None:
    weights, optimizer = trained()
    with pytest.raises(Outbid):
        Checkpoints(tmp_path / "gone", Shards(), weights).save(1, weights, optimizer, {})


def test_a_tensor_that_does_not_fit_its_place_is_an_error(tmp_path: Path) -> None:
    class Doubled(Shards):
        def gather(self, part: Tensor, place: Tensor) -> Tensor | None:
            return part.double()

    weights, optimizer = trained()
    with pytest.raises(BitgridError, match=r"weight/a\.weight is .*float64.*not .*float32 "):
        Checkpoints(tmp_path, Doubled(), weights).save(1, weights, optimizer, {})
    assert load_step(tmp_path) is None


@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from([torch.float32, torch.int64]))
def test_what_is_written_with_a_digest_comes_back(shape: list[int], dtype: torch.dtype) -> None:
    tensor = torch.arange(math.prod(shape)).view(shape).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.safetensors"
        write_checked(path, {"x": (tensor.dtype, tensor.shape)}, [tensor])
        assert is_whole(path)
        assert torch.equal(load_file(path)["x"], tensor)
