"""NaN and Inf in logits: found, placed, and never taken for what a mask means by them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from harness.core.errors import ModelError
from harness.models import Model, read_model
from harness.models.finite import are_distributions, run_finite
from tests.support.overflow import spread_too_far

IDS = torch.arange(16)[None] + 5


def logits_of(model: Model) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = run_finite(model, lambda: model.network(IDS, use_cache=False).logits)
    return logits


@pytest.mark.parametrize(
    ("entries", "is_one"),
    [
        ([1.0, 2.0, -3.0], True),
        ([1.0, -torch.inf, -torch.inf], True),  # entries of the vocabulary that are not used
        ([1.0, torch.nan, 2.0], False),
        ([1.0, torch.inf, 2.0], False),
        ([-torch.inf, -torch.inf, -torch.inf], False),
    ],
)
def test_a_row_stands_for_a_distribution_where_softmax_gives_one(
    entries: list[float], is_one: bool
) -> None:
    row = torch.tensor([entries])
    assert are_distributions(row).tolist() == [is_one]
    assert bool(row.softmax(-1).isfinite().all()) is is_one  # the independent reference


def test_the_first_layer_that_overflows_is_named_and_float32_holds_it(tiny_folder: Path) -> None:
    model = spread_too_far(read_model(str(tiny_folder), "float32"))
    assert bool(logits_of(model).isfinite().all())
    model.network.half()
    assert all(bool(p.isfinite().all()) for p in model.network.parameters())
    with pytest.raises(ModelError) as caught:
        logits_of(model)
    # Up and gate fit; their product, which goes into the way back, does not.
    assert str(caught.value) == (
        "logits are NaN in float16, first the input of model.layers.1.mlp.down_proj; "
        "load the model in bfloat16 or float32 (dtype:)"
    )


def test_broken_weights_are_told_from_an_overflow(tiny_folder: Path) -> None:
    model = read_model(str(tiny_folder), "float32").fork()
    layer = model.network.model.layers[0].self_attn.o_proj
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    layer.weight[3, 5] = torch.nan
    with pytest.raises(ModelError) as caught:
        logits_of(model)
    name = "model.layers.0.self_attn.o_proj"
    assert str(caught.value) == f"logits are NaN in float32, first the weights of {name} (weight)"


def test_a_cap_on_logits_hides_nothing(tiny_folder: Path) -> None:
    """Gemma's cap makes 30 of +Inf."""
    model = read_model(str(tiny_folder), "float32")
    head = model.network.lm_head
    overflow = head.register_forward_hook(lambda *_: torch.full((1, 16, 300), torch.inf))
    cap = model.network.register_forward_hook(
        lambda *call: call[2].__setitem__("logits", torch.tanh(call[2].logits / 30) * 30)
    )
    try:
        assert bool(model.network(IDS).logits.isfinite().all())
        with pytest.raises(ModelError, match="logits are Inf in float32"):
            logits_of(model)
    finally:
        overflow.remove(), cap.remove()


def test_of_two_models_the_broken_one_is_looked_at(tiny_folder: Path) -> None:
    sound = read_model(str(tiny_folder), "float32")
    broken = spread_too_far(read_model(str(tiny_folder), "float32"))
    broken.network.half()
    for outer, inner in ((sound, broken), (broken, sound)):

        def both(outer: Model = outer, inner: Model = inner) -> None:
            outer.network(IDS)
            inner.network(IDS)

        with torch.no_grad(), pytest.raises(ModelError, match=r"in float16, first .*down_proj"):
            run_finite(outer, partial(run_finite, inner, both))
    # Nothing is left behind.
    assert not sound.network.lm_head._forward_hooks and not broken.network.lm_head._forward_hooks
