"""The learnt rotation: orthogonal, folded exactly, its gradient, its step, and what it gains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.stage import Stage
from harness.data import Tokens
from harness.models import Model, matrices, pretrained
from harness.testbed import world
from methods.quantization import spinquant
from methods.quantization.folding import Rotation, fold_rotation, turn_weights
from methods.quantization.formats import FullPrecision, IntAsym
from methods.quantization.rotation import make_rotation
from methods.quantization.rounding import quantize_model
from methods.quantization.spinquant import (
    LearntRotation,
    SpinQuant,
    find_loss,
    round_turned,
    step_cayley,
)
from tests.methods.conftest import make_llama
from tests.support import architectures
from tests.support.stages import execute_alone


def _draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_a_step_stays_orthogonal_and_is_the_cayley_transform_of_the_gradient() -> None:
    turn, slope = make_rotation(48, 0), _draw(48, 48)
    for rate in (1e-3, 1.5):
        moved = step_cayley(turn, slope, rate)
        torch.testing.assert_close(moved @ moved.T, torch.eye(48, dtype=torch.float64))
    skew = slope @ turn.T - turn @ slope.T
    rate = 1e-6  # R - a A R to first order
    small = step_cayley(turn, slope, rate)
    torch.testing.assert_close((turn - small) / rate, skew @ turn, rtol=1e-3, atol=1e-3)
    largest = 1 / float(skew.abs().sum(0).max())
    assert torch.equal(step_cayley(turn, slope, 1e9), step_cayley(turn, slope, largest))
    assert torch.equal(step_cayley(turn, torch.zeros_like(slope), 1.5), turn)


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma", "phi3"])
def test_turned_further_a_network_is_what_it_is_rotated_by_both(name: str, tmp_path: Path) -> None:
    model = pretrained(str(architectures.build(name, tmp_path)), "float32").run(tmp_path)
    first, second = make_rotation(64, 0), torch.linalg.qr(_draw(64, 64))[0]
    turned = turn_weights(fold_rotation(model, first).network, second.float())
    whole = dict(fold_rotation(model, first @ second).network.named_parameters())
    ids = torch.arange(8, 28)[None]
    for parameter, weight in turned.items():
        torch.testing.assert_close(weight, whole[parameter], rtol=1e-3, atol=1e-4)
    network = fold_rotation(model, first).network
    given = torch.func.functional_call(network, turned, (), {"input_ids": ids, "use_cache": False})
    with torch.no_grad():
        expected = model.network(ids).logits
    torch.testing.assert_close(given.logits, expected, rtol=1e-3, atol=1e-3)


def test_weights_are_rounded_as_the_rotated_model_is() -> None:
    model, format, first = make_llama(), IntAsym(3, 32), make_rotation(64, 0)
    second = torch.linalg.qr(_draw(64, 64))[0]
    network = fold_rotation(model, first).network
    made = round_turned(network, second.float(), format)
    rounded = quantize_model(fold_rotation(model, first @ second), format)
    for name, matrix in matrices(rounded.network).items():
        found = made[f"{name}.weight"]
        # What lies between two levels goes either way, and ranges end on weights.
        assert torch.isclose(found, matrix.weight, atol=1e-4).float().mean() > 0.99, name


class _Base(Stage[Any]):
    kind = "test-spinquant-base"


class _Tokens(Stage[Any]):
    kind = "test-spinquant-tokens"


def _pack(model: Model, part: Any, count: int) -> Tokens:
    text = " ".join(world.documents(part)[:400])
    ids = torch.tensor(model.tokenizer(text)["input_ids"][: count * 64]).view(count, 64)
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def _learn(model: Model, tokens: Tokens, **fields: Any) -> Rotation:
    stage = LearntRotation(_Base(), _Tokens(), IntAsym(2, 64), 8, 8, 1.5, 0)
    values = {_Base().key: model, _Tokens().key: tokens}
    result: Rotation = execute_alone(replace(stage, **fields), values)
    return result


def _tell(model: Model, tokens: Tokens) -> float:
    with torch.no_grad():
        return float(find_loss(model.network, {}, tokens.ids))


def test_held_out_text_is_told_better_than_by_the_rotation_it_starts_from(tmp_path: Path) -> None:
    model = pretrained("testbed-small", "float32").run(tmp_path)
    seen, unseen = _pack(model, "train", 48), _pack(model, "heldout", 48)
    learnt = _learn(model, seen)
    start = make_rotation(len(learnt.matrix), 0)
    eye = torch.eye(len(start), dtype=torch.float64)
    torch.testing.assert_close(learnt.matrix @ learnt.matrix.T, eye)
    turned = fold_rotation(model, learnt.matrix)
    assert abs(_tell(turned, unseen) - _tell(model, unseen)) < 1e-3  # folded, not rounded
    before = _tell(quantize_model(fold_rotation(model, start), IntAsym(2, 64)), unseen)
    after = _tell(quantize_model(turned, IntAsym(2, 64)), unseen)
    assert after < before - 0.1


def test_another_seed_is_another_rotation_and_of_no_levels_there_is_none() -> None:
    model, ids = make_llama(), torch.randint(3, 97, (8, 32))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    one, two = (_learn(model, tokens, steps=1, seed=seed).matrix for seed in (0, 1))
    assert not torch.allclose(one, two)
    assert torch.equal(one, _learn(model, tokens, steps=1).matrix)
    assert SpinQuant().build(_Base(), FullPrecision()) == _Base()


def test_it_goes_on_at_the_step_that_it_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, ids = make_llama(), torch.randint(3, 97, (8, 32))
    tokens = Tokens(ids, torch.ones_like(ids, dtype=torch.bool))
    stage = LearntRotation(model, tokens, IntAsym(2, 32), 14, 4, 1.5, 0)
    (tmp_path / "whole").mkdir()
    whole = stage.run(tmp_path / "whole").matrix
    left = 12

    def stop(turn: Tensor, slope: Tensor, rate: float) -> Tensor:
        nonlocal left
        left -= 1
        if not left:
            raise KeyboardInterrupt
        return step_cayley(turn, slope, rate)

    monkeypatch.setattr(spinquant, "step_cayley", stop)
    with pytest.raises(KeyboardInterrupt):
        stage.run(tmp_path)
    left = 5  # four steps of 14 are left after the ten that were kept
    assert torch.equal(stage.run(tmp_path).matrix, whole)
    assert left == 1
