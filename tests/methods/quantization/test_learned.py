"""Formats with trained parameters: LSQ's equations in float64, training, storage, shards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.settings import configure
from harness.core.errors import BitgridError, FormatError, SettingError
from harness.method import METHODS
from harness.models import Matrix, Model, matrices, pretrained
from harness.models.layers import Layout
from methods.parts import GPTQ, NF, Grouped, IntAsym, IntLSQ, IntStep, Learned, Recipe, Training
from methods.quantization import learned
from methods.quantization.mixed import Mixed
from methods.quantization.rounding import quantize_model
from methods.training.checkpoint import Checkpoints
from methods.training.data import GroundTruth
from methods.training.masters import Masters
from methods.training.objectives import CE
from methods.training.shards import ALONE
from methods.training.step import TrainingStep

LSQ = IntLSQ(bits=3, group_size=16)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _expect(groups: Tensor, step: Tensor, slope: Tensor, bits: int) -> tuple[Tensor, ...]:
    """Values and gradients of w and s by equations 1 to 3 and 5 of the paper, in float64."""
    w, s, g = groups.double(), step.double(), slope.double()
    least, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    r = w / s
    low, high = r <= least, r >= top
    code = r.round()
    code[low], code[high] = least, top
    to_step = torch.where(low, least, torch.where(high, top, code - r))
    scale = 1 / (groups.shape[-1] * top) ** 0.5
    return code * s, g * ~(low | high), (g * to_step).sum(-1, keepdim=True) * scale


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("width", [0, 16])
def test_forward_and_gradient_are_those_of_the_paper(bits: int, width: int) -> None:
    weight, slope = _draw(5, 48), _draw(5, 48, seed=1)
    format = IntLSQ(bits, width)
    start = format.parameters(weight)["step"]
    cut = (5, -1, width or 48)
    expected_start = 2 * weight.double().view(cut).abs().mean(-1, keepdim=True)
    expected_start /= (2 ** (bits - 1) - 1) ** 0.5
    torch.testing.assert_close(start.double(), expected_start, rtol=2**-11, atol=0)
    leaf = weight.clone().requires_grad_()
    step = (start.float() * 0.6).requires_grad_()  # small enough that weights are clamped
    values = format.quantize_with_gradient(leaf, step)
    values.backward(slope)
    kept = step.detach().half()  # as it is stored
    expected = _expect(weight.view(cut), kept, slope.view(cut), bits)
    assert leaf.grad is not None and step.grad is not None
    for found, wanted in zip((values, leaf.grad, step.grad), expected, strict=True):
        torch.testing.assert_close(found.double().view_as(wanted), wanted, rtol=1e-5, atol=1e-5)
    assert bool((leaf.grad == 0).any())
    again = format.quantize_with(values.detach(), {"step": kept})
    assert torch.equal(again, values)  # what is saved holds the format already


def test_a_step_below_zero_comes_back() -> None:
    weight = _draw(1, 16)
    step = torch.full((1, 1, 1), -0.1, requires_grad=True)
    values = LSQ.quantize_with_gradient(weight, step)
    (values - weight).square().sum().backward()
    assert values.isfinite().all() and step.grad is not None and step.grad.item() < 0


def test_rows_at_once_a_tail_and_other_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    format = IntLSQ(3, 16, tail=True)
    weight, slope = _draw(7, 40), _draw(7, 40, seed=1)
    start = format.parameters(weight)["step"]
    assert start.shape == (7, 3, 1) and start.dtype == torch.float16

    def run() -> list[Tensor]:
        leaves = [weight.clone().requires_grad_(), start.float().requires_grad_()]
        values = format.quantize_with_gradient(*leaves)
        values.backward(slope)
        return [values.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]

    whole = run()
    monkeypatch.setitem(learned._AT_ONCE, "cpu", 80)
    assert all(map(torch.equal, whole, run()))
    assert torch.equal(whole[0], format.quantize(weight))
    half = weight.bfloat16().requires_grad_()
    values = format.quantize_with_gradient(half)
    values.sum().backward()
    assert values.dtype == half.dtype and half.grad is not None


@pytest.mark.parametrize("layout", [Layout(transposed=True), Layout(experts=2), Layout(True, 2)])
def test_every_layout_and_each_expert(layout: Layout) -> None:
    rows = _draw(2, 6, 32) if layout.experts else _draw(6, 32)
    stored = layout.store(rows)
    start = LSQ.parameters(layout.view(stored))["step"]
    assert start.shape == (*rows.shape[:-1], 2, 1)
    found = Matrix("m", nn.Module(), layout=layout).map(LSQ.quantize_with_gradient, stored, start)
    each = rows if layout.experts else rows[None]
    expected = torch.stack([LSQ.quantize(part) for part in each]).view_as(rows)
    assert torch.equal(layout.view(found), expected)


@pytest.mark.parametrize(
    "format", [LSQ, Mixed(LSQ, {"*.down_proj": NF(3, 16)})], ids=["all", "mix"]
)
def test_what_was_trained_is_what_is_rounded_counted_and_saved(
    format: Grouped | Mixed, llama: Model, tmp_path: Path
) -> None:
    masters, trained = _train(llama, format)
    masters.requantize()
    rounded = quantize_model(trained, format)
    rounded.check()
    for name, matrix in matrices(masters.network).items():
        assert torch.equal(matrix.weight, matrices(rounded.network)[name].weight), name
        record, own = rounded.quantized[name], rounded.format_parameters.get(name, {})
        assert bool(own) == isinstance(format.of(name), Learned)
        if own:
            start = LSQ.parameters(matrices(llama.network)[name].weight)
            assert own["step"].dtype == torch.float16 and not torch.equal(
                own["step"], start["step"]
            )
            packed = record.bits + 8 * own["step"].nbytes / matrix.weight.numel()
            assert record.bits_per_weight == packed == 3 + 16 / 16
    loaded = Model.load(tmp_path, rounded.save(tmp_path))
    assert loaded.fingerprint().keys() == rounded.fingerprint().keys()
    for layer, own in rounded.format_parameters.items():
        assert torch.equal(loaded.format_parameters[layer]["step"], own["step"])
    uncounted = {n: dataclasses.replace(q, bits_per_weight=3) for n, q in rounded.quantized.items()}
    with pytest.raises(BitgridError, match="bits have no room"):
        rounded.fork(quantized=uncounted).check()
    other = quantize_model(trained, IntAsym(2, 32))
    assert other.format_parameters == {} and trained.format_parameters


def _begin(llama: Model, format: Grouped | Mixed, training: Training) -> TrainingStep:
    masters = Masters.of(llama, format, training.trained, torch.float32)
    return TrainingStep(training, CE(), None, masters, None)


def _take(step: TrainingStep, count: int) -> None:
    ids = torch.arange(3, 35).view(2, 16)
    for _ in range(count):
        _, norm = step.compute_gradients([(ids, torch.ones_like(ids, dtype=torch.bool))])
        step.update(step.training.lr, norm)


def _train(llama: Model, format: Grouped | Mixed, **settings: Any) -> tuple[Masters, Model]:
    """After two steps."""
    training = Training(**({"lr": 1e-3, "dtype": "float32", "weight_decay": 0.1} | settings))
    step = _begin(llama, format, training)
    _take(step, 2)
    return step.masters, step.masters.build_model()


@pytest.mark.parametrize(
    ("trained", "format"),
    [("linears", LSQ), ("parameters", LSQ), ("parameters", IntStep(3, 16))],
    ids=["linears", "parameters", "codes"],
)
def test_a_checkpoint_keeps_them(
    llama: Model, tmp_path: Path, trained: Any, format: Grouped
) -> None:
    training = Training(lr=1e-3, dtype="float32", trained=trained)
    one, two = _begin(llama, format, training), _begin(llama, format, training)
    _take(one, 1)
    assert any(name.endswith(":step") for name in one.masters.weights)
    kept = Checkpoints(tmp_path, ALONE, one.masters.places)
    kept.save(1, one.masters.weights, one.optimizer, {})
    assert kept.load(two.masters.weights, two.optimizer, 1) is not None
    for step in (one, two):
        _take(step, 2)
    for name, weight in one.masters.weights.items():
        assert torch.equal(weight, two.masters.weights[name]), name


def test_parameters_alone_and_at_a_rate_of_their_own(llama: Model) -> None:
    _, fast = _train(llama, LSQ, trained="parameters", parameter_lr=1e-2)
    _, slow = _train(llama, LSQ, trained="parameters")
    theirs = dict(llama.network.named_parameters())
    for name, weight in fast.network.named_parameters():
        assert torch.equal(weight, theirs[name]), name
    moved = [0.0, 0.0]
    for name, matrix in matrices(llama.network).items():
        start = LSQ.parameters(matrix.weight)["step"].float()
        for i, model in enumerate((fast, slow)):
            moved[i] += float((model.format_parameters[name]["step"] - start).abs().mean())
    assert moved[0] == pytest.approx(10 * moved[1], rel=0.2) and moved[1] > 0
    frozen = quantize_model(fast, LSQ)
    onward = Masters.of(frozen, LSQ, "parameters", torch.float32)  # begins where that ended
    onward.requantize()
    for name, matrix in matrices(onward.network).items():
        assert torch.equal(matrix.weight, matrices(frozen.network)[name].weight)


@pytest.mark.usefixtures("known_commits")
def test_what_cannot_work_is_refused_in_a_line() -> None:
    published = METHODS.find("bitdistiller").method  # whose gradient is `through-range`
    for method in (published, METHODS.find("llm-qat").method):
        chosen = configure(method, {"format": {"name": "int-lsq", "bits": 3, "group_size": 64}})
        assert isinstance(chosen, Recipe) and chosen.format == IntLSQ(3, 64)
    with pytest.raises(SettingError, match=r"format\.gradient: 'through-range' should be 'own'"):
        configure(published, {"format": "int-lsq", "format.gradient": "through-range"})
    for format in (LSQ, Mixed(IntAsym(2, 16), {"*.q_proj": LSQ})):
        with pytest.raises(
            FormatError, match="'int-lsq' has trained parameters; rounding: nearest"
        ):
            Recipe(format=format, rounding=GPTQ()).check({})
    base = pretrained("testbed-small", dtype="float32")
    recipe = Recipe(
        format=IntAsym(2, 64),
        objective=CE(),
        data=GroundTruth(text="testbed", length=64),
        train=Training(steps=1, trained="parameters"),
    )
    with pytest.raises(BitgridError, match="'int-asym' has none; format: int-step or int-lsq"):
        recipe.build(base, 0)
    keys = {
        format.name: {
            dataclasses.replace(recipe, format=format, train=Training(steps=1, parameter_lr=rate))
            .build(base, 0)
            .key
            for rate in (None, 1e-3)
        }
        for format in (IntAsym(2, 64), LSQ)
    }
    assert [len(each) for each in keys.values()] == [1, 2]  # a rate of nothing is no other cell


@dataclass(frozen=True)
class _Faulty(Learned):
    """Of which the test says what it gives."""

    def start_parameters(self, groups: Tensor) -> dict[str, Tensor]:
        return {"step": torch.ones(3)}

    def quantize_groups(self, groups: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return groups.round()


_Faulty.name = "faulty"


@dataclass(frozen=True)
class _Deaf(IntLSQ):
    """It rounds, and says nothing of gradients."""

    def quantize_groups(self, groups: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        return groups.detach().round()


_Deaf.name = "deaf"


def test_mistakes_of_authors_are_told() -> None:
    with pytest.raises(FormatError, match=r"'step' of \(2, 2\) groups is torch.float32 \(3,\)"):
        _Faulty(2, 16).parameters(_draw(2, 32))
    with pytest.raises(FormatError, match="has parameters step, and was given range"):
        LSQ.store({"range": torch.ones(1)})
    values = _Deaf(3, 16).quantize_with_gradient(_draw(2, 32).requires_grad_())
    with pytest.raises(FormatError, match="no gradient passes `quantize_groups`"):
        values.sum().backward()
