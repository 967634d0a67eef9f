"""OmniQuant: its gradients, that scales change nothing but rounding, and that a block gets
better and a model with it."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import methods.quantization.rehearsal  # noqa: F401 (what a plan tries)
from harness.core.errors import BitgridError, FormatError, ModelError
from harness.core.execution import execute
from harness.core.stage import Stage
from harness.data import Tokens
from harness.models import Model, matrices, pretrained
from harness.models.rehearsal import rehearse
from harness.testbed import world
from methods.quantization.activations import Activations
from methods.quantization.awq import find_foldable
from methods.quantization.equivalent import find_channels, transform
from methods.quantization.formats import NF, FullPrecision, IntAsym, IntSym, bounds
from methods.quantization.learning import Even, measure, split_steps, store_in
from methods.quantization.mixed import Mixed
from methods.quantization.omniquant import OmniQuant, _Learnt
from methods.quantization.online_hadamard import OnlineHadamard
from methods.quantization.rounding import RoundBlocks, quantize_model
from methods.quantization.walking import Block, sequentially
from methods.recipe import Recipe
from tests.methods.conftest import make_llama
from tests.support import architectures

FAST = OmniQuant(epochs=6, batch_size=4, clip_lr=0.2, sequences=16, length=32)
SCALED = dataclasses.replace(FAST, equivalent=True)


class _Base(Stage[Any]):
    kind = "test-omniquant-base"


class _Given(Stage[Any]):
    kind = "test-omniquant-given"


class _Text(Stage[Any]):
    kind = "test-omniquant-text"


def _tokens() -> Tokens:
    ids = torch.randint(3, 97, (16, 32), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def _run(
    base: Model,
    work: Path,
    format: Any,
    rounding: OmniQuant,
    given: Model | None = None,
    tokens: Tokens | None = None,
) -> Model:
    work.mkdir(exist_ok=True)
    stage = RoundBlocks(_Given(), _Base(), _Text(), format, rounding)
    values = {_Given().key: given or base, _Base().key: base, _Text().key: tokens or _tokens()}
    result: Model = execute(stage, values, work)
    return result


def _first_block(model: Model, work: Path) -> Block:
    return next(sequentially(model.fork(), _tokens(), work, originals=True))


# --- what is learnt -------------------------------------------------------------------------------


def _reference(
    weight: Tensor, scales: Tensor, clips: tuple[Tensor, Tensor], format: Even
) -> Tensor:
    """Equations 2 and 3 of the paper, in the weight's float64, codes moving as weights do."""
    groups = (weight * scales).unflatten(-1, (-1, format.group_size))
    low, high = (end * p.sigmoid() for end, p in zip(bounds(groups), clips, strict=True))
    if isinstance(format, IntAsym):
        scale = (high - low) / (2**format.bits - 1)
    else:
        scale = torch.maximum(high, -low) / (2 ** (format.bits - 1) - 1)
    scale = scale + (scale.detach().half().double() - scale.detach())  # it is kept in 16 bits
    zero = -(low / scale).detach().round() if isinstance(format, IntAsym) else 0.0
    top = 2**format.bits - 1 if isinstance(format, IntAsym) else 2 ** (format.bits - 1) - 1
    ratios = groups / scale
    codes = ratios + (ratios.round() - ratios).detach() + zero
    first, last = (0, top) if isinstance(format, IntAsym) else (-top, top)
    if isinstance(format, IntSym):  # a side that is clipped more than the other ends where it ends
        first, last = (low / scale).detach().round(), (high / scale).detach().round()
    inside = (codes >= first) & (codes <= last)
    edge = torch.minimum(torch.maximum(codes, low * 0 + first), low * 0 + last).detach()
    return ((torch.where(inside, codes, edge) - zero) * scale).flatten(-2)


@pytest.mark.parametrize("format", [IntAsym(2, 16), IntAsym(4, 32), IntSym(3, 16)], ids=str)
def test_gradients_are_those_of_the_formula(format: Even, tmp_path: Path) -> None:
    block = _first_block(make_llama(), tmp_path)
    norm, names = f"{block.name}.input_layernorm", [n for n in block.layers if "q_proj" in n]
    learnt = _Learnt(block, dict.fromkeys(names, format), {norm: names})
    generator = torch.Generator().manual_seed(0)
    seed = torch.randn(64, 64, generator=generator)
    scales, clips, weight = (
        learnt.channels[0].scales,
        learnt.clips[names[0]],
        block.layers[names[0]],
    )
    with torch.no_grad():
        for each in clips:
            each.copy_(torch.randn(each.shape, generator=generator))
    made = learnt.make_values()
    (made[names[0]] * seed).sum().backward()
    exact = [each.detach().double().requires_grad_() for each in (scales, *clips)]
    expected = _reference(weight.weight.double(), exact[0], (exact[1], exact[2]), format)
    (expected * seed.double()).sum().backward()
    torch.testing.assert_close(made[names[0]].double(), expected, rtol=1e-5, atol=1e-5)
    for one, other in zip((scales, *clips), exact, strict=True):
        assert one.grad is not None and other.grad is not None and bool(one.grad.any())
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-3, atol=1e-3)
    plain = block.module.get_parameter("input_layernorm.weight")
    torch.testing.assert_close(made[f"{norm}.weight"] * scales, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "shifted"), [("llama", 0), ("qwen2", 0), ("opt", 3)])
def test_transformed_a_block_computes_the_same(kind: str, shifted: int, tmp_path: Path) -> None:
    """Biases too, shifted where all have some; what feed-forward modules end in reads the same."""
    model = pretrained(str(architectures.build(kind, tmp_path / "model")), "float32").run(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.network.named_parameters():
        if name.endswith("bias") and "layers." in name:
            tensor.data.normal_(generator=generator)
    block = _first_block(model, tmp_path)
    channels = find_channels(block, find_foldable(model))
    read = {name.rpartition(".")[2] for each in channels for name in each.readers}
    assert {"q_proj", "k_proj", "v_proj"} < read and not {"down_proj", "fc2"} & read
    assert sum(each.shifts is not None for each in channels) == shifted
    plain = measure(block, {})
    with torch.no_grad():
        for each in channels:
            for learnt in each.list_learnt():
                learnt.mul_(torch.rand(learnt.shape, generator=generator) + 0.5)
        made = transform(block, channels)
    nearest = {n: IntSym(8, 0).quantize(m.weight) for n, m in block.layers.items()}
    assert plain == 0 < measure(block, store_in(block, nearest))
    assert measure(block, store_in(block, made)) < 1e-5 * measure(block, store_in(block, nearest))
    weights = block.module.state_dict()
    ours = {n.removeprefix(f"{block.name}."): w for n, w in store_in(block, made).items()}
    assert all(not torch.equal(weights[name], each) for name, each in ours.items())


@pytest.mark.parametrize(
    ("format", "rounding"),
    [(IntAsym(2, 32), FAST), (IntSym(3, 32), SCALED), (IntAsym(3, 48, tail=True), SCALED)],
)
def test_each_block_is_nearer_to_the_original(
    format: Even, rounding: OmniQuant, tmp_path: Path
) -> None:
    """Than rounded to nearest, on its text; its values are the format's, and stay."""
    model = make_llama()
    losses, learn = [], rounding.bind(model, format)
    for block in sequentially(model.fork(), _tokens(), tmp_path, originals=True):
        before = measure(
            block, store_in(block, {n: format.quantize(m.weight) for n, m in block.layers.items()})
        )
        for name, tensor in learn(block).items():
            block.replace(name, tensor)
        losses.append(measure(block, {}) / before)
    assert max(losses) < 0.97
    rounded = _run(model, tmp_path, format, rounding)
    assert set(rounded.quantized) == set(matrices(model.network)) and not rounded.latent
    rounded.check()
    norms = [n for n, p in rounded.network.named_parameters() if p.dim() == 1 and "layers." in n]
    ours, theirs = rounded.network.state_dict(), model.network.state_dict()
    assert all(torch.equal(ours[n], theirs[n]) is not rounding.equivalent for n in norms)
    again = _run(model, tmp_path / "again", format, rounding).network.state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in ours.items())


@pytest.mark.parametrize("rounding", [FAST, SCALED])
def test_what_does_not_help_is_not_kept(rounding: OmniQuant, tmp_path: Path) -> None:
    """A block of which nothing reaches the output stays at the nearest levels, and its norms."""
    model, format = make_llama(), IntAsym(2, 32)
    for matrix in matrices(model.network).values():
        if "o_proj" in matrix.name or "down_proj" in matrix.name:
            matrix.replace(torch.zeros_like(matrix.weight))
    rounded = _run(model, tmp_path, format, rounding).network.state_dict()
    nearest = quantize_model(model, format).network.state_dict()
    assert all(torch.equal(weight, nearest[name]) for name, weight in rounded.items())


def test_layers_that_stay_in_16_bits_are_scaled_with_the_others(tmp_path: Path) -> None:
    model, format = make_llama(), Mixed(IntAsym(2, 32), {"*.q_proj": FullPrecision()})
    rounded, nearest = _run(model, tmp_path, format, SCALED), quantize_model(model, format)
    assert rounded.quantized == nearest.quantized
    rounded.check()
    assert _differ(rounded, model) < 0.95 * _differ(nearest, model)


def test_experts_are_clipped_and_not_scaled(tmp_path: Path) -> None:
    base = pretrained(str(architectures.build("mixtral", tmp_path / "model")), "float32")
    model, format = base.run(tmp_path), IntAsym(2, 32)
    rounded, nearest = _run(model, tmp_path, format, FAST), quantize_model(model, format)
    assert set(rounded.quantized) == set(nearest.quantized)
    assert _differ(rounded, model) < _differ(nearest, model)
    stage = RoundBlocks(base, base, _Text(), format, SCALED)
    with pytest.raises(ModelError, match="omniquant cannot scale what its experts read"):
        rehearse(stage)


def _differ(model: Model, reference: Model) -> float:
    with torch.no_grad():
        ours, theirs = (each.network(_tokens().ids).logits for each in (model, reference))
    return float((ours - theirs).square().mean())


# --- what is asked for ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "wrong"),
    [
        (FullPrecision(), "format 'none' has not; format: int-asym or int-sym"),
        (NF(3), "rounding 'omniquant' learns ranges of even steps, which format 'nf' has not"),
        (Mixed(IntAsym(2), {"*.up_proj": NF(3)}), "which format 'nf' has not"),
    ],
)
def test_a_format_without_even_steps_is_refused_in_the_plan(format: Any, wrong: str) -> None:
    with pytest.raises(FormatError, match=wrong):
        Recipe(format=format, rounding=OmniQuant()).check({"layer": (64, 64)})


def test_what_mixes_channels_is_refused_in_the_plan(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder), "float32")

    def build(attached: Any, equivalent: bool) -> Stage[Model]:
        rounding = OmniQuant(text="testbed", length=64, equivalent=equivalent)
        return Recipe(rounding=rounding, attach=(attached,)).build(base, 0)

    with pytest.raises(BitgridError, match="attachment 'online-hadamard' mixes"):
        build(OnlineHadamard(), True)
    build(OnlineHadamard(), False), build(Activations(), True)


def test_a_rate_of_nothing_makes_no_other_cell(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder), "float32")

    def key(**settings: Any) -> str:
        return OmniQuant(text="testbed", length=64, **settings).build(base, base, IntAsym(2)).key

    assert key() == key(scale_lr=0.1) != key(equivalent=True)
    assert key(equivalent=True) != key(equivalent=True, scale_lr=0.1)


def test_epochs_are_the_papers() -> None:
    two, three = {"a": IntAsym(3), "b": IntSym(2)}, {"a": IntAsym(3)}
    assert [OmniQuant()._count_epochs(each) for each in (two, three)] == [40, 20]
    assert OmniQuant(epochs=7)._count_epochs(two) == 7
    assert split_steps(5, 4, 2048) == [range(2), range(2, 4), range(4, 5)]


# --- a model that tells stories -------------------------------------------------------------------


@cache
def _read_stories() -> tuple[Model, Tokens, Tensor]:
    model = pretrained("testbed-small", "float32").run(Path())
    texts = [" ".join(world.documents(part)[:300]) for part in ("train", "heldout")]
    seen, unseen = (torch.tensor(model.tokenizer(t)["input_ids"][: 16 * 64]) for t in texts)
    tokens = Tokens(seen.view(16, 64), torch.ones(16, 64, dtype=torch.bool))
    return model, tokens, unseen.view(16, 64)


def _tell(model: Model) -> float:
    ids = _read_stories()[2]
    with torch.no_grad():
        return float(model.network(ids, labels=ids).loss)


def test_held_out_text_is_told_better(tmp_path: Path) -> None:
    """Clipped than to nearest, by much at 2 bits."""
    (model, tokens, _), format = _read_stories(), IntAsym(2, 64)
    rounding = dataclasses.replace(FAST, length=64, epochs=2)
    clipped = _run(model, tmp_path, format, rounding, tokens=tokens)
    assert _tell(clipped) < _tell(quantize_model(model, format)) - 1


def test_with_rounded_activations_scales_help(tmp_path: Path) -> None:
    (model, tokens, _), format = _read_stories(), IntSym(4, 0)
    attached = model.attach(Activations(bits=4))
    losses = [_tell(quantize_model(attached, format))]
    for rounding in (FAST, SCALED):
        slow = dataclasses.replace(rounding, length=64, epochs=2, clip_lr=0.02)
        losses.append(
            _tell(_run(model, tmp_path / str(rounding.equivalent), format, slow, attached, tokens))
        )
    assert losses[0] > losses[1] > losses[2] + 0.01
