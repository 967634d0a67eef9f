"""The committed reference model: loads offline, is lossless in its tokens, beats chance."""

from __future__ import annotations

import copy as copy_module
from functools import lru_cache
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.testbed import pretrain, world
from harness.testbed.pretrain import FOLDER


@lru_cache(maxsize=1)
def loaded() -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.bfloat16)
    return model, AutoTokenizer.from_pretrained(FOLDER)


def test_size_and_shape() -> None:
    model, _ = loaded()
    assert (FOLDER / "model.safetensors").stat().st_size < 16e6
    assert model.config.model_type == "llama"
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16
        assert all(size % 128 == 0 for size in parameter.shape), name


def test_tokens_are_lossless_and_digits_apart() -> None:
    _, tokenizer = loaded()
    for text in [*world.documents("heldout")[:200], "  two\n\n\tindents\n    é"]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert len(tokenizer("12345", add_special_tokens=False)["input_ids"]) == 5
    assert (tokenizer.bos_token, tokenizer.eos_token) == (pretrain.BOS, pretrain.EOS)


def test_a_prompt_is_a_prefix_in_tokens() -> None:
    _, tokenizer = loaded()
    for domain in ("arithmetic", "code"):
        texts, prompts = world.documents("heldout", domain), world.prompts("heldout", domain)
        for text, prompt in list(zip(texts, prompts, strict=True))[:50]:
            ids = tokenizer(prompt)["input_ids"]
            assert tokenizer(text)["input_ids"][: len(ids)] == ids


@pytest.mark.parametrize(
    ("task", "metric", "least"),
    [
        ("testbed_knowledge", "acc,none", 0.55),
        ("testbed_pronoun", "acc,none", 0.80),
        ("testbed_code", "pass@1,none", 0.60),
    ],
)
def test_beats_chance(task: str, metric: str, least: float) -> None:
    model, tokenizer = loaded()
    tasks = str(FOLDER.parent / "tasks")
    results = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=32, device="cpu"),
        tasks=[task],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        limit=24,
        bootstrap_iters=0,
        confirm_run_unsafe_code=True,  # in the sandbox
    )
    assert results["results"][task][metric] >= least


def test_uneven_channels_change_no_logit() -> None:
    model, tokenizer = loaded()
    torch.manual_seed(0)
    fresh = pretrain.make_model(tokenizer, 0).to(torch.bfloat16)
    x = tokenizer(world.documents("heldout")[0], return_tensors="pt")["input_ids"]
    for copy in (fresh, copy_module.deepcopy(model)):
        before = copy(x).logits
        weights = copy.model.layers[0].mlp.down_proj.weight.clone()
        pretrain.make_channels_uneven(copy, 5)
        assert torch.equal(copy(x).logits, before)
        assert not torch.equal(copy.model.layers[0].mlp.down_proj.weight, weights)


def test_training_goes_on_where_it_stopped(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps at once, and two then one, give the same weights."""
    small = pretrain.Settings(batch_tokens=512, micro_tokens=512)
    size = pretrain.Size(tmp_path, hidden=64, feed_forward=128, layers=2, heads=2)
    monkeypatch.setattr(pretrain, "Settings", lambda: small)
    monkeypatch.setattr(pretrain, "make_tokenizer", lambda: loaded()[1])
    pretrain.train(tmp_path / "a", tmp_path / "wa", 3, size=size)
    monkeypatch.setattr(pretrain, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    stop = KeyboardInterrupt

    taken = []

    def checkpoint(*arguments: Any) -> None:
        real(*arguments)
        taken.append(1)
        if len(taken) == 2:
            raise stop

    real = pretrain._checkpoint
    monkeypatch.setattr(pretrain, "_checkpoint", checkpoint)
    with pytest.raises(stop):
        pretrain.train(tmp_path / "b", tmp_path / "wb", 3, size=size)
    pretrain.train(tmp_path / "b", tmp_path / "wb", 3, size=size)
    first, second = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in "ab"
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_both_sizes_have_one_vocabulary_and_the_small_one_is_small() -> None:
    small, large = (AutoTokenizer.from_pretrained(s.folder) for s in pretrain.SIZES.values())
    assert small.get_vocab() == large.get_vocab()
    counts = [
        sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(size.folder).parameters())
        for size in pretrain.SIZES.values()
    ]
    assert counts == [4_459_264, 1_049_728]
