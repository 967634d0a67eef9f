"""Data whose labels no answer can be right for are refused when the grid is read, not scored 0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import GridError, TextError
from harness.data.hub import find_access
from harness.evaluation import lm_eval
from harness.evaluation.evaluations import build_evaluation
from harness.evaluation.lm_eval import LmEvalTask
from harness.evaluation.lm_eval_options import LmEvalOptions
from harness.grid import expand as grid
from harness.models import pretrained
from tests.support import mirror

Row = dict[str, Any]

# Of each task: where its data lie, and two rows as the hub has them.
DATA: dict[str, tuple[str, str | None, str, list[Row]]] = {
    "piqa": (
        "baber/piqa",
        None,
        "validation",
        [
            {"goal": "Boil water", "sol1": "Heat it.", "sol2": "Cool it.", "label": 0},
            {"goal": "Make ice", "sol1": "Heat it.", "sol2": "Cool it.", "label": 1},
        ],
    ),
    "hellaswag": (
        "Rowan/hellaswag",
        None,
        "validation",
        [
            {
                "ind": n,
                "activity_label": "Cooking",
                "ctx_a": "A man boils water.",
                "ctx_b": "he",
                "ctx": "A man boils water. he",
                "endings": ["drinks tea.", "flies away.", "is a pot.", "swims home."],
                "source_id": "x",
                "split": "val",
                "split_type": "indomain",
                "label": str(n),
            }
            for n in range(2)
        ],
    ),
    "winogrande": (
        "allenai/winogrande",
        "winogrande_xl",
        "validation",
        [
            {
                "sentence": "The cup broke and the pot did not because the _ was thin.",
                "option1": "cup",
                "option2": "pot",
                "answer": answer,
            }
            for answer in "12"
        ],
    ),
    "arc_challenge": (
        "allenai/ai2_arc",
        "ARC-Challenge",
        "test",
        [
            {
                "id": "a",
                "question": "What boils?",
                "choices": {"text": ["water", "stone", "light"], "label": labels},
                "answerKey": labels[0],
            }
            for labels in (["A", "B", "C"], ["1", "2", "3"])
        ],
    ),
    "mmlu_anatomy": (
        "cais/mmlu",
        "anatomy",
        "test",
        [
            {"question": "Which bone?", "subject": "anatomy", "choices": list("pqrs"), "answer": n}
            for n in range(2)
        ],
    ),
    "gsm8k": (
        "openai/gsm8k",
        "main",
        "test",
        [{"question": f"{n} and {n}?", "answer": f"It is {2 * n}.\n#### {2 * n}"} for n in (1, 2)],
    ),
    "humaneval": (
        "openai/openai_humaneval",
        None,
        "test",
        [
            {
                "task_id": f"HumanEval/{n}",
                "prompt": "def one():\n",
                "canonical_solution": "    return 1\n",
                "test": "def check(f):\n    assert f() == 1\n",
                "entry_point": "one",
            }
            for n in range(2)
        ],
    ),
    "mbpp": (
        "google-research-datasets/mbpp",
        "full",
        "test",
        [{"task_id": n, "text": "One.", "test_list": ["assert f()"] * 3} for n in range(2)],
    ),
}
# lm-eval reads those too, whether examples are asked for or not.
OTHERS = {"hellaswag": ["train"], "arc_challenge": ["train"], "winogrande": ["train"]}


def write(folder: Path, task: str, change: Callable[[Row], object] | None = None) -> None:
    """The task's data, the second row changed."""
    path, config, split, rows = copy.deepcopy(DATA[task])
    if change is not None:
        change(rows[1])
    mirror.write(folder, path, config, split, rows)
    if task == "mmlu_anatomy":
        mirror.write(folder, path, config, "dev", DATA[task][3])


def to(column: str, held: object) -> Callable[[Row], object]:
    return lambda row: row.__setitem__(column, held)


def build(tiny_folder: Path, task: str, **options: Any) -> Any:
    model = pretrained(str(tiny_folder))
    evaluation = lm_eval.LmEvalCatalogue().find(task)
    assert evaluation is not None
    return evaluation.stage(model, LmEvalOptions(**options), model)


@pytest.mark.parametrize("task", DATA)
def test_data_as_the_hub_has_them_are_taken(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path))
    write(tmp_path, task)
    stage = build(tiny_folder, task, num_fewshot=0)
    assert stage.has_data(find_access())
    stage.preflight()


FAULTS: list[tuple[str, Callable[[Row], object], str]] = [
    ("piqa", to("label", "1"), "column 'label' is text, '1'; the task wants a whole number from 0"),
    ("piqa", to("label", 1.0), "column 'label' is a number with a point"),
    ("piqa", to("label", -1), "column 'label' is a whole number, -1; the task wants a whole"),
    ("piqa", to("label", 2), "column 'label' is a whole number, 2; the task wants a whole number"),
    ("piqa", to("label", None), "column 'label' is null"),
    ("piqa", to("sol2", None), "column 'sol2' is null"),
    ("piqa", to("sol2", ""), "a choice is text, ''; the task wants text"),
    ("piqa", to("goal", None), "column 'goal' is null"),
    ("hellaswag", to("label", ""), "hellaswag"),
    (
        "hellaswag",
        to("label", "4"),
        "whole number, 4",
    ),
    ("hellaswag", to("label", "-1"), "text, '-1'; the task wants"),
    ("hellaswag", to("endings", "drinks tea."), "a choice is text, ''|hellaswag"),
    ("winogrande", to("answer", 1), r"KeyError 1.*answer \(a whole number\)"),
    ("winogrande", to("answer", ""), r"KeyError ''.*answer \(text\)"),
    ("arc_challenge", to("answerKey", 1), r"answerKey \(a whole number\)"),
    ("arc_challenge", to("answerKey", "E"), r"not in list.*answerKey \(text\)"),
    ("mmlu_anatomy", to("answer", "1"), "column 'answer' is text, '1'; the task wants a whole"),
    ("mmlu_anatomy", to("answer", 4), "column 'answer' is a whole number, 4; the task wants"),
    (
        "mmlu_anatomy",
        to("choices", "pqrs"),
        "column 'choices' is text, 'pqrs'; the task",
    ),
    ("gsm8k", to("answer", None), "column 'answer' is null"),
    ("gsm8k", to("answer", " "), "'{{answer}}' is text, ' '; the task wants text"),
    ("humaneval", to("test", None), "column 'test' is null"),
    ("humaneval", to("entry_point", None), "column 'entry_point' is null"),
    ("mbpp", to("test_list", "assert f()"), "column 'test_list' is text, 'assert f.*wants a list"),
]


@pytest.mark.parametrize("every", [True, False], ids=["all rows", "one row"])
@pytest.mark.parametrize(("task", "change", "words"), FAULTS)
def test_a_label_that_no_answer_is_right_for_is_refused(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    change: Callable[[Row], object],
    words: str,
    every: bool,
) -> None:
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path))
    path, config, split, rows = copy.deepcopy(DATA[task])
    for row in rows if every else rows[1:]:
        change(row)
    if task == "mmlu_anatomy":
        mirror.write(tmp_path, path, config, "dev", DATA[task][3])
    mirror.write(tmp_path, path, config, split, rows)
    # lm-eval reads the first item itself, and Arrow the types of a column, before we do.
    sooner = "does not fit the rows it reads|rows do not agree in type"
    with pytest.raises(TextError, match=f"{words}|{sooner}") as caught:
        build(tiny_folder, task, num_fewshot=0)
    assert "\n" not in str(caught.value)


def test_examples_of_a_prompt_are_looked_at_too(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With "1" for 1 the prompt would show "1" where the answer's letter belongs."""
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path))
    write(tmp_path, "mmlu_anatomy")
    path, config, _, rows = copy.deepcopy(DATA["mmlu_anatomy"])
    for row in rows:
        row["answer"] = "1"
    mirror.write(tmp_path, path, config, "dev", rows)
    build(tiny_folder, "mmlu_anatomy", num_fewshot=0)
    with pytest.raises(TextError, match=r"cais/mmlu anatomy examples, item 0: column 'answer' is"):
        build(tiny_folder, "mmlu_anatomy", num_fewshot=2)


def test_a_grid_says_it_with_its_line(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "label": "1"} for row in DATA["piqa"][3]]
    mirror.write(tmp_path / "mirror", "baber/piqa", None, "validation", rows)
    path = tmp_path / "grid.yaml"
    path.write_text(f"model: {tiny_folder}\nmethod: bf16\nmirror: mirror\nevaluate: [piqa]\n")
    with pytest.raises(GridError) as caught:
        grid.load(path)
    assert str(caught.value) == (
        f"{path}:4: task 'piqa': baber/piqa validation, item 0: column 'label' is text, '1'; the "
        "task wants a whole number from 0 to 1, or the text of a choice"
    )


TASK = """task: quiz
custom_dataset: !function functions.items
output_type: {kind}
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: {target}
{more}
num_fewshot: 0
metric_list:
  - metric: {metric}
"""
FUNCTIONS = """import datasets
def items(**_):
    rows = [{{"question": "What?", "right": right, "a": "yes", "b": "no"}} for right in {rights!r}]
    return {{"test": datasets.Dataset.from_list(rows)}}
"""


@pytest.mark.parametrize(
    ("kind", "rights", "words"),
    [
        ("multiple_choice", [0, 1], None),
        ("multiple_choice", ["no", "yes"], None),
        ("multiple_choice", [True, False], None),
        ("multiple_choice", [[0], [0, 1]], None),
        ("multiple_choice", ["no", "maybe"], "item 1: column 'right' is text, 'maybe'; the task"),
        ("multiple_choice", [[0], [2]], "item 1: column 'right' is a whole number, 2"),
        ("multiple_choice", [[0], []], "item 1: column 'right' is an empty list"),
        ("multiple_choice", [], "quiz"),
        ("generate_until", ["4", "5"], None),
        ("generate_until", [4, 5], None),
        ("generate_until", [["4", "four"], ["5"]], None),
        ("generate_until", ["4", None], "item 1: column 'right' is null"),
        ("generate_until", ["4", ""], "item 1: column 'right' is text, ''; the task wants text"),
        ("generate_until", [["4"], [""]], r"item 1: column 'right' is a list, \[''\]; the task"),
    ],
)
def test_what_a_task_makes_itself_is_looked_at_before_anything_runs(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    rights: list[Any],
    words: str | None,
) -> None:
    more = "doc_to_choice: ['{{a}}', '{{b}}']" if kind == "multiple_choice" else ""
    more = more and 'doc_to_choice: "{{[a, b]}}"'
    metric = "acc" if kind == "multiple_choice" else "exact_match"
    (tmp_path / "quiz.yaml").write_text(
        TASK.format(kind=kind, target="right", more=more, metric=metric)
    )
    (tmp_path / "functions.py").write_text(FUNCTIONS.format(rights=rights))
    quiz = LmEvalTask("quiz", tmp_path, digest=f"quiz of {rights}")
    monkeypatch.setattr(lm_eval, "find_evaluation", lambda name: quiz)
    stage: Any = quiz.stage(pretrained(str(tiny_folder)), LmEvalOptions(), None)
    if words is None:
        stage.preflight()
    else:
        with pytest.raises(TextError, match=words):
            stage.preflight()


def test_the_testbeds_own_items_can_all_be_scored(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder))
    for name in ("story", "knowledge", "physical", "pronoun", "harder", "arithmetic", "code"):
        build_evaluation(base, f"testbed_{name}", base).preflight()
