"""Methods of libraries: the same values as the library alone gives, bits as its tensors hold them.

Where a library is not installed its tests are skipped, and say so.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from harness.core.errors import BitgridError, FormatError, ModelError
from harness.core.execution import clean_state
from harness.data import Tokens
from harness.method import Apply, Method
from harness.models import Model, matrices, pretrained
from harness.models.rehearsal import rehearse
from methods.auto_round_lib import AutoRound
from methods.bnb_4bit import BitsAndBytes
from methods.compressed_tensors_int import CompressedTensors
from methods.hqq_lib import HQQ
from methods.llm_compressor import LLMCompressor
from methods.modelopt_int import ModelOpt
from methods.torchao_intx import TorchAO
from methods.torchao_qat import TorchAOQAT
from tests.support.architectures import build

SHORT: dict[str, Any] = {"iterations": 2, "batch_size": 4, "group_size": 32}


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    ids = torch.randint(3, 97, (6, 32), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def make(model: Model, dtype: torch.dtype) -> Model:
    return replace(model, network=copy.deepcopy(model.network).to(dtype))


def check_same(result: Model, theirs: dict[str, Tensor], origin: Model) -> None:
    """Bit for bit the library's weights; all else is what it was."""
    assert theirs.keys() == matrices(result.network).keys() == result.quantized.keys()
    before = dict(origin.network.named_parameters())
    for name, parameter in result.network.named_parameters():
        layer = name.removesuffix(".weight")
        expected = theirs.get(layer, before[name])
        assert torch.equal(parameter, expected), name
        assert layer not in theirs or not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 0), (4, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao_rounds_as_on_its_own(
    llama: Model, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype
) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerAxis, PerGroup, quantize_

    model = make(llama, dtype)
    result = TorchAO(bits, group_size, symmetric).apply(model, None, Path())
    whole = copy.deepcopy(model.network)
    groups = PerGroup(group_size) if group_size else PerAxis(0)
    mapping = MappingType.SYMMETRIC if symmetric else MappingType.ASYMMETRIC
    quantize_(whole.model, IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), groups, mapping))
    packed: dict[str, Any] = {n: whole.get_submodule(n).weight for n in matrices(model.network)}
    check_same(result, {name: each.dequantize() for name, each in packed.items()}, model)
    for name, each in packed.items():
        assert each.qdata.min() >= -(2 ** (bits - 1)) and each.qdata.max() < 2 ** (bits - 1)
        beside = 8 * (each.scale.nbytes + each.zero_point.nbytes)
        total = each.qdata.numel() * bits + beside
        assert result.quantized[name].bits_per_weight == pytest.approx(total / each.numel())


def test_torchao_trains_and_converts_as_on_its_own(llama: Model, tokens: Tokens) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed")
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup, quantize_
    from torchao.quantization.qat import QATConfig

    method = TorchAOQAT(bits=2, lr=1e-3, **SHORT)
    result = method.apply(llama, tokens, Path())
    whole: Any = copy.deepcopy(llama.network)
    config = IntxWeightOnlyConfig(torch.int2, PerGroup(32))
    quantize_(whole.model, QATConfig(config, step="prepare"))
    weights = [m.weight.requires_grad_() for m in whole.model.modules() if isinstance(m, nn.Linear)]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.0)
    for picked in ([0, 1, 2, 3], [4, 5, 0, 1]):
        optimizer.zero_grad()
        whole(input_ids=tokens.ids[picked], labels=tokens.ids[picked]).loss.backward()
        optimizer.step()
    quantize_(whole.model, QATConfig(config, step="convert"))
    theirs = {name: whole.get_submodule(name).weight for name in matrices(llama.network)}
    check_same(result, {name: each.dequantize() for name, each in theirs.items()}, llama)
    untrained = TorchAO(2, 32).apply(llama, None, Path())
    name = next(iter(theirs))
    assert not torch.equal(
        matrices(untrained.network)[name].weight, matrices(result.network)[name].weight
    )


@pytest.mark.parametrize("levels", ["nf4", "fp4"])
@pytest.mark.parametrize("double_quant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bitsandbytes_rounds_as_its_layer(
    llama: Model, levels: Any, double_quant: bool, dtype: torch.dtype
) -> None:
    library = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    model = make(llama, dtype)
    method = BitsAndBytes(levels, double_quant=double_quant)
    result = method.apply(model, None, Path())
    theirs = {}
    for name, matrix in matrices(model.network).items():
        packed = library.nn.Params4bit(
            matrix.weight.clone(), False, compress_statistics=double_quant, quant_type=levels
        ).to("cpu")
        theirs[name] = library.functional.dequantize_4bit(packed.data, packed.quant_state)
        held = packed.quant_state.as_dict(packed=True)
        held = {n: each for n, each in held.items() if "map" not in n and "state" not in n}
        stored = packed.nbytes + sum(each.nbytes for each in held.values())
        stored += 4 if double_quant else 0  # the offset lies in its JSON
        bits = result.quantized[name].bits_per_weight
        assert bits == pytest.approx(8 * stored / matrix.weight.numel())
    check_same(result, theirs, model)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hqq_rounds_as_its_layer(llama: Model, bits: Any, dtype: torch.dtype) -> None:
    library = pytest.importorskip("hqq.core.quantize", reason="hqq is not installed")
    model = make(llama, dtype)
    result = HQQ(bits, 32).apply(model, None, Path())
    theirs = {}
    for name, matrix in matrices(model.network).items():
        linear = nn.Linear(matrix.in_features, len(matrix.weight), bias=False)
        linear.weight.data = matrix.weight.detach().clone()
        config = library.BaseQuantizeConfig(nbits=bits, group_size=32)
        layer = library.HQQLinear(linear, config, compute_dtype=torch.float16, device="cpu")
        theirs[name] = layer.dequantize().to(dtype)
        held = {n: each for n, each in layer.state_dict().items() if n in ("W_q", "scale", "zero")}
        assert len(held) == 3 and held["scale"].dtype == held["zero"].dtype == torch.float16
        total = 8 * sum(each.nbytes for each in held.values())
        assert result.quantized[name].bits_per_weight == total / matrix.weight.numel()
    check_same(result, theirs, model)


@pytest.mark.parametrize("scales", ["max", "mse"])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (3, 0), (4, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_modelopt_rounds_as_in_a_whole_model(
    llama: Model, bits: int, group_size: int, scales: Any, dtype: torch.dtype
) -> None:
    library = pytest.importorskip(
        "modelopt.torch.quantization", reason="nvidia-modelopt is not installed"
    )
    model = make(llama, dtype)
    method = ModelOpt(bits, group_size, scales)
    result = method.apply(model, None, Path())
    whole = library.quantize(
        copy.deepcopy(model.network),
        method.make_config(),
        lambda network: network(torch.arange(9)[None]),
    )
    theirs = {}
    for name in matrices(model.network):
        layer = whole.get_submodule(name)
        with torch.no_grad():
            theirs[name] = layer.weight_quantizer(layer.weight)
        amax = layer.weight_quantizer.amax
        rows, inputs = layer.weight.shape
        assert amax.numel() == rows * (inputs // group_size if group_size else 1)
        expected = bits + 8 * amax.nbytes / layer.weight.numel()
        assert result.quantized[name].bits_per_weight == expected
        groups = theirs[name].reshape(-1, group_size or inputs)
        assert max(len(group.unique()) for group in groups) <= 2**bits
    check_same(result, theirs, model)


def _count_packed(module: Any, arguments: Any) -> float:
    """Bits a weight of what compressed-tensors writes of a layer, without shapes."""
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=arguments)
    names = "weight", "weight_scale", "weight_zero_point"
    state = {n: getattr(module, n).detach() for n in names if hasattr(module, n)}
    packed = PackedQuantizationCompressor.compress(state, scheme)
    total = sum(each.nbytes for name, each in packed.items() if "shape" not in name)
    return 8 * total / module.weight.numel()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(2, 32), (4, 64), (8, 0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compressed_tensors_rounds_as_in_a_whole_model(
    llama: Model, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype
) -> None:
    """As its modules run, with the scales of its own observer's min and max."""
    library = pytest.importorskip(
        "compressed_tensors.quantization", reason="compressed-tensors is not installed"
    )
    model = make(llama, dtype)
    method = CompressedTensors(bits, group_size, symmetric)
    result = method.apply(model, None, Path())
    whole, arguments = copy.deepcopy(model.network), method.make_arguments()
    scheme = library.QuantizationScheme(targets=["Linear"], weights=arguments)
    config = library.QuantizationConfig(config_groups={"all": scheme}, ignore=["lm_head"])
    library.apply_quantization_config(whole, config)
    theirs = {}
    for name in matrices(model.network):
        module: Any = whole.get_submodule(name)
        groups = module.weight.unflatten(-1, (-1, group_size or module.in_features))
        found = library.utils.calculate_qparams(groups.amin(-1), groups.amax(-1), arguments)
        module.weight_scale.data.copy_(found[0])
        if not symmetric:
            module.weight_zero_point.data.copy_(found[1])
        with torch.no_grad():
            theirs[name] = module(torch.eye(module.in_features, dtype=dtype)).T
        expected = _count_packed(module, arguments)
        assert result.quantized[name].bits_per_weight == pytest.approx(expected)
    check_same(result, theirs, model)


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (4, True)])
def test_llm_compressor_rounds_as_on_its_own(
    llama: Model, tokens: Tokens, bits: int, symmetric: bool, tmp_path: Path
) -> None:
    """A model that it loads itself, on rows that it collates itself."""
    pytest.importorskip("llmcompressor", reason="llmcompressor is not installed")
    from compressed_tensors.quantization import QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    method = LLMCompressor(bits, 32, symmetric)
    (tmp_path / "work").mkdir()
    result = method.apply(llama, tokens, tmp_path / "work")
    llama.network.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    scheme = QuantizationScheme(targets=["Linear"], weights=method.make_arguments())
    rows = {"input_ids": tokens.ids.tolist(), "attention_mask": tokens.mask.long().tolist()}
    whole = oneshot(
        model=str(tmp_path / "model"),
        dataset=Dataset.from_dict(rows),
        recipe=GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"]),
        shuffle_calibration_samples=False,
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.ids.shape[1],
        precision="float32",
    )
    theirs = {name: whole.get_submodule(name).weight.detach() for name in result.quantized}
    check_same(result, theirs, llama)
    arguments, nearest = method.make_arguments(), CompressedTensors(bits, 32, symmetric)
    for name, rounded in matrices(nearest.apply(llama, None, Path()).network).items():
        bits_here = result.quantized[name].bits_per_weight
        assert bits_here == pytest.approx(_count_packed(whole.get_submodule(name), arguments))
        groups = theirs[name].unflatten(-1, (-1, 32)).flatten(0, 1)
        assert max(len(group.unique()) for group in groups) <= 2**bits
        assert not torch.equal(rounded.weight, theirs[name])


@pytest.mark.parametrize(("bits", "symmetric"), [(2, False), (4, True)])
def test_auto_round_tunes_as_on_its_own(
    llama: Model, tokens: Tokens, bits: int, symmetric: bool, tmp_path: Path
) -> None:
    library = pytest.importorskip("auto_round", reason="auto-round is not installed")
    method = AutoRound(bits=bits, symmetric=symmetric, **SHORT)
    with clean_state(7):
        result = method.apply(llama, tokens, tmp_path)
    whole = copy.deepcopy(llama.network)
    scheme = library.schemes.QuantizationScheme(bits=bits, group_size=32, sym=symmetric)
    data = [{"input_ids": row[None]} for row in tokens.ids]
    run = library.AutoRound(
        whole, llama.tokenizer, scheme=scheme, iters=2, dataset=data, nsamples=6, seqlen=32,
        batch_size=4, seed=7, device_map="cpu", amp=False, enable_torch_compile=False,
    )  # fmt: skip
    run.quantize()
    theirs = {name: each.weight.detach().clone() for name, each in matrices(whole).items()}
    check_same(result, theirs, llama)
    run.save_quantized(str(tmp_path / "packed"), format="auto_round")
    files = [load_file(path) for path in (tmp_path / "packed").rglob("*.safetensors")]
    stored = {name: each for file in files for name, each in file.items()}
    for name, weight in theirs.items():
        parts = [stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")]
        total = 8 * sum(each.nbytes for each in parts)
        assert result.quantized[name].bits_per_weight == total / weight.numel()


@pytest.mark.parametrize(
    ("method", "shape", "message"),
    [
        (
            TorchAO(group_size=48),
            (64, 64),
            "do not divide its 64 inputs; group sizes .* 16, 32, 64",
        ),
        (BitsAndBytes(), (64, 96), "groups of 64 do not divide its 96 inputs; .* do: 32$"),
        (BitsAndBytes(), (64, 80), "group sizes that do: none"),
        (HQQ(), (64, 96), "groups of 64 do not divide its 96 inputs"),
        (ModelOpt(), (64, 96), "groups of 128 do not divide its 96 inputs"),
        (CompressedTensors(), (64, 96), "groups of 128 do not divide its 96 inputs"),
        (LLMCompressor(), (64, 96), "groups of 128 do not divide its 96 inputs"),
        (HQQ(bits=2), (3, 64), "3 groups; hqq packs 4 a byte; 8 bits fit"),
        (AutoRound(group_size=0), (100, 64), "100 x 64; only layers .* multiples of 32"),
    ],
)
def test_the_plan_refuses_shapes(method: Method, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(FormatError, match=f"layer down: .*{message}|layer down is .*{message}"):
        method.check({"down": shape})
    method.check({"down": (128, 768)})


def test_a_layer_that_a_library_left_as_it_is_is_refused(llama: Model) -> None:
    """Its weights would pass for rounded ones."""
    theirs, names = copy.deepcopy(llama.network), list(matrices(llama.network))
    method, result = AutoRound(bits=3, group_size=32), llama.fork()
    for name in names:
        layer: Any = theirs.get_submodule(name)
        layer.weight.data, layer.scale = layer.weight.data.round(), torch.ones(1)
    for matrix, values, _ in method.match(result, theirs, "scale"):
        method.give(result, matrix, values, "auto-round", 0.5)
    rounded = {name: llama.network.get_submodule(name).weight.round() for name in names}
    check_same(result, rounded, llama)
    assert {each.bits_per_weight for each in result.quantized.values()} == {3.5}
    del theirs.get_submodule(names[1]).scale
    with pytest.raises(ModelError, match=rf"layer {names[1]}: auto-round leaves it as it is"):
        list(method.match(llama.fork(), theirs, "scale"))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (TorchAO, {"bits": 9}),
        (TorchAO, {"bits": 1}),
        (TorchAOQAT, {"symmetric": False}),
        (BitsAndBytes, {"group_size": 48}),
        (BitsAndBytes, {"levels": "nf3"}),
        (HQQ, {"bits": 5}),
        (HQQ, {"group_size": 12}),
        (CompressedTensors, {"bits": 1}),
        (AutoRound, {"bits": 1}),
    ],
)
def test_the_plan_refuses_what_a_library_has_not(
    kind: type[Method], settings: dict[str, Any]
) -> None:
    with pytest.raises(BitgridError):
        kind(**settings)


def test_the_plan_refuses_layers_of_classes_that_a_method_does_not_take(tmp_path: Path) -> None:
    base = pretrained(str(build("gpt2", tmp_path / "gpt2")))
    rehearse(Apply(AutoRound(), base))
    with pytest.raises(ModelError, match=r"layer transformer.h.0.attn.c_attn is of a Conv1D, and"):
        rehearse(Apply(TorchAOQAT(), base))
    base = pretrained(str(build("mixtral", tmp_path / "mixtral")))
    with pytest.raises(ModelError, match="only layers of Linear and Conv1D; rtn quantises all"):
        rehearse(Apply(AutoRound(), base))
