"""AdamW in 8 bits: asked for where it is missing; its moments through a checkpoint, bit for bit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from harness.core.errors import BitgridError
from harness.core.stage import listening
from harness.models import Model
from methods.training.optimizer import MOMENTS, make_adamw, require, restore, to_plain
from methods.training.settings import Training
from tests.methods.conftest import make_llama
from tests.methods.training.test_train import make_tokens, rows_of, same, train


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require("adamw")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(BitgridError, match="needs torchao: pip install torchao"):
        require("adamw-8bit")


@pytest.fixture
def eight_bits() -> None:
    pytest.importorskip("torchao.optim", reason="8-bit AdamW needs torchao, no dependency")
    if shutil.which("g++") is None:
        pytest.skip("8-bit AdamW compiles its step and finds no C++ compiler")


@pytest.mark.usefixtures("eight_bits")
def test_moments_come_back_bit_for_bit() -> None:
    """Blocks of 256 within rows, over the ends of rows, and a weight too small for 8 bits."""
    shapes = [(16, 512), (128, 96), (8, 8)]
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = make_adamw("adamw-8bit", weights, 1e-3, (0.9, 0.999), 0.0)
    for _ in range(3):
        for weight in weights:
            weight.grad = torch.randn_like(weight) * torch.rand(len(weight), 1) ** 4
        optimizer.step()
    other = make_adamw("adamw-8bit", weights, 1e-3, (0.9, 0.999), 0.0)
    for weight, in_rows in zip(weights, (True, False, None), strict=True):
        for name in MOMENTS:
            values, scale = to_plain(optimizer.state[weight][name])
            assert (None if scale is None else scale.ndim == 2) == in_rows
            restore(other, weight, name, values, scale)
            again, rescaled = to_plain(other.state[weight][name])
            assert torch.equal(again, values)
            assert (scale is None) == (rescaled is None)
            assert scale is None or torch.equal(scale, rescaled)  # type: ignore[arg-type]


@pytest.mark.usefixtures("eight_bits")
def test_an_interrupted_run_in_8_bits_ends_in_the_same_bits(llama: Model, tmp_path: Path) -> None:
    def training(optimizer: str) -> Training:
        return Training(
            steps=10,
            batch_size=4,
            lr=1e-3,
            dtype="float32",
            checkpoint_every=4,
            optimizer=optimizer,  # type: ignore[arg-type]
        )

    tokens, teacher, eight = make_tokens(), make_llama(1), training("adamw-8bit")
    whole = train(tmp_path / "whole", llama, teacher, tokens, eight)

    def stop(done: int, total: int, metrics: object) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(stop):
        train(tmp_path / "cut", llama, teacher, tokens, eight)
    assert same(whole, train(tmp_path / "cut", llama, teacher, tokens, eight))
    train(tmp_path / "full", llama, teacher, tokens, training("adamw"))
    losses = [[row["loss"] for row in rows_of(tmp_path / run)] for run in ("whole", "full")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
