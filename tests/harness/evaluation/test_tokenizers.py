"""What evaluations need of a tokenizer: they do without PAD, BOS and EOS, or say so early."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import ModelError
from harness.core.execution import execute
from harness.evaluation.evaluations import build_evaluation
from harness.evaluation.scores import Scores
from harness.evaluation.task_files import Task, check_model
from harness.models import Model, Pretrained, pretrained, read_model
from harness.testbed import world
from methods.training.data import Generate

TEXTS = world.documents("heldout")[:30]
SPECIAL = ("pad_token", "bos_token", "eos_token")
pytestmark = pytest.mark.usefixtures("known_commits")


def save_with(tiny_folder: Path, folder: Path, *kept: str) -> Pretrained:
    """The tiny model with a tokenizer that names these special tokens alone, as Qwen's names EOS
    and PAD."""
    model = read_model(str(tiny_folder), "float32")
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.backend_tokenizer.post_processor = None
    for name in SPECIAL:
        if name not in kept:
            setattr(tokenizer, name, None)
    Model(model.network, tokenizer).save(folder)
    config = folder / "tokenizer_config.json"
    assert all((f'"{name}": "' in config.read_text()) is (name in kept) for name in SPECIAL)
    return pretrained(str(folder))


def score(base: Pretrained, task: str, work: Path, **options: Any) -> Scores:
    work.mkdir(exist_ok=True)
    stage: Any = build_evaluation(base, task, base, **options)
    values = {"pretrained": base.run(work), "documents": TEXTS}
    scores: Scores = execute(stage, {up.key: values[up.kind] for up in stage.inputs}, work)
    return scores


@pytest.mark.parametrize("kept", [(), ("eos_token",), ("bos_token",), SPECIAL])
def test_packed_perplexity_runs_and_says_what_is_between_documents(
    tiny_folder: Path, tmp_path: Path, kept: tuple[str, ...]
) -> None:
    base = save_with(tiny_folder, tmp_path / "model", *kept)
    (row,) = score(base, "testbed-ppl", tmp_path / "work", window=64).rows

    model = base.run(tmp_path)
    first = [1] if "bos_token" in kept else []
    last = [2] if "eos_token" in kept else []
    stream = [
        token
        for text in TEXTS
        for token in [*first, *model.tokenizer.encode(text, add_special_tokens=False), *last]
    ]
    windows = torch.tensor(stream[: len(stream) // 64 * 64]).view(-1, 64)
    with torch.no_grad():
        losses = [
            model.network(window[None], labels=window[None]).loss.item() for window in windows
        ]
    assert row.value == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)
    assert row.bos is ("bos_token" in kept)
    assert row.protocol is not None
    for name in ("BOS", "EOS"):
        lacks = f"the tokenizer has no {name}" in row.protocol
        assert lacks is (f"{name.lower()}_token" not in kept), row.protocol


@pytest.mark.parametrize("task", ["testbed_story", "testbed_arithmetic", "testbed_code"])
def test_tasks_score_the_same_without_special_tokens(
    tiny_folder: Path, tmp_path: Path, task: str
) -> None:
    """The tiny model never writes EOS here, so that every answer must be the same."""
    whole = save_with(tiny_folder, tmp_path / "whole", *SPECIAL)
    bare = save_with(tiny_folder, tmp_path / "bare")
    found = [score(each, task, tmp_path / "work", limit=4) for each in (whole, bare)]
    assert [each.items for each in found[:1]] == [each.items for each in found[1:]]
    assert found[0].rows[0].value == found[1].rows[0].value


def test_ragged_batches_are_written_as_each_prompt_alone(tiny_folder: Path, tmp_path: Path) -> None:
    """What fills up a batch is masked, whichever token it is."""
    from harness.evaluation.lm_eval_model import CheckedLM

    model = save_with(tiny_folder, tmp_path / "bare").run(tmp_path)
    prompts = ["Once", "Once upon a time there was a", "1 + 1 = "]
    requests = [_Request((prompt, {"until": ["\n"], "max_gen_toks": 12})) for prompt in prompts]
    together = CheckedLM(model, 3, bos=False).generate_until(requests, disable_tqdm=True)
    alone = []
    for prompt in prompts:
        ids = model.tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        start = ids.shape[1]
        for _ in range(12):
            with torch.no_grad():
                ids = torch.cat([ids, model.network(ids).logits[:, -1:].argmax(-1)], dim=1)
        alone.append(model.tokenizer.decode(ids[0, start:]).split("\n")[0])
    assert together == alone


class _Request:
    def __init__(self, args: tuple[str, dict[str, Any]]) -> None:
        self.args = args


def test_whole_texts_need_a_token_before_the_first(tiny_folder: Path, tmp_path: Path) -> None:
    bare = save_with(tiny_folder, tmp_path / "bare").tokenizer()
    ends = save_with(tiny_folder, tmp_path / "ends", "eos_token").tokenizer()
    for task in ("wikitext-word", "blimp_adjunct_island"):  # the prompt of the second is empty
        with pytest.raises(ModelError, match=f"{task}: .* BOS or EOS token, and the tokenizer has"):
            check_model(Task(task), False, bare, 512)
        check_model(Task(task), False, ends, 512)
    check_model(Task("piqa"), False, bare, 512)
    with pytest.raises(ModelError, match="piqa: bos is true, but the tokenizer has no BOS token"):
        check_model(Task("piqa"), True, ends, 512)


def test_a_teacher_without_special_tokens_writes_to_the_end(
    tiny_folder: Path, tmp_path: Path
) -> None:
    base = save_with(tiny_folder, tmp_path / "bare")
    teacher = base.run(tmp_path)
    teacher.network.generation_config.eos_token_id = None
    stage = Generate(base, None, count=5, length=20)
    tokens = execute(stage, {base.key: teacher}, tmp_path)
    assert bool(tokens.mask[:, 1:].all()) and tokens.ids.shape == (5, 20)
