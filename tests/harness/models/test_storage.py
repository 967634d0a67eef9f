"""What published weights are: types, bits, what a table calls them; codes are refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from harness.core.errors import GridError, ModelError
from harness.core.execution import execute
from harness.grid.expand import load
from harness.models import another, pretrained, read_layer_shapes, read_model, smollm2
from harness.models.storage import Storage, read_gguf, read_safetensors
from tests.harness.models.test_gguf import write_gguf

TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _convert(folder: Path, into: Path, dtype: torch.dtype) -> Path:
    model = read_model(str(folder), dtype)
    model.save(into)
    return into


@pytest.fixture(scope="module")
def published(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The tiny model as it may have been published, by the type of its weights."""
    place = tmp_path_factory.mktemp("published")
    models = {
        name: str(_convert(tiny_folder, place / name, dtype)) for name, dtype in TORCH.items()
    }
    original = read_model(str(tiny_folder), torch.float32)
    for kind in (gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0):
        path = place / f"{kind.name}.gguf"
        write_gguf(original, path, kind)
        models[kind.name] = str(path)
    return models


@pytest.mark.parametrize(
    ("types", "dtype", "title", "bits", "told"),
    [
        ("BF16", "auto", "BF16", 16.0, None),
        ("BF16", "float32", "BF16", 16.0, None),  # what a wider type adds is nothing
        ("BF16", "float16", "FP16", 16.0, "rounded to float16"),  # of a smaller range
        ("F16", "auto", "FP16", 16.0, None),
        ("F16", "float32", "FP16", 16.0, None),
        ("F16", "bfloat16", "BF16", 16.0, "published in F16: it is rounded to bfloat16"),
        ("F32", "auto", "FP32", 32.0, None),
        ("F32", "bfloat16", "BF16", 16.0, "published in F32: it is rounded to bfloat16"),
        ("Q4_1", "float32", "Q4_1 (as published)", 5.0, "published as Q4_1, in 5.00 bits a weight"),
        ("Q4_1", "bfloat16", "Q4_1 (as published)", 5.0, "rounded to bfloat16 when they are read"),
        ("Q8_0", "auto", "Q8_0 (as published)", 8.5, "published as Q8_0, in 8.50 bits a weight"),
    ],
)
def test_a_model_is_called_what_it_is(
    published: dict[str, str], types: str, dtype: str, title: str, bits: float, told: str | None
) -> None:
    base = pretrained(published[types], dtype)
    assert base.weights is not None
    assert (base.title, base.weights.bits_per_weight) == (title, bits)
    assert (base.caveat is None) == (told is None)
    assert told is None or told in str(base.caveat)


@pytest.mark.parametrize("types", ["F32", "F16", "BF16"])
def test_auto_is_what_the_files_have(published: dict[str, str], types: str, tmp_path: Path) -> None:
    base = pretrained(published[types])
    assert execute(base, {}, tmp_path).network.dtype is TORCH[types]
    assert base.storage == Storage((types,), float(TORCH[types].itemsize * 8))


def test_bits_are_those_of_the_blocks_matrices(tiny_folder: Path, tmp_path: Path) -> None:
    tensors = load_file(tiny_folder / "model.safetensors")
    shapes = read_layer_shapes(str(tiny_folder))
    tensors = {
        name: tensor.to(torch.bfloat16 if "mlp" in name else torch.float32)
        for name, tensor in tensors.items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    sizes = {name: rows * columns for name, (rows, columns) in shapes.items()}
    bits = sum(size * (16 if "mlp" in name else 32) for name, size in sizes.items())
    storage = read_safetensors(tmp_path)
    assert storage is not None and set(storage.types) == {"BF16", "F32"}
    assert storage.bits_per_weight == pytest.approx(bits / sum(sizes.values()))
    assert read_safetensors(tmp_path / "none") is None


def test_the_16_bit_row_says_it(published: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    content = {"model": published["Q4_1"], "method": "rtn", "compare": ["bf16"]}
    content |= {"defaults": {"format.group_size": 32}, "evaluate": ["testbed-ppl"]}
    path.write_text("# Four bits?\n" + yaml.safe_dump(content))
    cells = {cell.label: cell for cell in load(path).cells}
    assert cells.keys() == {"RTN", "Q4_1 (as published)"}
    reference = cells["Q4_1 (as published)"]
    assert reference.published_bits == 5.0 and cells["RTN"].published_bits is None
    for cell in cells.values():  # of every row: methods began with those weights
        assert "published as Q4_1" in cell.scores[0].caveat  # type: ignore[attr-defined]
    # Who names the row is believed.
    path.write_text(path.read_text().replace("- bf16", "- {name: bf16, label: Ours}"))
    assert {cell.label for cell in load(path).cells} == {"RTN", "Ours"}


def test_smollm2_is_what_its_file_says() -> None:
    spec = importlib.util.find_spec(smollm2.PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(smollm2.INSTALL)
    assert read_gguf(Path(spec.submodule_search_locations[0], smollm2.FILE)) == smollm2.STORAGE


def _say(**quantization: Any) -> Callable[[Path], None]:
    def say(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["quantization_config"] = quantization
        (folder / "config.json").write_text(json.dumps(config))

    return say


def _rename(folder: Path) -> None:
    """As GPTQ's programs leave it, whose configuration may say nothing."""
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name.replace("weight", "qweight")] = tensors.pop(name).to(torch.int32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _narrow(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_say(quant_method="bitsandbytes", load_in_4bit=True), r"\(bitsandbytes, 4 bits\)"),
        (_say(quant_method="bitsandbytes", load_in_8bit=True), r"\(bitsandbytes, 8 bits\)"),
        (_say(quant_method="gptq", bits=3, group_size=128), r"\(gptq, 3 bits\)"),
        (_say(quant_method="awq", bits=4, group_size=128), r"\(awq, 4 bits\)"),
        (_say(quant_method="compressed-tensors", format="pack-quantized"), r"\(compressed-tensors"),
        (_say(quant_method="fp8", weight_block_size=[128, 128]), r"\(fp8\)"),
        (_say(quant_method="mxfp4"), r"\(mxfp4\)"),
        (_say(quant_method="not-heard-of"), r"\(not-heard-of\)"),
        (lambda folder: (folder / "quantize_config.json").write_text("{}"), "a quantize_config.j"),
        (_rename, r"I32"),
        (_narrow, r"F8_E4M3"),
    ],
)
def test_codes_are_refused_when_the_grid_is_read(
    tiny_folder: Path, tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    folder = tmp_path / "codes"
    shutil.copytree(tiny_folder, folder)
    change(folder)
    refusal = f"model '{folder}' is quantised already .*{words}.*: methods start from weights"
    path = tmp_path / "grid.yaml"
    content: dict[str, Any] = {"model": str(folder), "method": "rtn", "evaluate": ["testbed-ppl"]}
    path.write_text("# Twice?\n" + yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(GridError, match=f"grid.yaml:2: {refusal}"):
        load(path)
    with pytest.raises(ModelError, match=refusal):
        another(pretrained(str(tiny_folder)), str(folder))


def test_masks_of_old_files_are_no_codes(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny_folder, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert pretrained(str(folder)).title == "FP32"
