"""Attachments: forked, stored and checked with the model; refused where they would not act."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from harness.core.errors import ModelError
from harness.core.fingerprint import find_change
from harness.models import (
    Attach,
    Attachment,
    Model,
    change_caches,
    change_inputs,
    check_applied,
    find_attachments,
    matrices,
    pretrained,
    read_model,
    run_trunk,
)
from harness.models.rehearsal import rehearse
from tests.support.architectures import build, make

IDS = torch.arange(24).view(2, 12) * 7 + 5


@dataclass(frozen=True)
class Scaled(Attachment):
    name = "test-scaled"
    by: float = 2.0
    layer: str = "down_proj"

    @property
    def label(self) -> str:
        return f"S{self.by:g}"

    def attach(self, network: PreTrainedModel) -> None:
        chosen = [each for name, each in matrices(network).items() if name.endswith(self.layer)]
        change_inputs(self, network, chosen)

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        return read * self.by


@dataclass(frozen=True)
class Dimmed(Attachment):
    name = "test-dimmed"

    @property
    def label(self) -> str:
        return "D"

    def attach(self, network: PreTrainedModel) -> None:
        change_caches(self, network)

    def change_cached(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        return keys / 2, values * 3


BOTH = (Scaled(), Dimmed())


@pytest.fixture
def model(tiny_folder: Path) -> Model:
    return read_model(str(tiny_folder), "float32")


@torch.no_grad()
def logits(model: Model) -> Tensor:
    found: Tensor = model.network(IDS, use_cache=False).logits
    return found


def test_they_act_where_they_say(model: Model) -> None:
    by_hand = model.fork()
    for name, matrix in matrices(by_hand.network).items():
        # Linear maps: what is read is scaled just as well by the weight, or by what writes it.
        factor = {"down_proj": 2.0, "k_proj": 0.5, "v_proj": 3.0}.get(name.rpartition(".")[2], 1)
        matrix.replace(matrix.weight * factor)
    torch.testing.assert_close(logits(model.attach(*BOTH)), logits(by_hand), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(model), logits(by_hand), atol=0.1)


def test_a_fork_neither_loses_nor_doubles_them(model: Model) -> None:
    plain, attached = logits(model), model.attach(Scaled()).attach(Dimmed())
    assert attached.attachments == BOTH and model.attachments == ()
    forked = attached.fork().fork()
    assert torch.equal(logits(forked), logits(attached))
    assert torch.equal(logits(model), plain)
    assert torch.equal(logits(forked.attach(Scaled(0.5))), logits(model.attach(Dimmed())))
    forked.check()


def test_what_was_stored_comes_back_with_them(model: Model, tmp_path: Path) -> None:
    attached = model.attach(Scaled(0.25), Dimmed())
    facts = attached.save(tmp_path)
    assert facts["attachments"][0] == {
        "component": "attachment/test-scaled",
        "by": 0.25,
        "layer": "down_proj",
    }
    loaded = Model.load(tmp_path, facts)
    assert torch.equal(logits(loaded), logits(attached))
    assert find_change(attached.fingerprint(), loaded.fingerprint()) is None
    loaded.check()
    del facts["attachments"]  # of before there were any
    assert Model.load(tmp_path, facts).attachments == ()


def _unhook(model: Model) -> None:
    model.network.model.layers[1].mlp.down_proj._forward_pre_hooks.clear()


def _unwatch(model: Model) -> None:
    model.network.model._forward_hooks.clear()


def _double(model: Model) -> None:
    Scaled().attach(model.network)


def _undeclare(model: Model) -> None:
    model.attachments = ()


def _lose(model: Model) -> None:
    model.network = model.network.__class__.from_pretrained(model.network.name_or_path)


def _swap(model: Model) -> None:
    model.attachments = (Scaled(3.0), Dimmed())


@pytest.mark.parametrize("fault", [_unhook, _unwatch, _double, _undeclare, _lose, _swap])
def test_others_than_those_declared_are_refused(
    fault: Callable[[Model], None], model: Model
) -> None:
    attached = model.attach(*BOTH)
    before = attached.fingerprint()
    attached.check()
    fault(attached)
    with pytest.raises(ModelError, match="what acts on it while it runs is"):
        attached.check()
    assert find_change(before, attached.fingerprint()) is not None


def test_a_method_may_add_but_not_lose_them(model: Model) -> None:
    attached = model.attach(Dimmed())
    check_applied(attached, attached.attach(Scaled()), ())
    with pytest.raises(ModelError, match="`apply` lost the attachment 'test-dimmed'"):
        check_applied(attached, model.fork(), ())


def test_a_place_that_is_not_passed_stops_the_run(model: Model) -> None:
    attached = model.attach(*BOTH)
    mlp = attached.network.model.layers[1].mlp
    mlp.forward = lambda states: states @ mlp.down_proj.weight[:, :64].T
    with pytest.raises(ModelError, match=r"runs layer model\.layers\.1\.mlp\.down_proj in a way"):
        logits(attached)


@pytest.mark.parametrize(
    ("architecture", "attachment", "words"),
    [
        ("gptj", Dimmed(), r"GPTJModel runs the attention of transformer\.h\.0 and 1 more"),
        ("mamba2", Dimmed(), "Mamba2ForCausalLM has no keys and values"),
        ("mamba", Scaled(layer="dt_proj"), r"MambaModel runs layer backbone\.layers\.0\.mixer"),
    ],
)
def test_what_an_architecture_cannot_do_is_refused_before_it_is_read(
    architecture: str, attachment: Attachment, words: str, tmp_path: Path
) -> None:
    base = pretrained(str(build(architecture, tmp_path)), "float32")
    stage = Attach(base, (attachment,))
    assert find_attachments(stage) == (attachment,) and find_attachments(base) == ()
    with pytest.raises(ModelError, match=words):
        rehearse(stage)


@pytest.mark.parametrize("name", ["gpt2", "gemma2", "qwen3-moe", "gpt-oss", "falcon-h1"])
def test_each_kind_of_attention_passes(name: str) -> None:
    """Learnt positions, windows, experts, sinks with an attention function of their own, states."""
    plain = Model(make(name), None)  # type: ignore[arg-type]
    attached = plain.attach(Dimmed())
    for _ in range(2):  # as the library chose, and in the model's own function
        with torch.no_grad():
            ours, theirs = (run_trunk(each.network, IDS) for each in (attached, plain))
        assert not torch.allclose(ours, theirs, atol=1e-2)
        for each in (attached, plain):
            each.network.set_attn_implementation("eager")


def test_a_stage_gives_them(model: Model, tiny_folder: Path, tmp_path: Path) -> None:
    base = pretrained(str(tiny_folder), "float32")
    stage = Attach(Attach(base, (Scaled(),)), (Dimmed(),))
    assert find_attachments(stage) == BOTH
    assert Attach.from_description(stage.description(), {stage.inputs[0].key: stage.inputs[0]}) == (
        stage
    )
    found = replace(stage, model=model.attach(Scaled())).run(tmp_path)
    assert torch.equal(logits(found), logits(model.attach(*BOTH)))
