"""Scores against independent computations: perplexity in float64, lm-eval called directly."""

from __future__ import annotations

import math
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.core.errors import GridError, ModelError, TextError
from harness.core.execution import execute
from harness.core.records import NO_FILTER, ItemScores, Precision, Score
from harness.evaluation import lm_eval_rows
from harness.evaluation.evaluations import EVALUATIONS, build_evaluation, find_evaluation
from harness.evaluation.lm_eval import task_batch
from harness.evaluation.perplexity import PerplexityTask
from harness.evaluation.scores import Scores, make_item_scores
from harness.models import Model, pretrained, read_model
from harness.testbed import world
from harness.testbed.registration import TASKS

TEXTS = world.documents("heldout")[:40]
pytestmark = pytest.mark.usefixtures("known_commits")


def _score(stage: Any, model: Model, documents: list[str] | None, work: Path) -> Scores:
    values: dict[str, Any] = {above.key: documents for above in stage.inputs}
    values[stage.model.key] = model
    return execute(stage, values, work)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Model:
    return read_model(str(tiny_folder), "float32")


@pytest.mark.parametrize("bos", [False, True])
def test_wikitext_protocol_equals_a_plain_float64_computation(
    tiny_folder: Path, model: Model, tmp_path: Path, bos: bool
) -> None:
    stage = build_evaluation(pretrained(str(tiny_folder)), "wikitext2", window=32, bos=bos)
    found = _score(stage, model, TEXTS, tmp_path)

    ids = model.tokenizer("\n\n".join(TEXTS), add_special_tokens=False)["input_ids"]
    ids = ([model.tokenizer.bos_token_id] if bos else []) + ids
    windows = [ids[i : i + 32] for i in range(0, len(ids) - 31, 32)]
    double = read_model(str(tiny_folder), "float32").network.double()
    losses = []
    with torch.no_grad():
        for window in windows:
            logp = double(torch.tensor([window])).logits[0].log_softmax(-1)
            losses.append(-sum(logp[t, window[t + 1]].item() for t in range(31)) / 31)
    reference = math.exp(sum(losses) / len(losses))
    (row,) = found.rows
    assert row.value == pytest.approx(reference, rel=1e-5)
    assert row.n == len(windows) == len(found.items[0].scores)
    assert row.bos is bos
    assert row.protocol is not None and "window 32" in row.protocol
    spread = torch.tensor(losses).double().std().item() / math.sqrt(len(losses))
    assert row.stderr == pytest.approx(reference * spread, rel=1e-4)


def _window_losses(scores: Scores) -> list[float]:
    (items,) = scores.items
    return items.scores


def _losses_of(model: Model, windows: list[list[int]]) -> list[float]:
    with torch.inference_mode():
        return [
            model.network(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
            for ids in windows
        ]


def _plain(model: Model, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("words", [1, 40])
def test_c4_new_takes_the_first_1100_documents(
    tiny_folder: Path, model: Model, tmp_path: Path, words: int
) -> None:
    """Joined by a space, tokenised once, 256 windows of them where there are as many."""
    documents = [" ".join([f"{number % 10}"] * words) for number in range(1200)]
    ids = _plain(model, " ".join(documents[:1100]))
    windows = [ids[at : at + 16] for at in range(0, len(ids) - 15, 16)][:256]
    assert (len(windows) < 256) == (words == 1)
    stage = build_evaluation(pretrained(str(tiny_folder)), "c4-new", window=16)
    found = _window_losses(_score(stage, model, documents, tmp_path))
    assert found == pytest.approx(_losses_of(model, windows), rel=1e-4)


def test_c4_takes_random_windows_of_256_random_long_documents(
    tiny_folder: Path, model: Model, tmp_path: Path
) -> None:
    """Seed 0: documents are drawn until one is longer than the window, then where it begins."""
    documents = [text for long in TEXTS for text in (long * 3, "too short")]
    random.seed(0)
    windows: list[list[int]] = []
    while len(windows) < 256:
        ids = _plain(model, documents[random.randint(0, len(documents) - 1)])
        if len(ids) > 16:
            at = random.randint(0, len(ids) - 16 - 1)
            windows.append(ids[at : at + 16])
    assert len(_plain(model, "too short")) <= 16
    stage = build_evaluation(pretrained(str(tiny_folder)), "c4", window=16)
    found = _window_losses(_score(stage, model, documents, tmp_path))
    assert found == pytest.approx(_losses_of(model, windows), rel=1e-4)


def test_limits_and_windows_are_part_of_the_key(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder))
    options = [
        {},
        {"limit": 4},
        {"window": 64},
        {"bos": True},
    ]
    assert len({build_evaluation(base, "wikitext2", **option).key for option in options}) == 4


def test_latent_weights_are_never_evaluated(
    tiny_folder: Path, model: Model, tmp_path: Path
) -> None:
    base = pretrained(str(tiny_folder))
    for task, options in (
        ("wikitext2", {"window": 32}),
        ("testbed_knowledge", {}),
    ):
        stage = build_evaluation(base, task, **options)
        with pytest.raises(ModelError, match="latent weights are never evaluated"):
            _score(stage, replace(model, latent=True), TEXTS, tmp_path)


def test_a_window_beyond_the_context_is_refused(
    tiny_folder: Path, model: Model, tmp_path: Path
) -> None:
    stage = build_evaluation(pretrained(str(tiny_folder)), "wikitext2")
    with pytest.raises(ModelError, match="window 2048, but the context is 512"):
        _score(stage, model, TEXTS, tmp_path)


@pytest.mark.parametrize("task", ["testbed_physical", "testbed_knowledge"])
def test_lm_eval_through_us_equals_lm_eval_directly(task: str, tmp_path: Path) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    folder = TASKS.parent / "model"
    stage = build_evaluation(pretrained("testbed", "float32"), task, limit=12)
    found = _score(stage, read_model(str(folder), "float32"), None, tmp_path)
    direct = simple_evaluate(
        model=HFLM(str(folder), dtype="float32", batch_size=32, device="cpu", add_bos_token=False),
        tasks=[task],
        limit=12,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False),
    )
    assert direct is not None
    row, normalised = found.rows
    assert row.value == direct["results"][task]["acc,none"]
    assert row.stderr == direct["results"][task]["acc_stderr,none"]
    assert normalised.value == direct["results"][task]["acc_norm,none"]
    assert (normalised.metric, normalised.primary) == ("acc_norm", False)
    assert (row.n, row.metric, row.filter, row.caveat) == (12, "acc", "none", world.CAVEAT)
    assert row.num_fewshot == (5 if task == "testbed_knowledge" else 0)
    guesses = [1 / len(each["doc"]["choices"]) for each in direct["samples"][task]]
    assert row.chance == normalised.chance == pytest.approx(sum(guesses) / 12)
    for each, items in zip(found.rows, found.items, strict=True):
        assert (items.task, items.metric, items.filter) == (task, each.metric, each.filter)
        assert each.aggregation == "mean"
        assert sum(items.scores) / 12 == pytest.approx(each.value)


def test_what_guessing_scores_is_told_of_choices_alone() -> None:
    def results(**facts: Any) -> dict[str, Any]:
        given = {"output_type": "multiple_choice", "metrics": ["acc,none"], "target": 0} | facts
        samples = [
            {"filter": NO_FILTER, "target": given["target"], "filtered_resps": [(0.0, False)] * n}
            for n in (2, 4)
        ]
        return {
            "configs": {"t": {"output_type": given["output_type"]}},
            "results": {"t": dict.fromkeys(given["metrics"], 0.5)},
            "samples": {"t": samples},
        }

    names = {"t": "t"}
    assert lm_eval_rows.add_chance(_row(), results(), names).chance == (1 / 2 + 1 / 4) / 2
    for row, facts in (
        (_row(metric="f1"), results()),
        (_row(), results(output_type="generate_until")),
        (_row(), results(target=[0, 1])),
        (_row(), results(metrics=["acc,none", "acc_mutual_info,none"])),
    ):
        assert lm_eval_rows.add_chance(row, facts, names).chance is None


def test_the_chance_of_a_group_is_its_tasks_mean() -> None:
    rows = [
        _row(task=name, value=0.5, n=4, chance=chance) for name, chance in (("a", 0.5), ("b", 0.25))
    ]
    assert lm_eval_rows.average_tasks("g", rows).chance == 0.375
    assert lm_eval_rows.average_tasks("g", [rows[0], replace(rows[1], chance=None)]).chance is None


def _row(**facts: Any) -> Score:
    names = [each.name for each in fields(Score)]
    base = dict.fromkeys(names) | {"task": "t", "metric": "acc", "filter": NO_FILTER}
    return Score(**{**base, "protocol": "lm-eval", "higher_is_better": True, **facts})


def test_filters_of_an_answer_have_their_own_items() -> None:
    """lm-eval has the items of a task once for each filter, in turn."""
    samples = [
        {"doc_id": 7 + i, "filter": name, "metrics": ["exact_match"], "exact_match": score}
        for name, scores in (("strict-match", [0.0, 0.0, 1.0]), ("flexible", [1.0, 0.0, 1.0]))
        for i, score in enumerate(scores)
    ]
    for name, scores in (("flexible", [1, 0, 1]), ("strict-match", [0, 0, 1])):
        row = _row(metric="exact_match", filter=name, value=sum(scores) / 3)
        items = make_item_scores(row, lm_eval_rows.read_scores(samples, row))
        assert (items.filter, items.items, items.scores) == (name, [7, 8, 9], scores)
        assert lm_eval_rows.add_aggregation(row, items).aggregation == "mean"


def test_a_value_that_is_not_the_mean_of_its_items_is_not_said_to_be() -> None:
    samples = [
        {"doc_id": 0, "metrics": ["f1", "word_perplexity"], "f1": 1.0, "word_perplexity": (1, 2)}
    ]
    for metric, value in (("f1", 0.5), ("word_perplexity", 3.0), ("f1", math.nan)):
        row = _row(metric=metric, value=value)
        items = make_item_scores(row, lm_eval_rows.read_scores(samples, row))
        assert items.scores == ([1] if metric == "f1" else [])
        assert lm_eval_rows.add_aggregation(row, items).aggregation is None


def test_bos_is_what_the_row_says_or_an_error(tmp_path: Path) -> None:
    folder = TASKS.parent / "model"
    stage = build_evaluation(pretrained("testbed"), "testbed_physical", limit=2, bos=True)
    with pytest.raises(ModelError, match="bos is true, but the tokenizer's first token is"):
        _score(stage, read_model(str(folder), "float32"), None, tmp_path)


def test_a_group_is_the_macro_mean_over_its_tasks() -> None:
    rows = [
        _row(task=f"t{i}", value=v, stderr=s, n=n, primary=True)
        for i, (v, s, n) in enumerate([(0.2, 0.1, 10), (0.4, 0.2, 1000), (0.9, 0.2, 10)])
    ]
    mean = lm_eval_rows.average_tasks("mmlu", rows)
    assert mean.value == pytest.approx(0.5)
    assert mean.stderr == pytest.approx(0.1)
    assert (mean.n, mean.task, mean.aggregation) == (1020, "mmlu", "macro_mean")
    assert mean.protocol == "lm-eval; macro mean over 3 tasks"


def test_a_group_has_a_mean_of_each_metric_that_its_tasks_share() -> None:
    def row(task: str, metric: str, value: float, primary: bool) -> Score:
        return _row(task=task, metric=metric, value=value, n=1, primary=primary)

    rows = [
        row("a", "acc", 0.2, True),
        row("a", "acc_norm", 0.4, False),
        row("b", "acc", 0.6, True),
    ]
    found = lm_eval_rows.add_means("group", rows)
    assert [(r.task, r.metric) for r in found if r.primary] == [("group", "acc")]
    assert found[0].value == pytest.approx(0.4)
    assert [r.group for r in found] == [None, "group", None, "group"]
    unlike = [row("a", "acc", 0.2, True), row("b", "em", 0.6, True)]
    assert lm_eval_rows.add_means("group", unlike) == unlike


def test_primary_metrics_follow_the_papers() -> None:
    assert lm_eval_rows.choose_primary({"acc_norm", "acc"}) == "acc"
    flexible, strict = "exact_match,flexible-extract", "exact_match,strict-match"
    assert lm_eval_rows.choose_primary({strict, flexible}) == flexible
    assert lm_eval_rows.choose_primary({"pass@1,create_test"}) == "pass@1,create_test"


def test_scores_come_back_from_disk(tmp_path: Path) -> None:
    precision = Precision(format="nf3", bits=3, group_size=0, bits_per_weight=3.1, dtype="float32")
    items = ItemScores(task="t", metric="acc", filter=NO_FILTER, items=None, scores=[1.0, 0.0])
    scores = Scores([_row(value=0.5)], precision, [items])
    assert Scores.load(tmp_path, scores.save(tmp_path)) == scores


def test_unknown_tasks_name_the_nearest(tiny_folder: Path) -> None:
    with pytest.raises(GridError, match="did you mean 'testbed_knowledge'"):
        build_evaluation(pretrained(str(tiny_folder)), "testbed_knowlege")


def test_every_protocol_is_named() -> None:
    domains = {f"testbed-ppl-{domain}" for domain in world.DOMAINS}
    tasks = [each for each in EVALUATIONS.load().values() if isinstance(each, PerplexityTask)]
    assert {each.name for each in tasks} == {"wikitext2", "c4", "c4-new", "testbed-ppl"} | domains
    assert len({each.protocol for each in tasks}) == len(tasks)
    assert find_evaluation("testbed_code").runs_code
    assert find_evaluation("humaneval").runs_code
    assert not find_evaluation("testbed_knowledge").runs_code


@pytest.mark.parametrize(
    ("task", "option", "known"),
    [
        ("testbed_story", "window", "bos, limit, num_fewshot"),
        ("testbed_story", "accept_weak_sandbox", "bos, limit, num_fewshot"),
        ("testbed_code", "window", "accept_weak_sandbox, bos, limit, num_fewshot"),
        ("wikitext2", "num_fewshot", "bos, limit, window"),
        ("testbed-ppl", "bos", "limit, window"),
    ],
)
def test_options_that_do_not_apply_are_refused(
    tiny_folder: Path, task: str, option: str, known: str
) -> None:
    with pytest.raises(GridError, match=f"{task}: key '{option}' is unknown; choices: {known}"):
        build_evaluation(pretrained(str(tiny_folder)), task, **{option: 8})


def test_c4_without_a_long_document_ends(tiny_folder: Path, model: Model, tmp_path: Path) -> None:
    drawn = build_evaluation(pretrained(str(tiny_folder)), "c4", window=128)
    with pytest.raises(TextError, match="no document has more tokens than a window of 128"):
        _score(drawn, model, ["short", "also short"], tmp_path)


def test_tasks_are_batched_by_usual_lengths_not_by_the_context() -> None:
    assert [task_batch(context) for context in (512, 1024, 4096, 131_072)] == [
        32,
        16,
        16,
        16,
    ]
