"""EfficientQAT: Block-AP's gradients and what it gains, and steps trained on integers that stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.errors import BitgridError, FormatError
from harness.core.execution import execute
from harness.core.stage import Stage, closure
from harness.data import Tokens
from harness.method import METHODS
from harness.models import Model, matrices, pretrained
from harness.testbed import world
from methods.parts import NF, BlockAP, Grouped, IntAsym, IntLSQ, IntStep, Recipe, Training
from methods.quantization.block_ap import _Layer, _quantize
from methods.quantization.formats import FullPrecision
from methods.quantization.learning import measure
from methods.quantization.mixed import Mixed
from methods.quantization.rounding import Nearest, Round, RoundBlocks, quantize_model
from methods.quantization.walking import sequentially
from methods.training.data import GroundTruth
from methods.training.masters import Masters
from methods.training.objectives import CE, Untrained
from methods.training.step import TrainingStep
from methods.training.train import Train
from tests.methods.conftest import make_llama

FAST = BlockAP(sequences=16, length=32, epochs=3, batch_size=4, weight_lr=2e-3, parameter_lr=1e-3)


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gradients_of_a_block_are_those_of_the_paper(bits: int) -> None:
    """Of w, s and z, in float64: within, (1, q - z - w/s, 0); clamped, (0, q - z, -s)."""
    top = 2**bits - 1
    groups, slope = _draw(6, 2, 16), _draw(6, 2, 16, seed=1)
    step = (_draw(6, 2, 1, seed=2).abs() + 0.5) / top  # too small for some groups
    zero = (_draw(6, 2, 1, seed=3) + top / 2).round().clamp(0, top)
    leaves = [each.clone().requires_grad_() for each in (groups, step, zero)]
    values = _quantize(*leaves, top)
    values.backward(slope)
    w, s, z, g = (each.double() for each in (groups, step, zero, slope))
    free = (w / s).round() + z
    q = free.clamp(0, top)
    within = q == free
    wanted = (
        (q - z) * s,
        g * within,
        (g * (q - z - within * w / s)).sum(-1, keepdim=True),
        (g * -s * ~within).sum(-1, keepdim=True),
    )
    assert 0 < int(within.sum()) < within.numel()
    for found, expected in zip((values, *(x.grad for x in leaves)), wanted, strict=True):
        assert found is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("width", [0, 16])
def test_a_step_has_its_gradient_and_integers_can_stay(bits: int, width: int) -> None:
    weight, slope = _draw(5, 48), _draw(5, 48, seed=1)
    format, cut, top = IntStep(bits, width), (5, -1, width or 48), 2**bits - 1
    start = format.parameters(weight)["step"]
    plain = IntAsym(bits, width)
    apart = format.quantize(weight) != plain.quantize(weight)
    assert float(apart.float().mean()) < 0.01  # where 16 bits of the step move a zero point
    assert format.bits_per_weight(48) == plain.bits_per_weight(48)
    step = (start.float() * 0.7).requires_grad_()  # small enough that weights are clamped
    leaf = weight.clone().requires_grad_()
    values = format.quantize_with_gradient(leaf, step)
    values.backward(slope)
    w, s, g = weight.double().view(cut), step.detach().half().double(), slope.double().view(cut)
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    z = (-low * top / (high - low)).round()
    free = (w / s).round() + z
    q = free.clamp(0, top)
    within = q == free
    to_step = (g * (q - z - within * w / s)).sum(-1, keepdim=True)
    assert leaf.grad is not None and step.grad is not None and not bool(within.all())
    for found, wanted in (
        (values, (q - z) * s),
        (leaf.grad, g * within),
        (step.grad, to_step),
    ):
        torch.testing.assert_close(found.double().view_as(wanted), wanted, rtol=1e-4, atol=1e-5)

    kept = step.detach().half()
    codes = format.encode(values.detach(), kept)
    assert torch.equal(codes.double().view(cut), q - z)
    moved = (kept.float() * 1.5).requires_grad_()
    format.decode(codes, moved).backward(slope)
    held = format.decode(codes, moved.detach()).double().view(cut)
    torch.testing.assert_close(held, (q - z) * moved.detach().half().double())
    assert moved.grad is not None
    expected = (g * (q - z)).sum(-1, keepdim=True)
    torch.testing.assert_close(moved.grad.double(), expected, rtol=1e-4, atol=1e-5)
    again = format.quantize_with(held.float().view(5, 48), {"step": moved.detach()})
    assert torch.equal(again.double().view(cut), held)  # integers come back from the values


def _tokens() -> Tokens:
    ids = torch.randint(3, 97, (16, 32), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


class _Base(Stage[Any]):
    kind = "test-block-ap-base"


class _Text(Stage[Any]):
    kind = "test-block-ap-text"


def _round(
    model: Model, work: Path, format: Grouped, rounding: BlockAP = FAST, tokens: Any = None
) -> Model:
    stage = RoundBlocks(_Base(), _Base(), _Text(), format, rounding)
    result: Model = execute(stage, {_Base().key: model, _Text().key: tokens or _tokens()}, work)
    return result


@pytest.mark.parametrize("format", [IntAsym(2, 32), IntStep(3, 48, tail=True)], ids=str)
def test_each_block_is_nearer_to_the_original(format: Any, tmp_path: Path) -> None:
    """Than rounded to nearest, which is where it starts."""
    losses = []
    for block in sequentially(make_llama(), _tokens(), tmp_path, originals=True, at_once=4):
        for matrix in block.layers.values():
            start = _Layer(matrix, format).make_values().detach()
            plain = IntAsym(format.bits, format.group_size, format.tail)
            torch.testing.assert_close(start, plain.quantize(matrix.weight))
        nearest = {m.parameter_name: format.quantize(m.weight) for m in block.layers.values()}
        before = measure(block, nearest)
        for name, weight in FAST.round_block(block, format).items():
            if ":" not in name:
                block.layers[name].replace(weight)
        losses.append(measure(block, {}) / before)
    assert max(losses) < 0.8


def _train(model: Model, format: Any, tokens: Tensor, lr: float) -> Masters:
    training = Training(lr=lr, dtype="float32", trained="parameters")
    masters = Masters.of(model, format, "parameters", torch.float32)
    step = TrainingStep(training, CE(), None, masters, None)
    for ids in tokens.split(8):
        _, norm = step.compute_gradients([(ids, torch.ones_like(ids, dtype=torch.bool))])
        step.update(lr, norm)
    return masters


def test_steps_move_and_integers_stay(tmp_path: Path) -> None:
    """From what the blocks chose, however far: stored are those integers times the steps."""
    format = IntStep(3, 32)
    rounded = _round(make_llama(), tmp_path, format)
    rounded.check()
    masters = _train(rounded, format, _tokens().ids, 2e-2)
    held = [w for w in masters.weights.values() if not w.requires_grad]
    assert len(held) == len(rounded.quantized) and {w.dtype for w in held} == {torch.int8}
    trained = masters.build_model()
    result = quantize_model(trained, format)
    result.check()
    masters.requantize()
    for name, matrix in matrices(result.network).items():
        before, after = (m.format_parameters[name]["step"] for m in (rounded, result))
        assert after.dtype == torch.float16
        chosen = format.encode(matrices(rounded.network)[name].weight, before)
        assert float((after.float() / before.float() - 1).abs().max()) > 0.2  # codes would change
        assert torch.equal(matrix.weight, format.decode(chosen, after.float()))
        assert torch.equal(matrix.weight, matrices(masters.network)[name].weight)
        packed = 3 + (8 * after.nbytes + 3 * after.numel()) / matrix.weight.numel()
        assert result.quantized[name].bits_per_weight == packed
    norms = [n for n, _ in result.network.named_parameters() if "norm" in n]
    theirs = rounded.network.state_dict()
    assert norms and all(torch.equal(result.network.state_dict()[n], theirs[n]) for n in norms)
    layer, distance = masters.find_furthest()
    assert layer in result.quantized and 0.01 < distance < 2


def test_held_out_text_is_told_better_by_blocks_and_again_by_steps(tmp_path: Path) -> None:
    model = pretrained("testbed-small", "float32").run(tmp_path)
    texts = [" ".join(world.documents(part)[:300]) for part in ("train", "heldout")]
    seen, unseen = (
        torch.tensor(model.tokenizer(t)["input_ids"][: 96 * 64]).view(96, 64) for t in texts
    )
    format = IntStep(2, 64)
    text = Tokens(seen[:32], torch.ones(32, 64, dtype=torch.bool))
    blocks = BlockAP(length=64, batch_size=8, weight_lr=1e-3, parameter_lr=1e-3)
    rounded = _round(model, tmp_path, format, blocks, text)
    trained = quantize_model(_train(rounded, format, seen[32:], 1e-3).build_model(), format)

    def tell(model: Model) -> float:
        with torch.no_grad():
            return float(model.network(unseen[:32], labels=unseen[:32]).loss)

    nearest, blockwise, whole = map(tell, (quantize_model(model, format), rounded, trained))
    assert blockwise < nearest - 0.5 and whole < blockwise - 0.03


@pytest.mark.usefixtures("known_commits")
def test_the_recipe_rounds_and_then_trains() -> None:
    method = METHODS.find("efficient-qat").method
    assert isinstance(method, Recipe) and isinstance(method.train, Training)
    short = GroundTruth(text="testbed", length=64)
    calibrating = dataclasses.replace(FAST, text="testbed")
    method = dataclasses.replace(method, data=short, rounding=calibrating, format=IntStep(2, 64))
    base = pretrained("testbed-small", dtype="float32")
    root = method.build(base, 0)
    kinds = [type(each) for each in closure([root])]
    assert isinstance(root, Round) and kinds.count(RoundBlocks) == 1
    assert isinstance(root.model, Train) and isinstance(root.model.student, RoundBlocks)
    assert [step.name for step in method.steps(base, 0)] == ["full precision", "ce"]
    assert method.steps(base, 0)[-1].after == root
    alone = dataclasses.replace(method, objective=Untrained()).build(base, 0)
    assert alone == root.model.student
    nearest = dataclasses.replace(method, rounding=Nearest()).build(base, 0)
    assert not any(isinstance(each, RoundBlocks) for each in closure([nearest]))
    for format, wrong in (
        (IntAsym(2, 64), "'int-asym' has none; format: int-step or int-lsq"),
        (Mixed(IntStep(2, 64), {"*.up_proj": IntAsym(4, 64)}), "and 'int-asym' has none"),
    ):
        with pytest.raises(BitgridError, match=wrong):
            dataclasses.replace(method, format=format).build(base, 0)


@pytest.mark.parametrize(
    ("format", "wrong"),
    [
        (FullPrecision(), "format 'none' has not; format: int-step or int-asym"),
        (NF(3), "rounding 'block-ap' trains steps and zero points, which format 'nf' has not"),
        (IntLSQ(3), "which format 'int-lsq' has not"),
    ],
)
def test_a_format_without_zero_points_is_refused_in_the_plan(format: Any, wrong: str) -> None:
    with pytest.raises(FormatError, match=wrong):
        Recipe(format=format, rounding=BlockAP()).check({"layer": (64, 64)})
