"""SignRound: its gradients, that a block gets better and a model with it, and that it goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.errors import FormatError
from harness.core.execution import execute
from harness.core.stage import Stage
from harness.data import Tokens
from harness.models import Model, matrices, pretrained
from harness.testbed import world
from methods.quantization.formats import NF, FullPrecision, Grouped, IntAsym, IntSym, bounds
from methods.quantization.learning import Even, measure, round_within
from methods.quantization.mixed import Mixed
from methods.quantization.rounding import RoundBlocks, quantize_model
from methods.quantization.signround import SignRound
from methods.quantization.walking import Block, sequentially
from methods.recipe import Recipe
from tests.methods.conftest import make_llama
from tests.support import architectures

FAST = SignRound(steps=12, sequences=16, length=32)


def _reference(weight: Tensor, format: Even, shares: list[Tensor], offset: Tensor) -> Tensor:
    """W~ = s * clip(round(W / s + V)) of the paper, in the weight's float64."""
    groups = weight.unflatten(-1, (-1, format.group_size))
    low, high = (end * share for end, share in zip(bounds(groups), shares, strict=True))
    if isinstance(format, IntAsym):
        scale = (high - low) / (2**format.bits - 1)
    else:
        scale = torch.maximum(high, -low) / (2 ** (format.bits - 1) - 1)
    # The scale is kept in 16 bits; its gradient passes that.
    scale = scale + (scale.detach().half().double() - scale.detach())
    ratios = groups / scale + offset.view_as(groups)
    codes = ratios + (ratios.round() - ratios).detach()
    first, last = (low / scale).detach().round(), (high / scale).detach().round()
    if isinstance(format, IntAsym):
        first, last = torch.maximum(first, last - 2**format.bits + 1), last
    inside = (codes >= first) & (codes <= last)
    return (torch.where(inside, codes, codes.detach().clamp(first, last)) * scale).flatten(-2)


@pytest.mark.parametrize("format", [IntAsym(2, 16), IntAsym(4, 16), IntSym(3, 16)], ids=str)
def test_gradients_are_those_of_the_formula(format: Even) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, seed = (torch.randn(6, 32, generator=generator) for _ in range(2))
    shares = [0.7 + 0.3 * torch.rand(6, 2, 1, generator=generator) for _ in range(2)]
    offset = torch.rand(6, 32, generator=generator) - 0.5
    ours = [each.clone().requires_grad_() for each in (*shares, offset)]
    values = round_within(weight, format, (ours[0], ours[1]), ours[2])
    (values * seed).sum().backward()
    exact = [each.double().requires_grad_() for each in (*shares, offset)]
    expected = _reference(weight.double(), format, exact[:2], exact[2])
    (expected * seed.double()).sum().backward()
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(ours, exact, strict=True):
        assert one.grad is not None and other.grad is not None and bool(one.grad.any())
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-4, atol=1e-4)


class _Base(Stage[Any]):
    kind = "test-signround-base"


class _Text(Stage[Any]):
    kind = "test-signround-text"


def _tokens() -> Tokens:
    ids = torch.randint(3, 97, (16, 32), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def _run(
    model: Model, work: Path, format: Grouped, rounding: SignRound = FAST, tokens: Any = None
) -> Model:
    work.mkdir(exist_ok=True)
    stage = RoundBlocks(_Base(), _Base(), _Text(), format, rounding)
    result: Model = execute(stage, {_Base().key: model, _Text().key: tokens or _tokens()}, work)
    return result


@pytest.mark.parametrize("format", [IntAsym(2, 32), IntSym(3, 32), IntAsym(3, 48, tail=True)])
def test_each_block_is_nearer_to_the_original(format: Even, tmp_path: Path) -> None:
    """Than rounded to nearest, on its text; its values are the format's, and stay."""
    model = make_llama()
    losses = []
    for block in sequentially(model.fork(), _tokens(), tmp_path, originals=True):
        nearest = {m.parameter_name: format.quantize(m.weight) for m in block.layers.values()}
        before = measure(block, nearest)
        for name, weight in FAST.round_block(block, format).items():
            block.layers[name].replace(weight)
        losses.append(measure(block, {}) / before)
    assert max(losses) < 0.97
    rounded = _run(model, tmp_path, format)
    assert set(rounded.quantized) == set(matrices(model.network)) and not rounded.latent
    rounded.check()
    weights = quantize_model(rounded, format).network.state_dict()
    assert all(torch.equal(w, weights[n]) for n, w in rounded.network.state_dict().items())


def test_what_does_not_help_is_not_kept(tmp_path: Path) -> None:
    """A block of which nothing reaches the output stays at the nearest levels."""
    model, format = make_llama(), IntAsym(2, 32)
    for matrix in matrices(model.network).values():
        if "o_proj" in matrix.name or "down_proj" in matrix.name:
            matrix.replace(torch.zeros_like(matrix.weight))
    rounded = _run(model, tmp_path, format).network.state_dict()
    nearest = quantize_model(model, format).network.state_dict()
    assert all(torch.equal(weight, nearest[name]) for name, weight in rounded.items())


def test_killed_it_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, format, seen = make_llama(), IntAsym(2, 32), list[int]()
    whole = _run(model, tmp_path / "whole", format)
    learn = SignRound.round_block

    def until(self: SignRound, block: Block, format: Grouped) -> dict[str, Tensor]:
        seen.append(block.number)
        if seen == [0, 1]:
            raise InterruptedError
        return learn(self, block, format)

    monkeypatch.setattr(SignRound, "round_block", until)
    with pytest.raises(InterruptedError):
        _run(model, tmp_path / "killed", format)
    again = _run(model, tmp_path / "killed", format).network.state_dict()
    assert seen == [0, 1, 1]
    assert all(torch.equal(w, again[n]) for n, w in whole.network.state_dict().items())


def test_the_seed_draws_the_batches(tmp_path: Path) -> None:
    rounding = SignRound(steps=3, batch_size=4, length=2048)
    assert rounding.count_at_once(2048) == 2 and rounding.count_at_once(10**4) == 1
    draws = [rounding._draw(4), rounding._draw(4), SignRound(seed=1, length=2048)._draw(4)]
    first, again, other = ([next(draw) for _ in range(6)] for draw in draws)
    assert first == again != other
    assert sorted(first[0] + first[1]) == [0, 1, 2, 3]


def test_experts_learn_from_the_tokens_that_are_sent_to_them(tmp_path: Path) -> None:
    base = pretrained(str(architectures.build("mixtral", tmp_path / "model")), "float32")
    model, format = base.run(tmp_path), IntAsym(2, 32)
    rounded, nearest = _run(model, tmp_path, format), quantize_model(model, format)
    assert set(rounded.quantized) == set(nearest.quantized)
    rounded.check()
    experts = next(m for m in matrices(rounded.network).values() if m.experts)
    plain = matrices(nearest.network)[experts.name]
    assert not torch.equal(experts.weight, plain.weight)
    assert _measure_logits(rounded, model) < _measure_logits(nearest, model)


def _measure_logits(model: Model, reference: Model) -> float:
    with torch.no_grad():
        ours, theirs = (each.network(_tokens().ids).logits for each in (model, reference))
    return float((ours - theirs).square().mean())


@pytest.mark.parametrize(
    ("format", "wrong"),
    [
        (FullPrecision(), "format 'none' has not; format: int-asym or int-sym"),
        (NF(3), "rounding 'signround' learns ranges of even steps, which format 'nf' has not"),
        (Mixed(IntAsym(2), {"*.up_proj": NF(3)}), "which format 'nf' has not"),
    ],
)
def test_a_format_without_even_steps_is_refused_in_the_plan(format: Any, wrong: str) -> None:
    with pytest.raises(FormatError, match=wrong):
        Recipe(format=format, rounding=SignRound()).check({"layer": (64, 64)})
    kept = Mixed(IntAsym(2), {"*.up_proj": FullPrecision()})
    Recipe(format=kept, rounding=SignRound()).check({"layer": (128, 128)})


def test_held_out_text_is_told_better(tmp_path: Path) -> None:
    model = pretrained("testbed-small", "float32").run(tmp_path)
    texts = [" ".join(world.documents(part)[:300]) for part in ("train", "heldout")]
    seen, unseen = (torch.tensor(model.tokenizer(t)["input_ids"][: 32 * 64]) for t in texts)
    tokens = Tokens(seen.view(32, 64)[:16], torch.ones(16, 64, dtype=torch.bool))
    format = IntAsym(2, 64)
    rounding = SignRound(steps=20, length=64)
    rounded = _run(model, tmp_path, format, rounding, tokens)

    def tell(network: Any) -> float:
        with torch.no_grad():
            ids = unseen.view(32, 64)[:16]
            return float(network(ids, labels=ids).loss)

    assert tell(rounded.network) < tell(quantize_model(model, format).network) - 0.1
