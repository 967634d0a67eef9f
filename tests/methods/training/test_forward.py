"""Trunk and head, run apart, are the network; what is written in batches is what is written alone.

The independent reference is the network's own forward pass on whole sequences without a cache.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.models import Model, carries_states, run_trunk
from harness.testing import make_tokenizer
from methods.quantization.formats import IntAsym
from methods.training import generation
from methods.training.forward import Labels, measure_labels, run_head, token_nll
from methods.training.masters import Masters, Trained
from tests.support.architectures import make
from tests.support.families import ARCHITECTURES

REFUSED = ("bert", "roberta", "electra", "t5", "bart", "clip", "paligemma")
ALL = [name for name in ARCHITECTURES if name not in REFUSED]
# One of each kind of cache, positions and mask, and what makes each family's head its own.
WRITERS = ["llama", "gemma2", "bloom", "mpt", "opt-post-norm", "gptj", "llama4", "cohere2"]
WRITERS += ["gemma3", "qwen2-vl", "qwen3-next", "qwen3_5", "mamba", "falcon-h1", "jamba", "lfm2"]
LENGTH = 24


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_token_losses_are_those_of_the_whole_network(name: str) -> None:
    network = make(name)
    ids = torch.arange(3, 43).repeat(2, 1)
    ids[1] += 50
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 30:] = False
    logits = network(input_ids=ids, use_cache=False).logits
    wanted = -logits[:, :-1].double().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    labels = Labels.of(ids, mask)
    losses = measure_labels(network, ids, labels, token_nll)
    torch.testing.assert_close(losses.double(), wanted[mask[:, 1:]], rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_states_as_through_the_whole_network() -> None:
    network = make("falcon-h1")
    ids = torch.arange(3, 23)[None]
    states = run_trunk(network, ids)[0].detach().requires_grad_()
    run_head(network, states).square().sum().backward()
    weight = network.get_output_embeddings().weight.detach()
    factor = network.config.lm_head_multiplier
    assert factor != 1
    wanted = 2 * factor**2 * (states.detach() @ weight.T) @ weight
    torch.testing.assert_close(states.grad, wanted, rtol=1e-4, atol=1e-4)
    assert network.get_output_embeddings().weight.requires_grad  # the network is whole again
    assert network(input_ids=ids, use_cache=False).logits.shape == (1, 20, 300)


@pytest.mark.parametrize("name", WRITERS)
def test_batches_write_what_each_text_alone_would(name: str) -> None:
    model = Model(make(name), make_tokenizer())
    lengths = torch.tensor([3, 3, 5, 7])
    prompts = [list(range(10 + row, 10 + row + n)) for row, n in enumerate(lengths.tolist())]
    chances = torch.rand(4, LENGTH, generator=torch.Generator().manual_seed(0))
    batches = list(generation.split_rows(model, lengths, at_once=3))
    assert sorted(torch.cat(batches).tolist()) == [0, 1, 2, 3]
    for rows in batches:
        picked = [prompts[row] for row in rows]
        if carries_states(model.network):
            assert len({len(prompt) for prompt in picked}) == 1
        greedy = torch.zeros(len(rows), dtype=torch.int64)
        ids, ends = generation.write(model, picked, greedy, chances[rows], 1.0, 1.0, _ignore)
        for row, text, end in zip(rows.tolist(), ids, ends.tolist(), strict=True):
            assert text[:end].tolist() == _write_alone(model, prompts[row], chances[row])


@torch.no_grad()
def _write_alone(model: Model, prompt: list[int], chances: Tensor) -> list[int]:
    """One token after another, each from a forward pass over all before it."""
    text, stops = list(prompt), generation.stops(model).tolist()
    while len(text) < LENGTH:
        logits = model.network(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1]
        reached = logits.softmax(-1).cumsum(-1)
        text.append(int((reached <= chances[len(text)] * reached[-1]).sum()))
        if text[-1] in stops:
            break
    return text


def _ignore(done: int) -> None:
    pass


@pytest.mark.parametrize("trained", ["linears", "body", "all"])
def test_only_the_language_model_is_trained(trained: Trained) -> None:
    student = Model(make("gemma3"), make_tokenizer())
    masters = Masters.of(student, IntAsym(bits=2, group_size=32), trained, torch.float32)
    names = set(masters.weights)
    assert not any("vision" in name or "projector" in name for name in names)
    every = {f"model.{name}" for name, _ in student.network.model.named_parameters()}
    text = {name for name in every if name.startswith("model.language_model.")}
    embeddings = {name for name in text if "embed_tokens" in name}
    wanted = {"all": text, "body": text - embeddings, "linears": names}[trained]
    assert names == wanted
