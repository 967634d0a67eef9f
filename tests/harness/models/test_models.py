"""Models: loading by name, forks that share, what counts as a linear layer of a block."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.core.errors import ModelError
from harness.core.execution import execute
from harness.models import (
    Model,
    Pretrained,
    Quantized,
    blocks,
    find_ends,
    matrices,
    pretrained,
    read_layer_shapes,
    read_model,
    sources,
    weights_gib,
)
from harness.models.devices import computing_on, device
from harness.models.dry_run import dry_run, weightless
from harness.models.reading import explained


@pytest.fixture
def model(tiny_folder: Path) -> Model:
    return read_model(str(tiny_folder), "float32")


def test_a_fork_shares_every_tensor_until_one_is_replaced(model: Model) -> None:
    fork = model.fork()
    assert fork.network is not model.network
    for one, other in zip(model.network.parameters(), fork.network.parameters(), strict=True):
        assert one is other
    name, linear = next(iter(matrices(fork.network).items()))
    before = matrices(model.network)[name].weight.clone()
    linear.replace(torch.zeros_like(linear.weight))
    assert torch.equal(matrices(model.network)[name].weight, before)
    assert not matrices(fork.network)[name].weight.any()
    fork.quantized["x"] = Quantized("toy", 2, 0, 2.0)
    assert model.quantized == {}


def test_linears_are_those_of_the_blocks(model: Model) -> None:
    found = matrices(model.network)
    assert len(blocks(model.network)) == 2
    assert len(found) == 2 * 7
    assert not any("embed" in name or "head" in name for name in found)


def test_shapes_come_from_the_configuration_alone(tiny_folder: Path, model: Model) -> None:
    shapes = read_layer_shapes(str(tiny_folder))
    assert shapes == {n: tuple(m.weight.shape) for n, m in matrices(model.network).items()}


def test_bits_per_weight_is_the_mean_over_weights(model: Model) -> None:
    assert model.bits_per_weight() == 32.0
    layers = matrices(model.network)
    model.quantized = {name: Quantized("toy", 2, 0, 2.5) for name in layers}
    assert model.bits_per_weight() == pytest.approx(2.5)
    del model.quantized[next(iter(layers))]
    share = next(iter(layers.values())).weight.numel() / sum(
        m.weight.numel() for m in layers.values()
    )
    assert model.bits_per_weight() == pytest.approx(2.5 * (1 - share) + 32 * share)


def test_bytes_are_of_all_parameters_each_as_it_is_stored(model: Model) -> None:
    """Against sums over the names of the parameters; tied ones are one of them."""
    sizes = {name: parameter.numel() for name, parameter in model.network.named_parameters()}
    assert model.count_bytes() == 4 * sum(sizes.values())
    layers = [f"{name}.weight" for name in matrices(model.network)]
    model.quantized = {name: Quantized("toy", 2, 0, 2.5) for name in matrices(model.network)}
    inside = sum(sizes[name] for name in layers)
    rest = sum(sizes.values()) - inside
    assert model.count_bytes() == math.ceil(2.5 * inside / 8 + 4 * rest)
    assert model.count_bytes() * 8 == pytest.approx(
        model.bits_per_weight() * inside + 32 * rest, abs=8
    )
    (embedding, *_) = find_ends(model.network)
    model.quantized[embedding] = Quantized("toy", 8, 0, 8.5)
    ended = sizes[f"{embedding}.weight"]
    assert model.count_bytes() == math.ceil((2.5 * inside + 8.5 * ended) / 8 + 4 * (rest - ended))


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
        ("./nowhere", "no folder or .gguf file lies at"),
        (str(Path(__file__).parent), "has no config.json"),
        ("no/such-model", "not a local folder, and not in the hub's cache .* prefetch"),
        ("no-such-model", "not a local folder, and not in the hub's cache .* prefetch"),
        ("no/such/model", "the folder does not exist, and a hub id is org/name"),
        ("testbd", "did you mean 'testbed'"),
        ("smollm2-135", "did you mean 'smollm2-135m'"),
        ("testbed-samll", "did you mean 'testbed-small'"),
        ("testbed@main", "'testbed' is built in and has no revisions"),
        ("smollm2-135m@x", "'smollm2-135m' is built in and has no revisions"),
        ("https://huggingface.co/some/tiny", "is an address; did you mean 'some/tiny'"),
        ("hf.co/some/tiny/tree/main", "is an address; did you mean 'some/tiny'"),
        ("s3://some/tiny", "is an address; name a hub id or a local folder"),
        ("", "model '' is not a name; choices: smollm2-135m, testbed"),
    ],
)
def test_a_model_that_is_not_there(source: str, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        pretrained(source)


def test_an_unknown_dtype(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="choices: auto, float32"):
        pretrained(str(tiny_folder), "float8")


@pytest.fixture
def copied(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "copied"))


_WEIGHT = "model.layers.0.self_attn.q_proj.weight"


def _without_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[_WEIGHT]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _with_a_weight_of_another_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[_WEIGHT] = torch.zeros(8, 8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def _garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"garbage " * 99)


def _without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _without_a_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def _with_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')


def _with_a_broken_configuration(folder: Path) -> None:
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 64', '"hidden_size": "many"'))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_without_a_weight, f"weight {_WEIGHT} is missing from its files"),
        (_with_a_weight_of_another_shape, rf"weight {_WEIGHT} has shape \(8, 8\), .* \(64, 64\)"),
        (_cut_off, r"model\.safetensors is damaged or cut off"),
        (_garbage, r"model\.safetensors is damaged or cut off"),
        (_without_weights, r"it cannot be loaded: .*no file named model\.safetensors"),
        (_without_a_tokenizer, "its tokenizer cannot be read: .*tokenizer"),
        (_with_a_broken_tokenizer, "its tokenizer cannot be read: "),
        (_with_a_broken_configuration, "hidden_size"),
    ],
)
def test_a_model_that_is_not_whole(
    copied: Path, damage: Callable[[Path], None], words: str
) -> None:
    """When it is named, and when it is read: by then it may be another."""
    damage(copied)
    for reading in (lambda: pretrained(str(copied)), lambda: read_model(str(copied), "float32")):
        with pytest.raises(ModelError, match=words) as raised:
            reading()
        assert str(copied) in str(raised.value)
        assert "\n" not in str(raised.value)


def test_a_damaged_download_is_named(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cut_off(copied)
    snapshots = tmp_path / "models--some--tiny" / "snapshots"
    snapshots.mkdir(parents=True)
    kept = copied.rename(snapshots / "0123") / "model.safetensors"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with (
        pytest.raises(ModelError, match=f"{kept} is damaged or cut off"),
        explained("some/tiny"),
    ):
        load_file(kept)


def test_a_model_is_sized_at_its_own_revision(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Offline there may be no other: `prefetch` fetches the commit that the grid names."""
    asked = []
    tiny = sources.config(str(tiny_folder), None, False)

    def config(source: str, revision: str | None, trust: bool) -> Any:
        asked.append((source, revision))
        return tiny

    monkeypatch.setattr(sources, "config", config)
    base = Pretrained("some/tiny", "c" * 40, dtype="float32", revision="v1")
    with dry_run():
        sized = sum(p.numel() for p in weightless(base).parameters())
    assert weights_gib(base) * 2**30 == 4 * sized
    assert asked == [("some/tiny", "c" * 40)] * 2


def test_a_lack_of_memory_is_not_called_a_broken_model(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a hint of its own."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(torch.OutOfMemoryError):
        read_model(str(tiny_folder), "float32")


@pytest.fixture
def with_code(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose model comes with code; what runs it by asking would be told yes."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "with_code"))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["architectures"] = ["Own"]
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    return folder


def test_code_of_a_model_runs_only_where_the_grid_says_so(with_code: Path, tmp_path: Path) -> None:
    for reading in (pretrained, read_layer_shapes, lambda name: read_model(name, "float32")):
        with pytest.raises(ModelError, match="'trust_remote_code: true' in the grid"):
            reading(str(with_code))
    assert not (tmp_path / "ran").exists()
    model = execute(pretrained(str(with_code), trust_remote_code=True), {}, tmp_path)
    assert (tmp_path / "ran").exists()
    kept = tmp_path / "kept"
    kept.mkdir()
    assert Model.load(kept, model.save(kept)).network.state_dict().keys() == (
        model.network.state_dict().keys()
    )


def test_attention_that_is_not_installed(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A login node may plan what it could not compute.
    stage = pretrained(str(tiny_folder), attention="flash_attention_2")
    monkeypatch.setattr("harness.models.stage.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="'flash_attention_2' needs the package flash-attn"):
        stage.preflight()
    monkeypatch.setattr("harness.models.stage.find_spec", lambda name: object())
    monkeypatch.setenv("BITGRID_DEVICE", "cpu")
    with pytest.raises(ModelError, match="'flash_attention_2' needs a GPU"):
        stage.preflight()
    with pytest.raises(ModelError, match="did you mean 'eager'"):
        pretrained(str(tiny_folder), attention="eagr")


def test_a_device_is_chosen_for_a_while_without_touching_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BITGRID_DEVICE", "nowhere")
    with computing_on("cpu"):
        assert device().type == "cpu" and os.environ["BITGRID_DEVICE"] == "nowhere"
    with pytest.raises(ModelError, match="device 'nowhere' is not there"):
        device()
