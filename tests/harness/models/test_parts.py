"""Where a network's blocks lie, in each architecture of the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

from harness.core.errors import ModelError
from harness.models import Model, read_model
from harness.models.parts import (
    blocks,
    count_vocabulary,
    find_text_model,
    read_context,
    read_text_config,
)
from harness.models.reading import find_class
from tests.support.architectures import build, configure, make
from tests.support.families import ARCHITECTURES

REFUSED = ("bert", "roberta", "electra", "t5", "bart", "clip")
SEEING = [name for name, each in ARCHITECTURES.items() if each.vision is not None]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in REFUSED])
def test_blocks_are_the_language_models(name: str) -> None:
    config, kind = configure(name), ARCHITECTURES[name]
    with torch.device("meta"):
        network = find_class(config).from_config(config)
    found, text = blocks(network), read_text_config(config)
    assert len(found) == text.num_hidden_layers
    assert not any("vision" in place or "visual" in place for place in found)
    _, module = find_text_model(network)
    held = {id(parameter) for parameter in module.parameters()}
    assert {id(p) for block in found.values() for p in block.parameters()} < held
    assert {id(p) for p in network.get_input_embeddings().parameters()} <= held
    assert count_vocabulary(network) == 300
    assert read_context(config) == (None if "max_position_embeddings" in kind.without else 512)


@pytest.mark.parametrize("name", SEEING)
def test_a_vision_tower_lies_outside_of_the_text_model(name: str) -> None:
    config = configure(name)
    with torch.device("meta"):
        network = find_class(config).from_config(config)
    _, module = find_text_model(network)
    inside = {id(parameter) for parameter in module.parameters()}
    outside = [name for name, p in network.named_parameters() if id(p) not in inside]
    towers = [name for name, _ in network.named_parameters() if "visi" in name or "visual" in name]
    assert set(towers) <= set(outside)


def test_hybrids_mix_classes_of_blocks() -> None:
    config = configure("jamba")
    with torch.device("meta"):
        network = find_class(config).from_config(config)
    assert len({type(block) for block in blocks(network).values()}) == 2


def test_a_state_space_model_has_no_context() -> None:
    assert read_context(configure("mamba2")) is None
    assert read_context(AutoConfig.for_model("bloom", seq_length=77)) == 77


@pytest.mark.parametrize(
    ("name", "reason"),
    [("t5", "encoder with a decoder"), ("bart", "encoder with a decoder"), ("clip", "not a lang")],
)
def test_what_is_no_decoder_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        find_class(configure(name))


def test_a_network_without_such_blocks_is_refused() -> None:
    config = configure("llama")
    with torch.device("meta"):
        network = find_class(config).from_config(config)
    assert len(blocks(network)) == 2  # found once, and not taken on trust later
    network.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match="no list of 3 decoder blocks"):
        blocks(network)


@pytest.mark.parametrize("name", SEEING)
@torch.no_grad()
def test_what_is_read_and_kept_says_what_the_whole_model_does(name: str, tmp_path: Path) -> None:
    ids = torch.arange(3, 23)[None]
    whole = make(name)(input_ids=ids, use_cache=False).logits
    model = read_model(str(build(name, tmp_path / "published")), torch.float32)
    torch.testing.assert_close(model.network(input_ids=ids, use_cache=False).logits, whole)
    again = Model.load(tmp_path / "kept", model.save(tmp_path / "kept"))
    torch.testing.assert_close(again.network(input_ids=ids, use_cache=False).logits, whole)
