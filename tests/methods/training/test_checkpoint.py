"""Checkpoints: the file that the library reads, whole or not at all, a tensor at a time."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.core.errors import TrainingError
from methods.training.checkpoint import Checkpoint
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
    Checkpoint(tmp_path / "c", Counting(), weights).save(3, weights, optimizer, {"tokens": 8})
    assert max(Counting.alive) <= 1  # the one before, which is being written
    found = load_file(tmp_path / "c")
    with safe_open(tmp_path / "c", framework="pt") as file:
        assert json.loads(file.metadata()["facts"]) == {"tokens": 8, "step": 3}
    assert len(found) == 4 * len(weights)
    for name, weight in weights.items():
        assert torch.equal(found[f"weight/{name}"], weight)
        for part, state in optimizer.state[weight].items():
            assert torch.equal(found[f"{part}/{name}"], state), (part, name)
    others, again = trained()
    assert Checkpoint(tmp_path / "c", Shards(), others).load(others, again) == {
        "tokens": 8,
        "step": 3,
    }


def test_one_that_is_not_finished_leaves_the_one_before(tmp_path: Path) -> None:
    weights, optimizer = trained()
    place = Checkpoint(tmp_path / "c", Shards(), weights)
    place.save(1, weights, optimizer, {})
    before = (tmp_path / "c").read_bytes()

    class Killed(Shards):
        def gather(self, part: Tensor, place: Tensor) -> Tensor | None:
            if part.shape == (4, 2):
                raise KeyboardInterrupt
            return part

    with pytest.raises(KeyboardInterrupt):
        Checkpoint(tmp_path / "c", Killed(), weights).save(2, weights, optimizer, {})
    assert (tmp_path / "c").read_bytes() == before
    place.save(2, weights, optimizer, {})  # over what was left half written
    assert (tmp_path / "c").read_bytes() != before


def test_a_tensor_that_does_not_fit_its_place_is_an_error(tmp_path: Path) -> None:
    class Doubled(Shards):
        def gather(self, part: Tensor, place: Tensor) -> Tensor | None:
            return part.double()

    weights, optimizer = trained()
    with pytest.raises(TrainingError, match=r"weight/a\.weight is .*float64.*not float32 \(5, 3\)"):
        Checkpoint(tmp_path / "c", Doubled(), weights).save(1, weights, optimizer, {})
    assert not (tmp_path / "c").exists()
