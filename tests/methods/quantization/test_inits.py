"""The clip search: against a straightforward float64 one, its structure rules, its two stages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, PreTrainedModel

from harness.core.errors import BitgridError, FormatError, ModelError
from harness.core.stage import Stage, listening
from harness.data import Tokens
from harness.models import Model, matrices
from methods.quantization import clip, walking
from methods.quantization.formats import NF, FullPrecision, Grouped, IntAsym, IntSym
from methods.quantization.inits import Clip, Clipped, ClipSearch, Init, NoInit, Ranges
from methods.quantization.observing import Observed
from methods.quantization.rounding import quantize_model
from tests.support.stages import execute_alone, observe_all

GRID, STEPS = 10, 5
FORMATS: list[Grouped] = [
    IntAsym(2, 16),
    IntAsym(3, 16),
    IntSym(2, 16),
    IntSym(4, 16),
    NF(3, 16),
    NF(2, 16, asymmetric=False),
    IntAsym(2, 0),
    NF(3, 0),
    IntAsym(2, 24, tail=True),
    IntSym(3, 128, tail=True),
]


def _reference(weight: Tensor, seen: Tensor, format: Grouped) -> tuple[Tensor, Tensor]:
    """Ranges by the outputs themselves in float64, group by group, the first of equals kept."""
    lows, highs = [], []
    for span in format.spans(weight.shape[1]):
        groups, inputs = span.cut(weight), span.cut(seen.double())
        low = groups.amin(-1, keepdim=True).clamp(max=0)
        high = groups.amax(-1, keepdim=True).clamp(min=0)
        least = torch.full_like(low[..., 0], torch.inf, dtype=torch.float64)
        best_low, best_high = low.clone(), high.clone()
        for i in range(STEPS):
            for j in range(STEPS):
                bottom = (low.float() * (1 - j / GRID)).to(weight.dtype)
                top = (high.float() * (1 - i / GRID)).to(weight.dtype)
                clamped = groups.clamp(bottom, top).float()
                change = format.quantize(clamped.flatten(0, 1)).view_as(groups) - groups.float()
                error = torch.einsum("ogk,ngk->nog", change.double(), inputs).square().sum(0)
                better = (error < least)[..., None]
                least = torch.where(better[..., 0], error, least)
                best_low = torch.where(better, bottom, best_low)
                best_high = torch.where(better, top, best_high)
        lows.append(best_low[..., 0])
        highs.append(best_high[..., 0])
    return torch.cat(lows, 1), torch.cat(highs, 1)


def _observed(seen: Tensor, format: Grouped) -> Observed:
    observed = Observed(["layer"], format.spans(seen.shape[1]), len(seen))
    for part in seen.split(7):
        observed.add(part)
    return observed


def _search(weight: Tensor, seen: Tensor, format: Grouped) -> tuple[Tensor, Tensor, float, float]:
    return clip.search(weight, _observed(seen, format).roots(), format, GRID, STEPS)


def _activations(tokens: int, channels: int, seed: int = 0) -> Tensor:
    """Correlated, off centre and with two outlier channels, as those of language models are."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(channels, channels, generator=generator) / channels**0.5
    seen = torch.randn(tokens, channels, generator=generator) @ mix + 0.3
    seen[:, 3], seen[:, channels // 2] = seen[:, 3] * 30, 8.0
    return seen


@pytest.mark.parametrize("format", FORMATS, ids=str)
@pytest.mark.parametrize("tokens", [200, 40, 5])
def test_the_search_chooses_as_the_straightforward_one(format: Grouped, tokens: int) -> None:
    weight = torch.randn(24, 64, generator=torch.Generator().manual_seed(1)) / 10
    weight[0], weight[1] = weight[0].abs(), -weight[1].abs()
    weight[2], weight[3] = 0, 0.1
    seen = _activations(tokens, 64)
    low, high, _, _ = _search(weight, seen, format)
    reference_low, reference_high = _reference(weight, seen, format)
    assert torch.equal(low, reference_low)
    assert torch.equal(high, reference_high)


def test_equal_errors_keep_the_first() -> None:
    # Nothing below 0 and nothing seen: all minima tie, then all pairs.
    weight = torch.rand(3, 16)
    low, high, before, after = _search(weight, torch.zeros(9, 16), IntAsym(2, 16))
    assert torch.equal(high, weight.amax(1, keepdim=True))
    assert (low == 0).all()
    assert before == after == 0
    # One weight on a symmetric grid: only the side of that weight matters, the other stays whole.
    weight = torch.tensor([[1.0, -0.1, 0.0, 0.0]])
    low, high, _, _ = _search(weight, torch.eye(4), IntSym(2, 4))
    assert high.item() == 1.0
    assert low.item() == pytest.approx(-0.1)


@pytest.mark.parametrize("format", FORMATS[:6], ids=str)
def test_ranges_fit_half_precision_weights_exactly(format: Grouped) -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    seen = _activations(100, 64)
    low, high, _, after = _search(weight, seen, format)
    assert low.dtype == high.dtype == torch.bfloat16
    reference = _reference(weight, seen, format)
    assert torch.equal(low, reference[0])
    assert torch.equal(high, reference[1])
    clamped = clip.clamp(weight, format, low, high)
    assert clamped.dtype == torch.bfloat16
    assert _error(weight.float(), format.quantize(clamped.float()), seen, format) == pytest.approx(
        after, rel=1e-4
    )


def _error(weight: Tensor, rounded: Tensor, seen: Tensor, format: Grouped) -> float:
    """The squared output error, groups apart, in float64."""
    total = 0.0
    for span in format.spans(weight.shape[1]):
        change = span.cut((rounded - weight).double())
        moved = torch.einsum("ogk,ngk->nog", change, span.cut(seen.double()))
        total += float(moved.square().sum())
    return total


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**31), format=st.sampled_from(FORMATS), tokens=st.integers(1, 80))
def test_clipping_never_makes_the_output_worse(seed: int, format: Grouped, tokens: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) / 20
    seen = _activations(tokens, 64, seed)
    low, high, before, after = _search(weight, seen, format)
    assert after <= before
    clamped = clip.clamp(weight, format, low, high)
    unclipped = _error(weight, format.quantize(weight), seen, format)
    clipped = _error(weight, format.quantize(clamped), seen, format)
    assert clipped <= unclipped * (1 + 1e-5)
    assert before == pytest.approx(unclipped, rel=1e-3)
    assert after == pytest.approx(clipped, rel=1e-3)


@pytest.mark.parametrize("format", [IntAsym(2, 16), IntAsym(2, 24, tail=True), NF(3, 0)], ids=str)
def test_how_the_work_is_cut_does_not_matter(
    format: Grouped, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, seen = torch.randn(20, 64), _activations(50, 64)
    whole = _search(weight, seen, format)
    for budget in (1, 48, 200):
        monkeypatch.setitem(clip._AT_ONCE, "cpu", budget)
        low, high, *_ = _search(weight, seen, format)
        assert torch.equal(low, whole[0])
        assert torch.equal(high, whole[1])


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    _search(torch.randn(4, 16), torch.randn(20, 16), IntAsym(2, 16))
    assert torch.get_num_threads() == before
    with pytest.raises(RuntimeError):
        clip.search(torch.randn(4, 16), [torch.zeros(1, 3, 9)], IntAsym(2, 16), GRID, STEPS)
    assert torch.get_num_threads() == before


# --- what is searched ---------------------------------------------------------------------------


def _llama(**changes: Any) -> Model:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 40}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(**(sizes | heads | changes)))
    return Model(network.requires_grad_(False).eval(), None)  # type: ignore[arg-type]


def _linears(*names: str) -> nn.Module:
    module = nn.Module()
    for name in names:
        module.add_module(name, nn.Linear(4, 4))
    return module


class _Network(PreTrainedModel):
    """Of its own class: what transformers remembers at the base class, every other inherits."""


def _toy(**parts: nn.Module) -> Model:
    block = nn.Module()
    for name, part in parts.items():
        block.add_module(name, part)
    network = _Network(PreTrainedConfig(num_hidden_layers=1))
    network.layers = nn.ModuleList([block])
    network.embed_tokens = nn.Embedding(4, 4)
    return Model(network, None)  # type: ignore[arg-type]


def test_query_and_key_are_left_out() -> None:
    model = _llama()
    left_out = matrices(model.network).keys() - clip.find_searchable(model).keys()
    assert left_out == {
        f"model.layers.{block}.self_attn.{name}_proj" for block in (0, 1) for name in "qk"
    }


@pytest.mark.parametrize("names", clip._SEPARATE, ids="-".join)
def test_other_spellings_are_known(names: tuple[str, str, str]) -> None:
    model = _toy(attention=_linears(*names, "out"))
    assert set(clip.find_searchable(model)) == {
        f"layers.0.attention.{names[2]}",
        "layers.0.attention.out",
    }


def test_a_name_alone_leaves_nothing_out() -> None:
    model = _toy(
        seq_k_projector=nn.Linear(4, 4),
        mixer=_linears("k_proj", "v_proj"),
        query_key=_linears("q_proj_a", "k_proj_a", "v_proj_a"),
        keys=_linears("qkv"),
    )
    assert clip.find_searchable(model).keys() == matrices(model.network).keys()


@pytest.mark.parametrize("name", clip._FUSED)
def test_a_fused_projection_is_left_out_whole(name: str) -> None:
    model = _toy(attention=_linears(name, "dense"), mlp=_linears("up", "down"))
    assert set(clip.find_searchable(model)) == {
        "layers.0.attention.dense",
        "layers.0.mlp.up",
        "layers.0.mlp.down",
    }


# --- what it is searched on -----------------------------------------------------------------------


def _tokens(sequences: int = 6, length: int = 16) -> Tokens:
    ids = torch.randint(40, (sequences, length), generator=torch.Generator().manual_seed(3))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def test_layers_with_one_input_are_observed_once() -> None:
    model = _llama()
    observed = observe_all(model, clip.find_searchable(model), _tokens(), IntAsym(2, 16), 50)
    groups = [[name.removeprefix("model.layers.0.") for name in o.layers] for o in observed[:4]]
    assert groups == [
        ["self_attn.v_proj"],
        ["self_attn.o_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
        ["mlp.down_proj"],
    ]


@pytest.mark.parametrize("count", [1, 5, 50, 96, 500])
@pytest.mark.parametrize("at_once", [1, 40, 4096])
def test_evenly_spread_tokens_are_observed(
    count: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(walking, "TOKENS_AT_ONCE", at_once)
    model, tokens, format = _llama(), _tokens(), IntAsym(2, 16)
    layers = clip.find_searchable(model)
    down = "model.layers.1.mlp.down_proj"
    kept: list[Tensor] = []
    hook = layers[down].module.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    model.network(tokens.ids)
    hook.remove()
    (observed,) = [o for o in observe_all(model, layers, tokens, format, count) if down in o.layers]
    size = min(count, 96)
    seen = kept[0].reshape(96, -1)[[i * 96 // size for i in range(size)]]
    for span, root in zip(format.spans(48), observed.roots(), strict=True):
        groups = span.cut(seen).double()
        expected = torch.einsum("ngi,ngj->gij", groups, groups)
        torch.testing.assert_close(root.double().mT @ root.double(), expected, atol=1e-6, rtol=1e-4)


def test_hooks_are_taken_off_again() -> None:
    model = _llama()
    layers = clip.find_searchable(model)
    observe_all(model, layers, _tokens(), IntAsym(2, 16), 8)
    assert not any(matrix.module._forward_pre_hooks for matrix in layers.values())


def test_a_layer_that_is_never_called_keeps_its_range() -> None:
    model = _llama()
    idle = nn.Linear(32, 32)
    model.network.model.layers[0].add_module("idle", idle)
    layers = clip.find_searchable(model)
    observed = observe_all(model, layers, _tokens(), IntAsym(2, 16), 8)
    (alone,) = [o for o in observed if "model.layers.0.idle" in o.layers]
    low, _, before, after = clip.search(idle.weight, alone.roots(), IntAsym(2, 16), GRID, STEPS)
    assert torch.equal(low, idle.weight.view(32, 2, 16).amin(-1))
    assert before == after == 0


def test_an_input_with_nan_names_its_layer() -> None:
    model = _llama()
    model.network.model.layers[1].input_layernorm.weight[0] = torch.nan
    with pytest.raises(ModelError, match=r"layer model\.layers\.1\.self_attn\.v_proj: its input"):
        observe_all(model, clip.find_searchable(model), _tokens(), IntAsym(2, 16), 8)


# --- the stages -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Base(Stage[Model]):
    kind: ClassVar[str] = "test-inits-base"

    def run(self, work: Path) -> Model:
        return _llama()


def _graph(init: Init, format: Grouped) -> tuple[ClipSearch, Clipped]:
    clipped = init.build(_Base(), format)
    assert isinstance(clipped, Clipped)
    assert isinstance(clipped.ranges, ClipSearch)
    return clipped.ranges, clipped


def _run(model: Model, format: Grouped, tokens: int = 64) -> tuple[Ranges, Model]:
    search, clipped = _graph(Clip(text="testbed", tokens=tokens), format)
    values: dict[str, Any] = {_Base().key: model}
    assert isinstance(search.calibration, Stage)
    values[search.calibration.key] = _tokens()
    values[search.key] = execute_alone(search, values)
    return values[search.key], execute_alone(clipped, values)


@pytest.mark.parametrize("format", [IntAsym(2, 16), NF(3, 0), IntSym(3, 20, tail=True)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_is_clipped_and_its_source_is_not(format: Grouped, dtype: torch.dtype) -> None:
    model = _llama()
    model.network.to(dtype)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    ranges, clipped = _run(model, format)
    searched = clip.find_searchable(model)
    assert ranges.low.keys() == ranges.high.keys() == ranges.errors.keys() == searched.keys()
    assert clipped.latent
    assert not model.latent
    for name, tensor in clipped.network.state_dict().items():
        assert torch.equal(model.network.state_dict()[name], before[name])
        changed = name.removesuffix(".weight") in searched
        assert torch.equal(tensor, before[name]) != changed, name
        assert tensor.dtype == before[name].dtype
    assert all(after < full for full, after in ranges.errors.values())
    assert not quantize_model(clipped, format).latent


def test_ranges_survive_the_disk(tmp_path: Path) -> None:
    ranges, _ = _run(_llama(), IntAsym(2, 16))
    back = Ranges.load(tmp_path, ranges.save(tmp_path))
    assert back.errors == ranges.errors
    for name in ranges.low:
        assert torch.equal(back.low[name], ranges.low[name])
        assert torch.equal(back.high[name], ranges.high[name])


def test_progress_is_said_per_block() -> None:
    said: list[tuple[int, int]] = []
    with listening(lambda done, total, metrics: said.append((done, total))):
        _run(_llama(), IntAsym(2, 16))
    assert said == [(1, 2), (2, 2)]


def test_a_bad_weight_or_a_misfit_names_its_layer() -> None:
    model = _llama()
    model.network.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(ModelError, match=r"layer model\.layers\.1\.mlp\.up_proj: its weight"):
        _run(model, IntAsym(2, 16))
    with pytest.raises(FormatError, match=r"layer model\.layers\.0\.mlp\.down_proj: groups of 32"):
        _run(_llama(), IntAsym(2, 32))


@pytest.mark.usefixtures("known_commits")
def test_what_a_search_shares_and_what_it_does_not() -> None:
    first, _ = _graph(Clip(), IntAsym(2))
    assert first.stored
    assert first.key == _graph(Clip(), IntAsym(2))[0].key
    assert first.steps == 10
    others = [
        _graph(Clip(), IntAsym(3)),
        _graph(Clip(), IntAsym(2, 64)),
        _graph(Clip(), IntSym(2)),
        _graph(Clip(tokens=64), IntAsym(2)),
        _graph(Clip(shrink=0.3), IntAsym(2)),
        _graph(Clip(text="c4"), IntAsym(2)),
    ]
    assert len({first.key, *(search.key for search, _ in others)}) == 1 + len(others)


def test_nothing_to_do_is_the_base_itself() -> None:
    base = _Base()
    assert NoInit().build(base, IntAsym(2)) is base
    assert Clip().build(base, FullPrecision()) is base
    assert {"none": NoInit, "clip": Clip}.items() <= Init.choices().items()


@pytest.mark.parametrize("change", [{"grid": 0}, {"shrink": 0.0}, {"shrink": 1.5}, {"tokens": 0}])
def test_senseless_parameters_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(BitgridError, match=r"should be (at least 1|more than 0|at most 1)"):
        Clip(**change)
