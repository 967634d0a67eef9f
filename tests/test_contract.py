"""What every registered method must do, on a tiny random Llama. A new method is run by being there.

Settings that a method lacks are left out, as in a grid, so that one set of them serves all.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.settings import configure, list_settings
from harness.core.execution import execute
from harness.core.stage import Stage, closure
from harness.method import METHODS
from harness.models import Model, matrices, pretrained, read_layer_shapes

QUICK = {
    "format.group_size": 32,
    "group_size": 32,
    "init.text": "testbed",
    "init.sequences": 8,
    "init.length": 64,
    "rounding.text": "testbed",
    "rounding.sequences": 8,
    "rounding.length": 64,
    "data.text": "testbed",
    "data.sequences": 16,
    "data.length": 48,
    "train.steps": 4,
    "train.batch_size": 4,
    "train.micro_batch": 4,
    "train.lr": 1e-3,
    "train.dtype": "float32",
}
NAMES = [name for name in METHODS.load() if not name.startswith("test-")]


class Bench:
    """Runs graphs on the tiny model, each stage once for the whole suite."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.base = pretrained(str(folder), "float32")
        self.shapes = read_layer_shapes(str(folder))
        self.work, self.values = work, dict[str, Any]()
        self.prompt = torch.randint(3, 250, (4, 40), generator=torch.Generator().manual_seed(1))

    def stage(self, name: str, bits: int | None = None, seed: int = 0) -> Stage[Model]:
        method = METHODS.load()[name].method
        for path, given in {**QUICK, **({"format.bits": bits} if bits else {})}.items():
            if path in dict(list_settings(method)):
                method = configure(method, {path: given})
        method.check(self.shapes)
        return method.build(self.base, seed)

    def value(self, root: Stage[Any]) -> Any:
        for stage in closure([root]):
            if stage.key not in self.values:
                folder = self.work / stage.key
                folder.mkdir()
                self.values[stage.key] = execute(stage, self.values, folder)
        return self.values[root.key]

    def fresh(self, root: Stage[Any]) -> Any:
        """The same value, with nothing but the base model taken from before."""
        again = Bench.__new__(Bench)
        again.work, again.values = self.work / "again", {self.base.key: self.value(self.base)}
        again.work.mkdir(exist_ok=True)
        for stage in closure([root]):
            if stage.key not in again.values:
                folder = again.work / f"{stage.key}-{len(list(again.work.iterdir()))}"
                folder.mkdir()
                again.values[stage.key] = execute(stage, again.values, folder)
        return again.values[root.key]

    def logits(self, model: Model) -> torch.Tensor:
        with torch.inference_mode():
            return model.network(self.prompt).logits.float()


@pytest.fixture(scope="module")
def bench(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tiny_folder, tmp_path_factory.mktemp("work"))


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def _bits(name: str) -> list[int | None]:
    return [2, 4] if "format.bits" in dict(list_settings(METHODS.load()[name].method)) else [None]


def test_what_is_evaluated_is_what_the_format_can_hold(bench: Bench, name: str) -> None:
    """At most 2^bits values a group in every linear layer of the blocks (rule 8)."""
    for bits in _bits(name):
        model = bench.value(bench.stage(name, bits))
        assert not model.latent
        layers = matrices(model.network)
        assert set(model.quantized) in (set(), set(layers)), "all layers or none"
        for layer, held in model.quantized.items():
            assert held.bits == (bits or held.bits)
            assert held.bits_per_weight >= held.bits
            weight = layers[layer].weight
            assert torch.isfinite(weight).all()
            size = held.group_size or weight.shape[1]
            for group in weight.split(size, dim=1):
                distinct = max(len(row.unique()) for row in group)
                assert distinct <= 2**held.bits, f"{layer}: {distinct} values in a group"


def test_only_the_linear_layers_of_the_blocks_are_quantised(bench: Bench, name: str) -> None:
    """Embeddings and head stay as they were, and the base model, which others share, altogether."""
    before = {
        key: tensor.clone() for key, tensor in bench.value(bench.base).network.state_dict().items()
    }
    model = bench.value(bench.stage(name, _bits(name)[0]))
    reference = bench.value(bench.base).network
    for part in ("get_input_embeddings", "get_output_embeddings"):
        ours, theirs = getattr(model.network, part)(), getattr(reference, part)()
        assert torch.equal(ours.weight, theirs.weight), part
    after = bench.value(bench.base).network.state_dict()
    assert all(torch.equal(after[key], tensor) for key, tensor in before.items())


def test_saved_and_loaded_it_gives_the_same_logits(bench: Bench, name: str, tmp_path: Path) -> None:
    model = bench.value(bench.stage(name, _bits(name)[0]))
    again = Model.load(tmp_path, model.save(tmp_path))
    assert torch.equal(bench.logits(model), bench.logits(again))
    assert again.quantized == model.quantized
    assert again.bits_per_weight() == model.bits_per_weight()


def test_the_seed_decides(bench: Bench, name: str) -> None:
    """The same seed gives the same weights; another seed others, where the method knows one."""
    stage, other = (bench.stage(name, _bits(name)[0], seed) for seed in (0, 1))
    found = bench.logits(bench.value(stage))
    assert torch.equal(found, bench.logits(bench.fresh(stage)))
    if other.key != stage.key:
        assert not torch.equal(found, bench.logits(bench.value(other)))


def test_the_error_falls_as_bits_grow(bench: Bench, name: str) -> None:
    if _bits(name) == [None]:
        pytest.skip(f"{name} has no bits to vary")
    reference = bench.logits(bench.value(bench.base))
    models = [bench.value(bench.stage(name, bits)) for bits in (2, 3, 4)]
    errors = [(bench.logits(model) - reference).pow(2).mean().item() for model in models]
    assert errors == sorted(errors, reverse=True)
    assert errors[2] < errors[0] / 2


def test_it_says_what_it_is(name: str) -> None:
    entry = METHODS.load()[name]
    assert entry.title
    assert len(entry.about) > 10
    assert Path(entry.source).is_file()
