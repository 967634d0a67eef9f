"""The tasks: lm-eval finds them, gold answers score, wrong ones do not, nothing leaks."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager

from harness.testbed import items, world

TASKS = Path(items.__file__).parent / "tasks"
CHOICE = {"knowledge": 4, "physical": 2, "story": 4, "pronoun": 2, "harder": 4}
GENERATED = ("arithmetic", "code")


@lru_cache(maxsize=1)
def tasks() -> dict[str, Any]:
    names = [f"testbed_{name}" for name in (*CHOICE, *GENERATED)]
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    return dict(manager.load(names)["tasks"])


@pytest.mark.parametrize("name", [*CHOICE, *GENERATED])
def test_loads_with_a_version(name: str) -> None:
    task = tasks()[f"testbed_{name}"]
    assert task.config.metadata["version"] == 1.0
    assert len(task.eval_docs) >= 100
    assert len({doc["prompt"] for doc in task.eval_docs}) == len(task.eval_docs)


@pytest.mark.parametrize("name", CHOICE)
def test_the_gold_choice_scores(name: str) -> None:
    task = tasks()[f"testbed_{name}"]
    for doc in task.eval_docs:
        assert len(set(doc["choices"])) == CHOICE[name]
        likely = [(-1.0 if i == doc["label"] else -90.0, False) for i in range(CHOICE[name])]
        assert task.process_results(doc, likely)["acc"] == 1.0
        assert task.process_results(doc, likely[::-1])["acc"] == 0.0
    labels = Counter(doc["label"] for doc in task.eval_docs)
    assert max(labels.values()) < 1.6 * len(task.eval_docs) / CHOICE[name]


@pytest.mark.parametrize("name", GENERATED)
def test_the_gold_text_scores(name: str) -> None:
    task = tasks()[f"testbed_{name}"]
    for doc in list(task.eval_docs)[:8]:
        if name == "code":
            right, wrong, metric = "\n" + doc["canonical_solution"], "\n    return None", "pass@1"
        else:
            right = f" {doc['solution']}\n#### {doc['answer']}\n"
            wrong, metric = f" {doc['solution']}\n#### {doc['answer']}1\n", "exact_match"
        assert task.process_results(doc, [right]) == {metric: 1.0}
        assert task.process_results(doc, [wrong]) == {metric: 0.0}
        assert task.process_results(doc, [""]) == {metric: 0.0}


def test_no_item_is_in_the_training_text() -> None:
    training = "\n".join(world.documents("train"))
    for name in ("knowledge", "harder", "physical", "pronoun", *GENERATED):
        prompts = [doc["prompt"] for doc in tasks()[f"testbed_{name}"].eval_docs]
        assert not [p for p in prompts if p in training], name
    told = [
        f"{doc['prompt']} {doc['choices'][doc['label']]}"
        for doc in tasks()["testbed_story"].eval_docs
    ]
    assert not [text for text in told if text in training]


def test_the_examples_are_not_scored() -> None:
    loaded = items.knowledge()
    assert not set(loaded["test"]["prompt"]) & set(loaded["fewshot"]["prompt"])
