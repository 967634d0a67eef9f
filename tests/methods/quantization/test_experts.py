"""Mixtures of experts, and other layouts: rounded, searched and trained as their own matrices."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from harness.core.errors import ModelError
from harness.data import Tokens
from harness.models import Matrix, Model, blocks, matrices, run_trunk, survey
from harness.testing import make_tokenizer
from methods.quantization import clip
from methods.quantization.awq import find_foldable
from methods.quantization.formats import IntAsym
from methods.quantization.inits import Clipped, ClipSearch
from methods.quantization.rounding import quantize_model
from methods.training.masters import Masters
from methods.training.shards import ALONE
from tests.support import architectures
from tests.support.stages import observe_all

FORMAT = IntAsym(2, 32)
FUSED = ["mixtral", "qwen2-moe", "gpt-oss", "llama4-text", "dbrx", "jetmoe"]


def _model(name: str) -> Model:
    network = architectures.make(name)
    network.requires_grad_(False)
    return Model(network, make_tokenizer())


def _tokens(rows: int = 4, length: int = 64) -> Tokens:
    ids = torch.randint(3, 250, (rows, length), generator=torch.Generator().manual_seed(3))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def _plainly(matrix: Matrix) -> list[Tensor]:
    """The matrices (O, I) of a parameter, each a copy of its own."""
    weight = matrix.weight.clone()
    return list(weight) if weight.dim() == 3 else [weight]


@pytest.mark.parametrize("name", [*FUSED, "gpt2"])
def test_each_expert_and_row_is_rounded_alone(name: str) -> None:
    """Against rounding of each matrix by itself; what is not a matrix stays bit for bit."""
    model = _model(name)
    rounded = quantize_model(model, FORMAT)
    before, after = survey(model.network), survey(rounded.network)
    for layer, matrix in before.matrices.items():
        expected = [FORMAT.quantize(part.contiguous()) for part in _plainly(matrix)]
        for part, wanted in zip(_plainly(after.matrices[layer]), expected, strict=True):
            assert torch.equal(part, wanted), layer
            groups = part.reshape(part.shape[0], -1, 32)
            assert max(len(group.unique()) for row in groups for group in row) <= 4
    assert before.kept.keys() == after.kept.keys()
    assert all(torch.equal(after.kept[key], stored) for key, stored in before.kept.items())


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe"])
def test_bits_are_over_all_weights_of_the_blocks(name: str) -> None:
    """2 bits and 18 for each group of 32 where rounded, 16 where not: a closed form."""
    model = _model(name)
    model.network.bfloat16()
    rounded = quantize_model(model, FORMAT)
    prefixes = tuple(f"{block}." for block in blocks(model.network))
    inside = {n: p for n, p in model.network.named_parameters() if n.startswith(prefixes)}
    weights = {n: p.numel() for n, p in inside.items() if p.dim() > 1}
    routers = sum(n for key, n in weights.items() if key.endswith("gate.weight"))
    total = sum(weights.values())
    share = 1 - routers / total
    assert 0.98 < share < 1
    assert rounded.rounded_share() == pytest.approx(share, rel=1e-12)
    assert rounded.bits_per_weight() == pytest.approx(
        (2 + 18 / 32) * share + 16 * (1 - share), rel=1e-12
    )
    assert model.rounded_share() == 0 and model.bits_per_weight() == 16


@pytest.mark.parametrize("name", FUSED)
def test_experts_see_the_tokens_that_are_sent_to_them(name: str) -> None:
    """The sum of |x| of each expert, against a loop over experts in the model's own code."""
    model, tokens = _model(name), _tokens()
    fused = {n: m for n, m in matrices(model.network).items() if m.experts}
    seen = observe_all(model, fused, tokens, FORMAT, count=64)
    heard: dict[tuple[str, int], Tensor] = {}
    linear, product = torch.nn.functional.linear, Tensor.matmul

    def note(read: Tensor, weight: Tensor) -> None:
        for layer, matrix in fused.items():
            for expert, part in enumerate(matrix.stored.tensor_split(matrix.experts)):
                if part.data_ptr() == weight.data_ptr():
                    total = read.abs().double().sum(0)
                    heard[layer, expert] = heard.get((layer, expert), 0) + total

    with pytest.MonkeyPatch.context() as patch:
        for module in model.network.modules():
            if hasattr(module, "is_transposed"):
                module.config._experts_implementation = "eager"
        patch.setattr(
            torch.nn.functional, "linear", lambda x, w, b=None: (note(x, w), linear(x, w, b))[1]
        )
        for called in ("matmul", "__matmul__"):
            patch.setattr(Tensor, called, lambda x, w: (note(x, w), product(x, w))[1])
        with torch.no_grad():
            run_trunk(model.network, tokens.ids)
    if name == "llama4-text":  # all at once, zeros where a token is sent to another
        ups = [each for each in seen if "gate_up" in each.layers[0]]
        assert sum(each.seen for each in ups) == 2 * tokens.ids.numel()
        return
    assert heard
    for each in seen:
        for layer in each.layers:
            assert each.expert is not None
            expected = heard.get((layer, each.expert), torch.zeros_like(each.sizes))
            torch.testing.assert_close(each.sizes, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_clipping_experts_lessens_the_error_of_their_outputs(name: str, tmp_path: object) -> None:
    model, tokens = _model(name), _tokens()
    search = ClipSearch(model, tokens, FORMAT, 20, 10, 512)  # type: ignore[arg-type]
    ranges = search.run(tmp_path)  # type: ignore[arg-type]
    layers = clip.find_searchable(model)
    assert ranges.low.keys() == layers.keys()
    fused = [layer for layer, matrix in layers.items() if matrix.experts]
    for layer in fused:
        before, after = ranges.errors[layer]
        assert 0 < after < before
        assert ranges.low[layer].shape == (
            4,
            layers[layer].out_features,
            layers[layer].in_features // 32,
        )
    clipped = Clipped(model, ranges, FORMAT).run(tmp_path)  # type: ignore[arg-type]
    observed = {
        (layer, each.expert): each
        for each in observe_all(model, layers, tokens, FORMAT, 512)
        for layer in each.layers
    }
    for layer in fused:
        total = 0.0
        for expert, old in enumerate(_plainly(layers[layer])):
            new = FORMAT.quantize(_plainly(matrices(clipped.network)[layer])[expert])
            groups = (new - old).double().view(old.shape[0], -1, 32).transpose(0, 1)
            gram = observed[layer, expert].grams[0]
            total += float((groups @ gram * groups).sum())
        assert total == pytest.approx(ranges.errors[layer][1], rel=1e-3)


def test_an_expert_that_sees_nothing_keeps_its_range(tmp_path: object) -> None:
    model, tokens = _model("mixtral"), _tokens(1, 2)  # four tokens' choices for four experts
    ranges = ClipSearch(model, tokens, FORMAT, 20, 10, 512).run(tmp_path)  # type: ignore[arg-type]
    layers = clip.find_searchable(model)
    seen = observe_all(model, layers, tokens, FORMAT, 512)
    idle = [each for each in seen if each.seen == 0]
    assert idle
    for each in idle:
        (layer,), expert = each.layers, each.expert
        groups = layers[layer].weight[expert].view(-1, layers[layer].in_features // 32, 32)
        assert torch.equal(ranges.low[layer][expert], groups.amin(-1).clamp(max=0))


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "gpt-oss", "gpt2"])
def test_training_computes_with_what_is_evaluated(name: str) -> None:
    model = _model(name)
    masters = Masters.of(model, FORMAT, "body", torch.float32)
    masters.requantize()
    ids = _tokens(2, 16).ids
    rounded = quantize_model(masters.build_model(), FORMAT, like=model)
    with torch.no_grad():
        ours = masters.network(ids, use_cache=False).logits
        assert torch.equal(ours, rounded.network(ids, use_cache=False).logits)
    masters.network(ids, use_cache=False).logits.logsumexp(-1).sum().backward()
    masters.accumulate_gradients()
    gradients = {name: total.clone() for name, total in masters._sums.items()}
    masters.finish_gradients(1.0)
    for layer, matrix in matrices(model.network).items():
        gradient = masters.weights[matrix.parameter_name].grad
        assert gradient is not None and torch.equal(gradient, gradients[matrix.parameter_name]), (
            layer
        )
        assert bool(gradient.any())


def test_processes_do_not_share_input_channels() -> None:
    """Groups lie along the input channels, which GPT-2 stores first."""
    model = _model("gpt2")
    with pytest.raises(ModelError, match=r"layer transformer\.h\.0\.attn\.c_attn: GPT2LMHeadModel"):
        Masters.of(model, FORMAT, "body", torch.float32, replace(ALONE, world=2))


@pytest.mark.parametrize("name", ["mixtral", "jetmoe"])
def test_awq_does_not_pass_over_experts(name: str) -> None:
    with pytest.raises(ModelError, match="awq cannot scale what its experts read"):
        find_foldable(_model(name))
