"""Stretched levels: the paper's formulas in float64, their bits, that training with them helps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from harness.core.errors import BitgridError, FormatError
from harness.core.stage import identify, read_component
from harness.method import METHODS
from harness.models import Model, pretrained
from harness.testbed import world
from methods.parts import IntLSQ, IntSEQ, Learned, Recipe, Training
from methods.quantization.rounding import quantize_model
from methods.quantization.seq import ParetoQ
from methods.training.masters import Masters
from methods.training.objectives import CE
from methods.training.step import TrainingStep

# Of a range, in units of it.
LEVELS = {
    1: [-1, 1],
    1.58: [-2 / 3, 0, 2 / 3],
    2: [-3 / 4, -1 / 4, 1 / 4, 3 / 4],
    3: [each / 8 for each in range(-7, 8, 2)],
}


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _refer(w: Tensor, a: Tensor, bits: float) -> Tensor:
    """Values, float64, whose gradients autograd takes: clipping exact, the level straight through.

    The nearest level is looked up, so that no rounding rule is shared with what is tested.
    """
    levels = torch.tensor(LEVELS[bits], dtype=torch.float64)
    if bits == 1:  # a sign(w): the range has sign(w) of all weights
        kept = torch.where(w.abs() < a, w, 0.0)
        return w.detach().sign() * a + kept - kept.detach()
    ratios = (w / a).clamp(-1, 1)
    nearest = (ratios.detach()[..., None] - levels).abs().argmin(-1)
    return (ratios + (levels[nearest] - ratios).detach()) * a


@pytest.mark.parametrize("bits", LEVELS)
@pytest.mark.parametrize("width", [0, 16])
def test_forward_and_gradient_are_those_of_the_paper(bits: float, width: int) -> None:
    weight, slope = _draw(5, 48), _draw(5, 48, seed=1)
    format, cut = IntSEQ(bits, width), (5, -1, width or 48)
    start = format.parameters(weight)["range"]
    sizes = weight.double().abs().view(cut)
    wanted = (sizes.mean(-1) if bits == 1 else sizes.amax(-1))[..., None]
    torch.testing.assert_close(start.double(), wanted, rtol=2**-11, atol=0)
    leaf = weight.clone().requires_grad_()
    reach = (start.float() * 0.6).requires_grad_()  # small enough that weights are clamped
    values = format.quantize_with_gradient(leaf, reach)
    values.backward(slope)
    kept = reach.detach().half()
    exact = weight.double().view(cut).requires_grad_(), kept.double().requires_grad_()
    expected = _refer(*exact, bits)
    expected.backward(slope.double().view(cut))
    largest = 3 if bits == 3 else 1
    assert leaf.grad is not None and reach.grad is not None
    assert exact[0].grad is not None and exact[1].grad is not None
    to_range = exact[1].grad / ((width or 48) * largest) ** 0.5
    found = values, leaf.grad, reach.grad
    for one, other in zip(found, (expected, exact[0].grad, to_range), strict=True):
        torch.testing.assert_close(one.double().view_as(other), other, rtol=1e-5, atol=1e-5)
    assert bool((leaf.grad == 0).any())
    assert torch.equal(format.quantize_with(values.detach(), {"range": kept}), values)


def test_ends_and_zeros_have_levels() -> None:
    """Those of the range itself and of no weight: none is beyond, and two levels have no 0."""
    weight = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
    for bits, levels in LEVELS.items():
        values = IntSEQ(bits, 0).quantize_with(weight, {"range": torch.ones(1, 1, 1)})
        assert values[0, 0] == -values[0, 2] == -values[0, 3]
        assert all(min(abs(float(v) - level) for level in levels) < 1e-6 for v in values[0])
    nothing = torch.zeros(1, 4)
    assert bool(IntSEQ(1.58, 0).quantize(nothing).eq(0).all())
    assert bool(IntSEQ(2, 0).quantize(nothing).isfinite().all())


def test_each_width_has_the_quantiser_of_the_paper_and_its_bits() -> None:
    weight = _draw(4, 32)
    for bits, kind, cost in (
        (1, IntSEQ(1, 16), 2),
        (1.58, IntSEQ(1.58, 16), 2.6),  # five weights a byte
        (2, IntSEQ(2, 16), 3),
        (3, IntLSQ(3, 16), 4),
        (4, IntLSQ(4, 16), 5),
    ):
        chosen = ParetoQ(bits, 16)
        start = chosen.parameters(weight)
        if bits > 2:  # the largest weight of a group has the last code
            largest = weight.view(4, 2, 16).abs().amax(-1, keepdim=True)
            expected = largest.double() / (2 ** (bits - 1) - 1)
            torch.testing.assert_close(start["step"].double(), expected, rtol=2**-11, atol=0)
        else:
            assert torch.equal(start["range"], kind.parameters(weight)["range"])
        assert torch.equal(chosen.quantize(weight), kind.quantize_with(weight, start))
        assert chosen.describe(32) == kind.describe(32)
        assert chosen.bits_per_weight(32) == pytest.approx(cost)
    with pytest.raises(FormatError, match=r"no 5-bit form; bits: 1, 1\.58, 2, 3, 4"):
        ParetoQ(5)


def test_training_it_makes_held_out_text_likelier(tmp_path: Path) -> None:
    """Than rounding alone leaves it."""
    model = pretrained("testbed-small", "float32").run(tmp_path)
    texts = [" ".join(world.documents(part)[:300]) for part in ("train", "heldout")]
    seen, unseen = (
        torch.tensor(model.tokenizer(t)["input_ids"][: 128 * 64]).view(128, 64) for t in texts
    )

    def train(format: Learned) -> tuple[float, float]:
        training = Training(lr=1e-3, dtype="float32")
        masters = Masters.of(model, format, "body", torch.float32)
        step = TrainingStep(training, CE(), None, masters, None)
        for ids in seen[:48].split(8):
            _, norm = step.compute_gradients([(ids, torch.ones_like(ids, dtype=torch.bool))])
            step.update(training.lr, norm)
        return _tell(model, format, unseen), _tell(masters.build_model(), format, unseen)

    for bits in (1.58, 2):
        before, after = train(ParetoQ(bits, 64))
        assert after < before - 1, bits


@torch.no_grad()
def _tell(model: Model, format: Learned, ids: Tensor) -> float:
    """The loss on held-out text once it is rounded."""
    return float(quantize_model(model, format).network(ids[:32], labels=ids[:32]).loss)


@pytest.mark.usefixtures("known_commits")
def test_what_is_not_there_is_refused_in_the_plan() -> None:
    recipe = METHODS.find("paretoq").method
    assert isinstance(recipe, Recipe) and recipe.format == ParetoQ(2, 128)
    with pytest.raises(BitgridError, match="groups of 128 do not divide"):
        recipe.check({"layer": (64, 96)})


def test_keys_tell_numbers_that_changed_and_no_others() -> None:
    """The step of 3 and 4 bits starts elsewhere than it did, and two levels have another gradient:
    values of before are of other keys. Those of 2 bits are what they were."""
    described = {bits: identify(ParetoQ(bits), whole=True) for bits in (1, 1.58, 2, 3, 4)}
    revised = {bits for bits, each in described.items() if each.get("revision") == 2}
    assert revised == {1, 3, 4} and "revision" not in described[2]
    assert identify(IntSEQ(1))["revision"] == 2 and "revision" not in identify(IntSEQ(2))
    for bits, each in described.items():
        assert read_component(each) == ParetoQ(bits)
    with pytest.raises(BitgridError, match=r"^format/paretoq is revision 2 here, not 1$"):
        read_component({n: part for n, part in described[3].items() if n != "revision"})


def test_a_range_of_two_levels_has_the_sign_of_each_weight() -> None:
    weight = torch.tensor([[0.3, -0.1, 2.0, -3.0]]).requires_grad_()
    reach = torch.ones(1, 1, 1).requires_grad_()
    slope = torch.tensor([[1.0, 10.0, 100.0, 1000.0]])
    IntSEQ(1, 0).quantize_with_gradient(weight, reach).backward(slope)
    assert reach.grad is not None and weight.grad is not None
    assert float(reach.grad) == pytest.approx((1 - 10 + 100 - 1000) / 2)  # 1 / sqrt(4)
    assert weight.grad.tolist() == [[1, 10, 0, 0]]
