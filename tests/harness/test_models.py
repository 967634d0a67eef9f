"""Models: loading by name, forks that share, what counts as a linear layer of a block."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from harness.errors import ModelError
from harness.models import (
    Model,
    Quantized,
    blocks,
    layer_shapes,
    linears,
    pretrained,
    read_model,
    replace_weight,
)
from harness.stage import execute


@pytest.fixture
def model(tiny_folder: Path) -> Model:
    return read_model(str(tiny_folder), "float32")


def test_a_fork_shares_every_tensor_until_one_is_replaced(model: Model) -> None:
    fork = model.fork()
    assert fork.network is not model.network
    for one, other in zip(model.network.parameters(), fork.network.parameters(), strict=True):
        assert one is other
    name, linear = next(iter(linears(fork.network).items()))
    before = linears(model.network)[name].weight.clone()
    replace_weight(linear, torch.zeros_like(linear.weight))
    assert torch.equal(linears(model.network)[name].weight, before)
    assert not linears(fork.network)[name].weight.any()
    fork.quantized["x"] = Quantized("toy", 2, 0, 2.0)
    assert model.quantized == {}


def test_linears_are_those_of_the_blocks(model: Model) -> None:
    found = linears(model.network)
    assert len(blocks(model.network)) == 2
    assert len(found) == 2 * 7
    assert not any("embed" in name or "head" in name for name in found)


def test_shapes_come_from_the_configuration_alone(tiny_folder: Path, model: Model) -> None:
    shapes = layer_shapes(str(tiny_folder))
    assert shapes == {n: tuple(m.weight.shape) for n, m in linears(model.network).items()}


def test_bits_per_weight_is_the_mean_over_weights(model: Model) -> None:
    assert model.bits_per_weight() == 32.0
    layers = linears(model.network)
    model.quantized = {name: Quantized("toy", 2, 0, 2.5) for name in layers}
    assert model.bits_per_weight() == pytest.approx(2.5)
    del model.quantized[next(iter(layers))]
    share = next(iter(layers.values())).weight.numel() / sum(
        m.weight.numel() for m in layers.values()
    )
    assert model.bits_per_weight() == pytest.approx(2.5 * (1 - share) + 32 * share)


def test_the_key_follows_the_content_not_the_place(tiny_folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tiny_folder, moved)
    assert pretrained(str(moved)).digest == pretrained(str(tiny_folder)).digest
    changed = tmp_path / "changed"
    shutil.copytree(tiny_folder, changed)
    config = changed / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert pretrained(str(changed)).digest != pretrained(str(tiny_folder)).digest


def test_dtype_is_part_of_the_key_and_of_the_model(tiny_folder: Path, tmp_path: Path) -> None:
    half, full = pretrained(str(tiny_folder), "bfloat16"), pretrained(str(tiny_folder), "float32")
    assert half.key != full.key
    assert execute(half, {}, tmp_path).network.dtype == torch.bfloat16
    assert not any(p.requires_grad for p in execute(full, {}, tmp_path).network.parameters())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("./nowhere", "there is no folder"),
        (str(Path(__file__).parent), "has no config.json"),
        ("no/such-model", "not a local folder, and not in the hub's cache"),
    ],
)
def test_a_model_that_is_not_there(source: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        pretrained(source)


def test_an_unknown_dtype(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="choices: auto, float32"):
        pretrained(str(tiny_folder), "float8")
