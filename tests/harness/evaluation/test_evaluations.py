"""What a grid may evaluate by name: evaluations of packages beside those that come with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.core.errors import CollisionError, GridError
from harness.core.stage import Stage
from harness.evaluation.evaluations import (
    EVALUATIONS,
    Evaluation,
    LimitOnly,
    build_evaluation,
    find_evaluation,
    register_evaluation,
)
from harness.evaluation.lm_eval import LmEval
from harness.evaluation.perplexity import Perplexity, PerplexityTask, Protocol
from harness.evaluation.scores import Scores
from harness.grid.expand import load
from harness.models import Model, Pretrained, pretrained


@dataclass(frozen=True)
class Rhymes(Evaluation):
    """An evaluation as a package may have it; its stage is another's, for want of poems."""

    name: str = "rhymes"

    about = "share of lines that rhyme"
    runs_code = True
    higher_is_better = False

    def stage(
        self, model: Stage[Model], options: LimitOnly, base: Pretrained | None
    ) -> Stage[Scores]:
        return build_evaluation(model, "testbed-ppl", limit=options.limit)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    EVALUATIONS.load()
    monkeypatch.setattr(EVALUATIONS, "_items", dict(EVALUATIONS._items))


def test_an_evaluation_of_a_package_is_a_name_in_any_grid(tmp_path: Path) -> None:
    register_evaluation(Rhymes())
    path = tmp_path / "grid.yaml"
    path.write_text("model: testbed\nmethod: bf16\nevaluate:\n  - {rhymes: {limit: 3}}\n")
    with pytest.raises(GridError, match=r"grid.yaml:4: task 'rhymes' runs code that a model wrote"):
        load(path)
    (cell,) = load(path, allow_code_execution=True).cells
    (stage,) = cell.scores
    assert isinstance(stage, Perplexity) and stage.limit == 3
    path.write_text(
        "model: testbed\nmethod: bf16\nevaluate: [rhymes]\nreport: {average: [rhymes]}\n"
    )
    with pytest.raises(GridError, match=r"grid.yaml:4: .*'rhymes' cannot join a mean"):
        load(path, allow_code_execution=True)


def test_two_evaluations_of_one_name_are_an_error_that_names_both_files() -> None:
    with pytest.raises(CollisionError, match=r"registered twice: .*perplexity\.py.*test_evaluat"):
        register_evaluation(Rhymes("wikitext2"))


def test_words_and_caveats_are_in_rows_and_not_in_keys(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder))
    keys, words = set(), set()
    for text in ("held-out documents", "the same in other words"):
        task = PerplexityTask("mine", Protocol("testbed", 64, "packed", text))
        stage = task.stage(base, task.options(), base)
        assert isinstance(stage, Perplexity)
        keys.add(stage.key)
        words.add(stage.protocol.words)
    assert len(keys) == 1 and len(words) == 2


def test_what_must_be_known_comes_from_the_model_and_from_the_task(tiny_folder: Path) -> None:
    tiny, testbed = pretrained(str(tiny_folder)), pretrained("testbed")
    for model, task, said in (
        (tiny, "testbed_story", True),
        (testbed, "testbed_story", True),
        (testbed, "testbed-ppl", True),
        (tiny, "piqa", False),
        (testbed, "piqa", True),
    ):
        evaluation = find_evaluation(task)
        if task == "piqa":  # whose items are not here
            object.__setattr__(evaluation, "digest", "items")
        stage = evaluation.stage(model, evaluation.options(), model)
        assert isinstance(stage, LmEval | Perplexity)
        caveat = stage.caveat or ""
        assert ("real LLM" in caveat) == said, (model.source, task)
        assert caveat.count("real LLM") <= 1


def test_functions_that_a_task_file_names_are_behind_its_scores() -> None:
    code = [each.__name__ for each in find_evaluation("testbed_code").uses()]
    assert code == ["functions", "score_code"]
    assert [each.__name__ for each in find_evaluation("testbed_story").uses()] == ["story"]
