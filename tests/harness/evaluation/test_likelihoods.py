"""Log-likelihoods of continuations, against each text alone and against lm-eval's own code."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.huggingface import HFLM
from torch import nn

from harness.evaluation import likelihoods
from harness.evaluation.likelihoods import Answer, choose_reading, count_reach, score
from harness.evaluation.lm_eval_model import CheckedLM
from harness.evaluation.rows import Request, batch_by_tokens, branch, lay_plainly, read_text
from harness.models import Attachment, Model
from harness.testing import make_tokenizer
from methods.quantization.activations import Activations, KVCache
from methods.quantization.online_hadamard import OnlineHadamard
from tests.support import architectures

TOKENS = st.lists(st.integers(5, 7), min_size=1, max_size=9)


def _draw(items: int = 5, longest: int = 14) -> list[Request]:
    """Few-shot prompts of one prefix, with endings of several lengths, one letter among them."""
    draw = random.Random(0)
    some = lambda least, most: [draw.randrange(5, 290) for _ in range(draw.randint(least, most))]  # noqa: E731
    prefix, requests = some(12, 12), []
    for _ in range(items):
        context = prefix + some(2, longest)
        requests += [(context, some(1, 6)) for _ in range(3)]
        requests += [(context, [letter]) for letter in (20, 21, 22)]
    draw.shuffle(requests)
    return requests


REQUESTS = _draw()


@pytest.fixture(scope="module")
def llama() -> Model:
    return Model(architectures.make("llama"), make_tokenizer())


@torch.no_grad()
def _score_alone(network: nn.Module, request: Request, longest: int = 512) -> Answer:
    continuation = request[1]
    ids = torch.tensor([read_text(request, longest)])
    logits = network(input_ids=ids).logits[0, -len(continuation) :].double().log_softmax(-1)
    likelihood = sum(float(row[token]) for row, token in zip(logits, continuation, strict=True))
    return likelihood, logits.argmax(-1).tolist() == continuation


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=12), st.integers(1, 30))
@settings(max_examples=30, deadline=None)
def test_each_token_of_a_row_sees_its_text_and_no_other(
    requests: list[Request], reach: int
) -> None:
    rows = branch(requests, 12, reach)
    placed = {}
    for row in rows:
        seen = row.see(len(row.tokens) + 2)
        assert row.is_plain or len(row.tokens) <= reach
        for number, places in row.scored:
            path = seen[places[-1]].nonzero().squeeze(1).tolist()
            placed[number] = [row.tokens[place] for place in path]
            assert [row.positions[place] for place in path] == list(range(len(path)))
            assert path[-len(places) :] == places
            assert len(places) == min(len(requests[number][1]), len(path))
            for at, place in enumerate(path):
                assert seen[place].nonzero().squeeze(1).tolist() == path[: at + 1]
        assert seen[-2:].sum() == 2
    assert placed == {n: read_text(request, 12) for n, request in enumerate(requests)}
    batches = list(batch_by_tokens(rows, 40))
    assert sorted(id(row) for batch in batches for row in batch) == sorted(map(id, rows))


def test_what_is_shared_is_laid_once() -> None:
    context = list(range(10, 60))
    items = [([*context, i, i + 1], [ending, 7, 8]) for i in (70, 80) for ending in (5, 6)]
    (row,) = branch(items, 512, 4096)
    assert len(row.tokens) == 50 + 2 * (2 + 2 * 2)
    assert len(branch([([i], [5] * 40) for i in (1, 2)], 512, 4096)) == 2  # nothing to share
    letters = [(context, [letter]) for letter in range(4)]
    assert [len(row.tokens) for row in lay_plainly(letters, 512)] == [50]


@pytest.mark.parametrize(
    ("name", "reading"),
    [
        ("llama", "branches"),
        ("gpt2", "branches"),
        ("gemma2", "branches"),  # caps logits, has windows
        ("granite", "branches"),  # scales logits
        ("mixtral", "branches"),
        ("gemma3", "branches"),  # with a vision tower
        ("mistral", "branches"),  # windows of 16 in all layers
        ("gpt-neo", "branches"),  # local attention, by places in a row
        ("llama4-text", "branches"),  # attention in chunks of 16
        ("bloom", "picked"),  # positions from the mask
        ("mpt", "picked"),
        ("mamba", "picked"),
        ("qwen3-next", "picked"),
        ("recurrent-gemma", "picked"),
    ],
)
def test_answers_are_those_of_each_text_alone(name: str, reading: str) -> None:
    network = architectures.make(name)
    model = Model(network, make_tokenizer())
    chosen = choose_reading(model)
    assert chosen == reading
    answers = score(model, REQUESTS, 512, 4, chosen)
    for answer, request in zip(answers, REQUESTS, strict=True):
        likelihood, is_greedy = _score_alone(network, request)
        assert answer == (pytest.approx(likelihood, abs=1e-4), is_greedy)


def test_texts_beyond_the_context_are_cut_as_by_lm_eval(llama: Model) -> None:
    context = [list(range(5, 60)), list(range(5, 70))]
    requests = [(each, [9, end, 11]) for each in context for end in (12, 13)]
    for reading in ("branches", "picked"):
        answers = score(llama, requests, 60, 4, reading)
        for answer, request in zip(answers, requests, strict=True):
            assert answer[0] == pytest.approx(_score_alone(llama.network, request, 60)[0], abs=1e-4)


@pytest.mark.parametrize(
    ("dtype", "attached", "reading"),
    [
        (torch.float32, (), "branches"),
        (torch.bfloat16, (), "picked"),
        (torch.float32, (Activations(4), KVCache(3)), "picked"),
        (torch.bfloat16, (OnlineHadamard(), Activations(8)), "picked"),
    ],
)
def test_what_rounds_is_read_as_lm_eval_reads_it(
    dtype: torch.dtype, attached: tuple[Attachment, ...], reading: str
) -> None:
    """There the states are lm-eval's bit for bit; the head's product of fewer of them may round
    otherwise in float32, as some processors' libraries do. Elsewhere states move by rounding, too.
    """
    model = Model(architectures.make("llama").to(dtype), make_tokenizer()).attach(*attached)
    asked = CheckedLM(model, batch_size=4, bos=False)
    named = [(("context", str(n)), *request) for n, request in enumerate(REQUESTS)]
    ours = asked._loglikelihood_tokens(named)
    theirs = HFLM._loglikelihood_tokens(asked, named, disable_tqdm=True)
    assert asked.reading == reading
    assert [each[1] for each in ours] == [each[1] for each in theirs]
    if dtype == torch.bfloat16:
        assert ours == theirs
    assert [each[0] for each in ours] == pytest.approx([each[0] for each in theirs], abs=1e-4)


def test_a_network_of_its_own_kind_is_read_by_lm_eval(llama: Model) -> None:
    class Own(type(llama.network)):  # type: ignore[misc]
        def forward(self, *arguments: Any, **options: Any) -> Any:
            output = super().forward(*arguments, **options)
            output.logits = output.logits.cumsum(1)  # looks at more than one state
            return output

    own = Model(Own(llama.network.config).eval(), llama.tokenizer)
    assert choose_reading(own) == "whole"
    assert choose_reading(llama) == "branches"


def test_windows_and_stretched_positions_bound_what_a_row_holds(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(architectures.make("mistral"), make_tokenizer())
    assert count_reach(model) == 16
    model.network.config.rope_parameters["rope_type"] = "dynamic"
    assert count_reach(model) == 0
    assert count_reach(llama) == 512
    monkeypatch.setattr(likelihoods, "_ROOM", 100)
    assert count_reach(llama) == 100
