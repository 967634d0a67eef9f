"""Training data: what is asked of the teacher, what is kept, and that it is the same each time."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import methods.training.generation
from harness.core.errors import BitgridError, TextError
from harness.core.execution import execute
from harness.core.stage import closure, listening
from harness.data import Documents, Packed, Tokens
from harness.models import Model, pretrained
from methods.training.data import Data, Generate, Generated, GroundTruth, SelfGenerated
from methods.training.generation import sample

WORDS = [" ".join(f"w{(7 * i + j) % 90 + 5}" for j in range(i % 9 + 2)) for i in range(12)]
TEACHER = Documents("teacher", "train")  # stands for a model's stage where only its key matters


@pytest.fixture
def endless(llama: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The small model, without an end of text."""
    monkeypatch.setattr(
        methods.training.generation, "stops", lambda _: torch.empty(0, dtype=torch.int64)
    )
    return llama


def biased(model: Model, token: int, by: float) -> Model:
    """The model with one token's logit raised."""
    fork = model.fork()
    head = fork.network.get_output_embeddings()
    raised = nn.Linear(head.in_features, head.out_features).requires_grad_(False)
    raised.weight, raised.bias = head.weight, nn.Parameter(torch.zeros(97), requires_grad=False)
    raised.bias[token] = by
    fork.network.lm_head = raised
    return fork


def run(stage: Generate, work: Path) -> Tokens:
    return execute(stage, {}, work)


def test_greedy_is_what_the_model_finds_likeliest_without_cache_and_padding(
    endless: Model, tmp_path: Path
) -> None:
    tokens = run(Generate(endless, WORDS, 12, 24, temperature=0.0), tmp_path)
    assert tokens.ids.shape == (12, 24)
    assert tokens.ids.dtype == torch.int64
    prompts = {(1, *endless.tokenizer(text)["input_ids"]) for text in WORDS}
    for row in tokens.ids:
        found = [n for n in range(len(row)) if tuple(row[:n].tolist()) in prompts]
        assert found, "a sequence does not begin with a prompt"
        guess = endless.network(row[None]).logits[0].argmax(-1)
        assert torch.equal(guess[found[-1] - 1 : -1], row[found[-1] :])
    assert tokens.mask[:, 1:].all()
    assert not tokens.mask[:, 0].any()


def test_batches_do_not_show(
    endless: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(Generate(endless, WORDS, 20, 16), tmp_path)
    monkeypatch.setattr(methods.training.generation, "_MOST_ROWS", 3)
    (tmp_path / "b").mkdir()
    parts = run(Generate(endless, WORDS, 20, 16), tmp_path / "b")
    assert torch.equal(whole.ids, parts.ids)
    assert torch.equal(whole.mask, parts.mask)


def test_how_many_are_written_together_follows_from_model_length_and_kind_of_device(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never from the memory that is free: a text could not be made again."""

    def asked(*_: object) -> None:
        raise AssertionError("asks for free memory")

    monkeypatch.setattr(torch.cuda, "mem_get_info", asked)
    with torch.device("meta"):
        network = LlamaForCausalLM(LlamaConfig())  # of 7B: 32 layers of 4096
    large = Model(network.to(torch.bfloat16), llama.tokenizer)
    at_once = methods.training.generation.rows_at_once
    assert [at_once(large, 1024, kind) for kind in ("cpu", "cuda")] == [4, 16]
    assert [at_once(llama, 40, kind) for kind in ("cpu", "cuda")] == [256, 256]


def test_a_row_alone_is_drawn_as_among_others() -> None:
    """Where it is added up as two, because CUDA adds up one in no fixed order."""
    generator = torch.Generator().manual_seed(0)
    scores, uniform = torch.randn(9, 500, generator=generator), torch.rand(9, generator=generator)
    no = torch.zeros(9, dtype=torch.bool)
    for top_p in (1.0, 0.8):
        together = sample(scores, uniform, no, 0.7, top_p)
        alone = [
            sample(scores[i : i + 1], uniform[i : i + 1], no[:1], 0.7, top_p) for i in range(9)
        ]
        assert torch.equal(together, torch.cat(alone))


def test_seed_and_only_the_seed_decides(endless: Model, tmp_path: Path) -> None:
    results = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(i)  # what happened before must not matter
        (tmp_path / str(i)).mkdir()
        results.append(Generate(endless, None, 8, 12, seed=seed).run(tmp_path / str(i)).ids)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_killed_run_goes_on_from_its_parts(
    endless: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods.training.generation, "_MOST_ROWS", 4)
    stage = Generate(endless, WORDS, 12, 40)

    def stop(done: int, total: int, _: object) -> None:
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(stop):
        run(stage, tmp_path)
    assert len(list(tmp_path.glob("part-*.safetensors"))) == 2
    calls = []
    write = methods.training.generation.write
    monkeypatch.setattr(
        methods.training.generation,
        "write",
        lambda *given, **named: calls.append(1) or write(*given, **named),
    )
    resumed = run(stage, tmp_path)
    assert len(calls) == 1
    (tmp_path / "fresh").mkdir()
    assert torch.equal(resumed.ids, run(stage, tmp_path / "fresh").ids)


def test_text_ends_at_eos_which_is_learnt_and_padding_is_not(llama: Model, tmp_path: Path) -> None:
    tokens = run(Generate(biased(llama, 2, 3.0), WORDS, 40, 20), tmp_path)
    ended = 0
    for ids, mask in zip(tokens.ids, tokens.mask, strict=True):
        stops = (ids == 2).nonzero()
        end = int(stops[0]) + 1 if len(stops) else 20
        ended += len(stops) > 0
        assert mask[1:end].all()
        assert not mask[end:].any()
        assert (ids[end:] == 0).all()
    assert ended > 10


def test_rows_that_ended_do_not_disturb_the_others(
    llama: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row alone, and all together with rows dropped on the way."""
    model = biased(llama, 2, 2.0)
    together = run(Generate(model, WORDS, 12, 24), tmp_path)
    monkeypatch.setattr(methods.training.generation, "_MOST_ROWS", 1)
    (tmp_path / "alone").mkdir()
    assert torch.equal(together.ids, run(Generate(model, WORDS, 12, 24), tmp_path / "alone").ids)


def test_prompts_are_learnt_or_not(endless: Model, tmp_path: Path) -> None:
    stage = Generate(endless, ["w5 w6 w7"], 2, 10, learn_prompt=False)
    tokens = run(stage, tmp_path)
    assert tokens.ids[0, :4].tolist() == [1, 5, 6, 7]
    assert tokens.mask.tolist() == [[False] * 4 + [True] * 6] * 2
    assert not torch.equal(tokens.ids[0], tokens.ids[1])  # one prompt, two continuations


def test_openings_are_cut_and_short_documents_left_out(endless: Model, tmp_path: Path) -> None:
    documents = ["w5 " * 50, "w6 w7", ""]
    stage = Generate(endless, documents, 3, 12, prompt_chars=8, min_chars=20, learn_prompt=False)
    tokens = run(stage, tmp_path)
    assert tokens.ids[:, :4].tolist() == [[1, 5, 5, 5]] * 3


def test_alone_it_begins_with_a_random_plain_token_and_the_likeliest_next(
    endless: Model, tmp_path: Path
) -> None:
    tokens = run(Generate(endless, None, 40, 12, greedy=(3, 5)), tmp_path)
    first = tokens.ids[:, 0]
    assert len(first.unique()) > 20
    assert not torch.isin(first, torch.tensor([0, 1, 2])).any()
    guess = endless.network(tokens.ids).logits.argmax(-1)[:, :-1]
    agrees = guess == tokens.ids[:, 1:]
    assert agrees[:, :3].all()
    assert not agrees[:, 5:].all()
    assert tokens.mask[:, 1:].all()


def test_what_cannot_be_generated_is_said(llama: Model, tmp_path: Path) -> None:
    for stage, message in [
        (Generate(biased(llama, 2, 1e4), WORDS, 3, 12), "produced nothing"),
        (Generate(llama, ["w5"], 3, 12, min_chars=10), "no document is longer"),
        (Generate(llama, ["w5 " * 30], 3, 12), "every prompt fills"),
        (Generate(llama, None, 3, 4096), "context is 64"),
    ]:
        with pytest.raises(TextError, match=message):
            run(stage, tmp_path)


def test_a_file_without_a_prompt_is_refused_before_anything_runs(
    tiny_folder: Path, tmp_path: Path
) -> None:
    base = pretrained(str(tiny_folder))
    (tmp_path / "a.txt").write_text("Some words.\n\nAnd some others, which go on for a while.\n")
    text = f"file:{tmp_path}/a.txt"
    with pytest.raises(TextError, match=r"a\.txt': no document is longer than min_chars: 512"):
        Generated(text=text, length=64).build(base)
    with pytest.raises(
        TextError, match=r"a\.txt': every prompt fills the whole length of 3 tokens"
    ):
        Generated(text={text: 4}, length=3, min_chars=0).build(base)
    assert isinstance(Generated(text=text, length=64, min_chars=20).build(base), Generate)


@given(st.integers(0, 2**31), st.floats(0.3, 2.0), st.sampled_from([1.0, 0.9, 0.5]))
@settings(max_examples=20, deadline=None)
def test_sampling_follows_the_distribution(seed: int, temperature: float, top_p: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(6, generator=generator)
    n = 4000
    uniform = (torch.arange(n) + 0.5) / n
    drawn = sample(
        scores.expand(n, 6), uniform, torch.zeros(n, dtype=torch.bool), temperature, top_p
    )
    shares = torch.bincount(drawn, minlength=6) / n
    expected = (scores / temperature).softmax(-1)
    best, places = expected.sort(descending=True)
    kept = int((best.cumsum(0) < top_p - 1e-6).sum()) + 1
    expected[places[kept:]] = 0
    torch.testing.assert_close(shares, expected / expected.sum(), atol=2e-3, rtol=0)


def test_sampling_never_draws_the_impossible() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    uniform = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert sample(scores, uniform, torch.zeros(3, dtype=torch.bool), 1.0, 1.0).tolist() == [1, 3, 3]


@pytest.mark.usefixtures("known_commits")
def test_sources_become_shared_stages() -> None:
    truth = GroundTruth(sequences=4, length=8).build(TEACHER)  # type: ignore[arg-type]
    assert isinstance(truth, Packed)
    one, same, other = (
        Generated(sequences=4, length=8, seed=seed).build(TEACHER)  # type: ignore[arg-type]
        for seed in (0, 0, 1)
    )
    assert one.key == same.key != other.key
    assert one.stored
    testbed = Generated(text="testbed").build(TEACHER)  # type: ignore[arg-type]
    assert isinstance(testbed, Generate)
    assert testbed.prompt_chars is None
    assert [s for s in closure([testbed]) if isinstance(s, Documents) and s.prompts]
    alone = SelfGenerated().build(TEACHER)  # type: ignore[arg-type]
    assert closure([alone]) == [TEACHER, alone]
    assert set(Data.choices()) == {"ground-truth", "generated", "self-generated"}


def test_settings_are_checked() -> None:
    for make in (
        lambda: Generated(temperature=-1.0),
        lambda: Generated(top_p=0.0),
        lambda: Generated(sequences=0),
        lambda: SelfGenerated(greedy=(5, 3)),
    ):
        with pytest.raises(BitgridError):
            make()
