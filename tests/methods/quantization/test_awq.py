"""AWQ's scales: the function is kept, the search is the straightforward one, rounding hurts
less."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from harness.cli.main import main
from harness.core.errors import BitgridError, FormatError, ModelError
from harness.core.stage import Stage, closure, listening
from harness.data import Tokens
from harness.grid.expand import load
from harness.models import Model, matrices
from methods.quantization import awq, clip
from methods.quantization.awq import AWQ, Scaled, Scales, ScaleSearch
from methods.quantization.formats import (
    NF,
    FullPrecision,
    Grouped,
    IntAsym,
    IntSym,
    Span,
)
from methods.quantization.inits import Clipped, ClipSearch, Init
from methods.quantization.observing import Observed
from methods.quantization.rounding import quantize_model
from tests.support.stages import execute_alone

GRID = 20
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64}
INT3 = IntAsym(3, 16)


def _model(kind: str = "llama", **changes: Any) -> Model:
    """Random, with norms as trained ones are: uneven, and with biases where the class has them."""
    torch.manual_seed(0)
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.15}
    config = AutoConfig.for_model(kind, **(SIZES | HEADS | ends | changes))
    network = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, tensor in network.named_parameters():
        if "norm" in name and tensor.dim() == 1:
            tensor.copy_(torch.randn_like(tensor).exp())
        elif name.endswith("bias"):
            tensor.copy_(torch.randn_like(tensor))
    return Model(network, None)


def _tokens(sequences: int = 8, length: int = 16) -> Tokens:
    ids = torch.randint(40, (sequences, length), generator=torch.Generator().manual_seed(3))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def _logits(model: Model) -> Tensor:
    with torch.inference_mode():
        return model.network(_tokens().ids).logits.float()


@dataclass(frozen=True)
class _Base(Stage[Model]):
    kind: ClassVar[str] = "test-awq-base"

    def run(self, work: Path) -> Model:
        return _model()


def _graph(init: Init, format: Grouped = INT3) -> tuple[ScaleSearch, Scaled]:
    scaled = init.build(_Base(), format)
    assert isinstance(scaled, Scaled)
    assert isinstance(scaled.scales, ScaleSearch)
    return scaled.scales, scaled


def _run(model: Model, format: Grouped = INT3, tokens: int = 64) -> tuple[Scales, Model]:
    search, scaled = _graph(AWQ(text="testbed", tokens=tokens), format)
    values: dict[str, Any] = {_Base().key: model}
    assert isinstance(search.calibration, Stage)
    values[search.calibration.key] = _tokens()
    values[search.key] = execute_alone(search, values)
    return values[search.key], execute_alone(scaled, values)


# --- where scales are folded ----------------------------------------------------------------------

NORMED = {
    "input_layernorm": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "post_attention_layernorm": ["mlp.gate_proj", "mlp.up_proj"],
}
GATED = {"mlp.up_proj": ["mlp.down_proj"]}
VALUES = {"self_attn.v_proj": ["self_attn.o_proj"]}
FOUND: dict[str, tuple[str, dict[str, Any], dict[str, list[str]]]] = {
    "llama": ("llama", {}, NORMED | VALUES | GATED),
    "tied": ("llama", {"tie_word_embeddings": True}, NORMED | VALUES | GATED),
    "grouped queries": ("llama", {"num_key_value_heads": 2}, NORMED | GATED),
    "mistral": ("mistral", {}, NORMED | VALUES | GATED),
    "biases": ("qwen2", {}, NORMED | VALUES | GATED),
    "norms of queries and keys": ("qwen3", {"head_dim": 8}, NORMED | VALUES | GATED),
    "fused": (
        "phi3",
        {},
        {
            "input_layernorm": ["self_attn.qkv_proj"],
            "post_attention_layernorm": ["mlp.gate_up_proj"],
        },
    ),
    "two norms beside each other": (
        "gpt_neox",
        {},
        {
            "input_layernorm": ["attention.query_key_value"],
            "post_attention_layernorm": ["mlp.dense_h_to_4h"],
        },
    ),
    "one norm for all": (
        "phi",
        {},
        {
            "input_layernorm": [*NORMED["input_layernorm"], "mlp.fc1"],
            "self_attn.v_proj": ["self_attn.dense"],
        },
    ),
    "norms after, not before": ("olmo2", {}, VALUES | GATED),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_function_is_kept(case: str) -> None:
    kind, changes, expected = FOUND[case]
    model = _model(kind, **changes)
    prefix = next(iter(matrices(model.network))).partition(".0.")[0]
    found = awq.find_foldable(model)
    assert found == {
        f"{prefix}.{block}.{writer}": [f"{prefix}.{block}.{name}" for name in names]
        for block in (0, 1)
        for writer, names in expected.items()
    }
    scales, scaled = _run(model)
    assert scales.layers == found
    assert sum(alpha > 0 for alpha in scales.exponents.values()) > len(found) / 2
    torch.testing.assert_close(_logits(scaled), _logits(model), rtol=1e-4, atol=1e-4)
    assert not torch.equal(_logits(scaled), _logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_scaled_and_its_source_is_not(dtype: torch.dtype) -> None:
    model = _model(tie_word_embeddings=True)
    model.network.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    scales, scaled = _run(model)
    moved = {name for group in scales.layers.values() for name in group} | scales.layers.keys()
    assert scaled.latent
    assert not model.latent
    for name, tensor in scaled.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], before[name])
        assert tensor.dtype == before[name].dtype
        assert name.removesuffix(".weight") in moved or torch.equal(tensor, before[name])
    head, embeddings = scaled.network.get_output_embeddings(), scaled.network.get_input_embeddings()
    assert head.weight is embeddings.weight
    assert not quantize_model(scaled, INT3).latent
    error = (_logits(scaled) - _logits(model)).square().mean()
    assert error <= 1e-3 * _logits(model).var()


def test_an_up_projection_is_rounded_once() -> None:
    model = _model()
    model.network.to(torch.bfloat16)
    scales, scaled = _run(model)
    prefix = "model.layers.1"
    up, norm = f"{prefix}.mlp.up_proj", f"{prefix}.post_attention_layernorm"
    weight = matrices(model.network)[up].weight.float()
    expected = weight * scales.scales[norm] / scales.scales[up][:, None]
    assert torch.equal(matrices(scaled.network)[up].weight, expected.bfloat16())


def test_a_norm_that_does_not_multiply_by_its_weight_is_refused() -> None:
    with pytest.raises(ModelError, match=r"GemmaForCausalLM: scaling .*input_layernorm against"):
        awq.find_foldable(_model("gemma", head_dim=8))
    plain = _model()
    norm = plain.network.model.layers[1].post_attention_layernorm
    norm.forward = lambda states: states * norm.weight.abs().sqrt()
    with pytest.raises(ModelError, match=r"LlamaForCausalLM: scaling model\.layers\.1\.post_att"):
        _run(plain)


class _Peeking(nn.Module):
    """A feed-forward module of which something besides its linear layers reads the input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.inner(states) + 0.01 * states
        return result


def test_another_reader_is_noticed() -> None:
    model = _model()
    block = model.network.model.layers[0]
    block.mlp = _Peeking(block.mlp)
    with pytest.raises(ModelError, match=r"scaling .*0\.post_attention_layernorm against"):
        awq.find_foldable(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_check_sees_a_small_error_in_any_dtype(dtype: torch.dtype) -> None:
    model = _model()
    model.network.to(dtype)
    found = awq.find_foldable(model)
    assert awq._preserved(model, found)
    broken = {writer: names[:-1] or names for writer, names in found.items()}
    assert not awq._preserved(model, broken)


def test_a_model_with_nothing_to_fold_into_is_refused() -> None:
    grouped = {"num_key_value_heads": 2}
    model = _model("olmo2", **grouped)
    for block in model.network.model.layers:
        block.mlp = nn.Linear(32, 32)
    with pytest.raises(ModelError, match="Olmo2ForCausalLM: no operation found"):
        awq.find_foldable(model)


def test_hooks_are_taken_off_again() -> None:
    model = _model()
    awq.find_foldable(model)
    modules = list(model.network.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)


# --- the search -----------------------------------------------------------------------------------


def _activations(tokens: int, channels: int, seed: int = 0) -> Tensor:
    """Off centre, with channels of very different size, one never used."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(channels, generator=generator).mul(1.5).exp()
    seen = (torch.randn(tokens, channels, generator=generator) + 0.3) * sizes
    seen[:, 5] = 0
    return seen


def _errors(weights: list[Tensor], seen: Tensor, format: Grouped) -> list[float]:
    """By the outputs themselves, in float64, exponent by exponent."""
    found, seen = [], seen.double()
    sizes = seen.abs().mean(0)
    for step in range(GRID):
        scales = sizes.pow(step / GRID).clamp(min=1e-4)
        scales = (scales / (scales.max() * scales.min()).sqrt()).float()
        error = 0.0
        for weight in weights:
            rounded = format.quantize((weight.float() * scales).to(weight.dtype))
            change = rounded.double() / scales.double() - weight.double()
            error += float((seen @ change.T).square().sum())
        found.append(error)
    return found


def _search(weights: list[Tensor], seen: Tensor, format: Grouped) -> tuple[float, float, float]:
    observed = Observed(["layer"], [Span(0, 64, 64)], len(seen))
    for part in seen.split(7):
        observed.add(part)
    (root,) = observed.roots()
    return awq.search(weights, seen.abs().mean(0), root[0], [format] * len(weights), GRID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [200, 40])
@pytest.mark.parametrize("format", [INT3, IntSym(4, 0), NF(3, 24, tail=True)], ids=str)
def test_the_search_chooses_as_the_straightforward_one(
    format: Grouped, tokens: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    weights = [(torch.randn(n, 64, generator=generator) / 10).to(dtype) for n in (24, 8)]
    seen = _activations(tokens, 64)
    errors = _errors(weights, seen, format)
    exponent, before, after = _search(weights, seen, format)
    assert exponent == errors.index(min(errors)) / GRID
    assert 0 < exponent < 1
    assert before == pytest.approx(errors[0], rel=1e-3)
    assert after == pytest.approx(min(errors), rel=1e-3)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.sampled_from([2, 3, 4, 8]), tokens=st.integers(1, 80))
def test_scaling_never_makes_the_output_worse(seed: int, bits: int, tokens: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) / 20
    _, before, after = _search([weight], _activations(tokens, 64, seed), IntAsym(bits, 16))
    assert after <= before


def test_how_the_work_is_cut_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, seen = [torch.randn(20, 64)], _activations(50, 64)
    whole = _search(weights, seen, INT3)
    monkeypatch.setitem(clip._AT_ONCE, "cpu", 200)
    assert _search(weights, seen, INT3) == pytest.approx(whole, rel=1e-5)


def test_channels_alike_are_left_alone() -> None:
    assert torch.equal(awq.balance_scales(torch.full((8,), 3.0), 0.5), torch.ones(8))
    assert torch.equal(awq.balance_scales(torch.tensor([0.0, 1.0, 100.0]), 0.0), torch.ones(3))
    scales = awq.balance_scales(torch.tensor([1.0, 4.0, 16.0]), 0.5)
    torch.testing.assert_close(scales, torch.tensor([0.5, 1.0, 2.0]))
    unused = awq.balance_scales(torch.tensor([0.0, 1.0]), 0.5)
    assert unused.isfinite().all()
    assert (unused > 0).all()
    weight, nothing = torch.randn(4, 64), torch.zeros(9, 64)
    assert _search([weight], nothing, INT3) == (0.0, 0.0, 0.0)


# --- the stages -----------------------------------------------------------------------------------


@cache
def _uneven() -> tuple[Model, Scales, Model]:
    """A model three channels of whose norms are far larger than the others, as in trained LLMs."""
    model = _model(initializer_range=0.05)
    for name, tensor in model.network.named_parameters():
        if "layernorm" in name:
            tensor.fill_(1.0)[[3, 17, 30]] = 20.0
    return (model, *_run(model))


def test_rounding_an_uneven_model_hurts_less() -> None:
    model, scales, scaled = _uneven()
    assert all(after <= before for before, after in scales.errors.values())
    normed = [after / before for name, (before, after) in scales.errors.items() if "norm" in name]
    assert max(normed) < 0.5
    plain = _logits(model)
    rtn, ours = (_logits(quantize_model(start, INT3)) - plain for start in (model, scaled))
    assert ours.square().mean() < 0.75 * rtn.square().mean()


def test_scales_are_of_all_tokens_and_errors_of_the_sample() -> None:
    model, scales, _ = _uneven()
    name = "model.layers.1.mlp.up_proj"
    (down,) = scales.layers[name]
    kept: list[Tensor] = []
    linear = matrices(model.network)[down]
    hook = linear.module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    _logits(model)
    hook.remove()
    seen = kept[0].flatten(0, 1)
    expected = awq.balance_scales(seen.double().abs().mean(0), scales.exponents[name])
    torch.testing.assert_close(scales.scales[name], expected)
    sample = seen[::2].double()  # 64 of 128 tokens
    weight = linear.weight
    error = ((INT3.quantize(weight) - weight).double() @ sample.T).square().sum()
    assert scales.errors[name][0] == pytest.approx(float(error), rel=1e-3)


def test_a_second_search_finds_the_same() -> None:
    model, scales, scaled = _uneven()
    again, rescaled = _run(model)
    assert again.errors == scales.errors
    assert again.exponents == scales.exponents
    assert torch.equal(_logits(rescaled), _logits(scaled))


def test_scales_survive_the_disk(tmp_path: Path) -> None:
    _, scales, _ = _uneven()
    back = Scales.load(tmp_path, scales.save(tmp_path))
    assert (back.layers, back.exponents, back.errors) == (
        scales.layers,
        scales.exponents,
        scales.errors,
    )
    assert back.scales.keys() == scales.scales.keys()
    assert all(torch.equal(back.scales[name], scales.scales[name]) for name in back.scales)


def test_progress_is_said_per_block() -> None:
    said: list[tuple[int, int]] = []
    with listening(lambda done, total, metrics: said.append((done, total))):
        _run(_model())
    assert said == [(1, 2), (2, 2)]


def test_a_bad_weight_or_a_misfit_names_its_layer() -> None:
    model = _model()
    model.network.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"layer model\.layers\.1\.mlp\.down_proj"):
        _run(model)
    with pytest.raises(FormatError, match=r"layer model\.layers\.0\.mlp\.down_proj: groups of 32"):
        _run(_model(), IntAsym(2, 32))
    half = _model()
    half.network.to(torch.float16)
    name = "model.layers.0.input_layernorm"
    tiny = {name: torch.full((32,), 1e-8)}
    with pytest.raises(ModelError, match=f"layer {name}: scaled, it has NaN or Inf in torch.float"):
        awq.fold(half, {name: []}, tiny)


@pytest.mark.usefixtures("known_commits")
def test_what_a_search_shares_and_what_it_does_not() -> None:
    first, _ = _graph(AWQ())
    assert first.stored
    assert first.key == _graph(AWQ())[0].key
    others = [
        _graph(AWQ(), IntAsym(4, 16)),
        _graph(AWQ(), IntSym(3, 16)),
        _graph(AWQ(tokens=64)),
        _graph(AWQ(grid=10)),
        _graph(AWQ(text="c4")),
    ]
    assert len({first.key, *(search.key for search, _ in others)}) == 1 + len(others)


def test_clipping_comes_after_scaling_and_shares_its_search() -> None:
    settings: dict[str, Any] = {"text": "testbed", "length": 16, "sequences": 8, "tokens": 64}
    plain, clipped = (AWQ(clip=also, **settings).build(_Base(), INT3) for also in (False, True))
    assert isinstance(clipped, Clipped)
    assert clipped.model == plain
    assert isinstance(clipped.ranges, ClipSearch)
    assert clipped.ranges.model == plain
    stages = closure([plain, clipped])
    assert sum(isinstance(stage, ScaleSearch) for stage in stages) == 1
    values: dict[str, Any] = {}
    for stage in stages:
        of_tokens = stage.kind in ("documents", "packed")
        values[stage.key] = _tokens() if of_tokens else execute_alone(stage, values)
    both, scaled = values[clipped.key], values[plain.key]
    reference = _logits(values[_Base().key])
    errors = [
        (_logits(quantize_model(model, INT3)) - reference).square().mean()
        for model in (both, scaled)
    ]
    assert errors[0] < errors[1]


def test_nothing_to_do_is_the_base_itself() -> None:
    base = _Base()
    assert AWQ().build(base, FullPrecision()) is base
    assert AWQ(clip=True).build(base, FullPrecision()) is base


@pytest.mark.parametrize("change", [{"grid": 0}, {"tokens": 0}, {"sequences": -1}])
def test_senseless_parameters_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BitgridError, match="should be at least 1"):
        AWQ(**change)


# --- chosen by name -------------------------------------------------------------------------------


def test_a_method_lists_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["methods", "bitdistiller"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  init ")]
    assert "of awq, clip, hadamard, none" in line


def test_a_grid_chooses_it(tmp_path: Path, tiny_folder: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"""\
# From which weights?
model: {tiny_folder}
method: bitdistiller
vary:
  init: [none, clip, awq, {{name: awq, clip: true}}]
  seed: [0, 1]
defaults:
  format.group_size: 64
  init.text: testbed
  data.text: testbed
  data.length: 128
evaluate: [testbed-ppl]
"""
    )
    stages = [s.kind for s in closure([cell.model for cell in load(path).cells])]
    assert stages.count("train") == 8
    assert stages.count("scale-search") == stages.count("scaled") == 2  # one a seed
    assert stages.count("clip-search") == 4
