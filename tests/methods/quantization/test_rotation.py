"""The folded rotation: orthogonal, the same function where it folds, refused where it does not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from scipy.linalg import hadamard

from harness.core.errors import ModelError
from harness.models import Model, matrices, pretrained, run_trunk
from methods.quantization.folding import fold_rotation
from methods.quantization.formats import IntAsym
from methods.quantization.readings import read_logits
from methods.quantization.rotation import make_rotation
from methods.quantization.rounding import quantize_model
from tests.methods.conftest import make_llama
from tests.support import architectures


@pytest.mark.parametrize("width", [1, 2, 64, 96, 172, 576])
def test_it_is_orthogonal_and_flat(width: int) -> None:
    rotation = make_rotation(width, 0)
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(width, dtype=torch.float64))
    assert not torch.equal(make_rotation(96, 1), make_rotation(96, 0))


def test_of_a_power_of_two_it_is_sylvesters_with_signs() -> None:
    rotation, expected = make_rotation(64, 3), torch.from_numpy(hadamard(64)).double() / 8
    signs = (rotation / expected).round()
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert torch.equal(signs, signs[:, :1].expand(64, 64))


def test_hidden_states_are_turned_and_logits_are_not() -> None:
    model = make_llama()
    for name, parameter in model.network.named_parameters():
        if "norm" in name:
            parameter.data.uniform_(0.5, 2)
    ids = torch.randint(3, 97, (2, 20))
    rotation = make_rotation(64, 0)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    turned = fold_rotation(model, rotation)
    with torch.no_grad():
        torch.testing.assert_close(
            turned.network(ids).logits, model.network(ids).logits, rtol=1e-4, atol=1e-4
        )
        # Behind the last norm, whose weight went into the head.
        states, scale = run_trunk(model.network, ids), model.network.model.norm.weight
        expected = states / scale @ rotation.float()
    torch.testing.assert_close(run_trunk(turned.network, ids), expected, rtol=1e-3, atol=1e-4)
    assert all(torch.equal(before[n], t) for n, t in model.network.state_dict().items())
    assert turned.latent


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma", "mistral", "phi3"])
def test_it_folds_into(name: str, tmp_path: Path) -> None:
    """Tied ends, biases, norms within heads, norms that multiply by 1 + w, fused projections."""
    base = pretrained(str(architectures.build(name, tmp_path / "model")), "float32")
    model = base.run(tmp_path)
    turned = fold_rotation(model, make_rotation(64, 0)).fork(latent=False)
    turned.check()
    again = Model.load(tmp_path, turned.save(tmp_path))
    ids = torch.arange(8, 28)[None]
    with torch.no_grad():
        logits = model.network(ids).logits
        torch.testing.assert_close(again.network(ids).logits, logits, rtol=1e-3, atol=1e-3)


def test_what_is_compared_is_computed_in_float32() -> None:
    """Of weights in bfloat16, as they are: what a model itself rounds is no fault of a fold."""
    model = make_llama()
    model.network.to(torch.bfloat16)
    held = dict(model.network.named_parameters())
    ids = torch.arange(8)[None]
    with torch.no_grad():
        wide = copy.deepcopy(model.network).float()(ids).logits
        rounded = model.network(ids).logits.float()
    assert torch.equal(read_logits(model), wide)
    assert not torch.equal(rounded, wide)
    head = model.network.get_output_embeddings()
    stop = head.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        read_logits(model)
    stop.remove()
    assert all(held[name] is each for name, each in model.network.named_parameters())
    assert (
        float((read_logits(fold_rotation(model, make_rotation(64, 0))) - wide).abs().mean()) < 0.02
    )


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "mixtral", "olmo"])
def test_what_it_does_not_fold_into_is_refused(name: str, tmp_path: Path) -> None:
    """Norms that subtract a mean, have no weight or stand behind a block; experts."""
    base = pretrained(str(architectures.build(name, tmp_path)), "float32")
    with pytest.raises(ModelError, match="a rotation"):
        fold_rotation(base.run(tmp_path), make_rotation(64, 0))


def test_a_channel_that_stands_out_hurts_less() -> None:
    """What rotations are for: a few large channels of what layers read widen no group alone."""
    model, format = make_llama(), IntAsym(3, 64)
    for name, matrix in matrices(model.network).items():
        if "q_proj" in name or "gate_proj" in name:
            matrix.stored.data[:, 3] *= 30
    ids = torch.randint(3, 97, (4, 32))

    def measure(rounded: Model) -> float:
        with torch.no_grad():
            gap = rounded.network(ids).logits - model.network(ids).logits
        return float(gap.square().mean())

    turned = fold_rotation(model, make_rotation(64, 0))
    assert measure(quantize_model(turned, format)) < 0.9 * measure(quantize_model(model, format))
