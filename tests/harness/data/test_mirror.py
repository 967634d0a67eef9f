"""Tasks and texts of a mirror of real data: scores equal lm-eval's own, what is missing is said.

The mirror is made in a temporary folder from the real items under BITGRID_SHARED.
"""

from __future__ import annotations

import copy
import gzip
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness import compat
from harness.core.errors import GridError, ModelError, TextError
from harness.core.execution import execute
from harness.data import hub
from harness.data.jsonl import read_dataset
from harness.evaluation import lm_eval_run, sandbox, task_files
from harness.evaluation.evaluations import build_evaluation, find_evaluation
from harness.evaluation.lm_eval import LmEval
from harness.evaluation.scores import Scores
from harness.evaluation.task_files import Task
from harness.grid import expand as grid
from harness.models import Model, Pretrained, pretrained, read_model
from harness.testbed.registration import TASKS
from tests.support import mirror


@pytest.fixture(scope="module")
def built(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mirror.build(shared / "data", tmp_path_factory.mktemp("mirror"))


@pytest.fixture
def real(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror of everything that is at hand, and BITGRID_MIRROR set to it."""
    monkeypatch.setenv("BITGRID_MIRROR", str(built))
    return built


@pytest.fixture(scope="module")
def stories(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Pretrained, Model]:
    """stories260K as it is but for its context, so that HumanEval's 1024 tokens fit."""
    folder = tmp_path_factory.mktemp("stories") / "stories"
    shutil.copytree(shared / "models/stories260K", folder, copy_function=shutil.copyfile)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 2048}))
    return pretrained(str(folder), "float32"), read_model(str(folder), "float32")


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A mirror with nothing in it yet."""
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror").mkdir()
    return tmp_path / "mirror"


def _score(found: tuple[Pretrained, Model], task: str, work: Path, **options: Any) -> Scores:
    base, model = found
    stage = build_evaluation(base, task, base, **options)
    values = {above.key: execute(above, {}, work) for above in stage.inputs if above != base}
    return execute(stage, {**values, base.key: model}, work)


def _only_validation(path: str, name: str | None = None, **_: Any) -> Any:
    """The mirror's splits as lm-eval wants them, by another way than ours."""
    from datasets import Dataset, DatasetDict

    files = hub.find_access().mirrored(path, name)
    found = {split: Dataset.from_json(str(file)) for split, file in files.items()}
    return DatasetDict({"train": next(iter(found.values())), **found})


DIRECT = {"hellaswag": "hellaswag", "winogrande": "winogrande", "wikitext-word": "wikitext"}


@pytest.mark.parametrize("task", DIRECT)
def test_scores_equal_lm_evals_own_run(
    real: Path,
    stories: tuple[Pretrained, Model],
    task: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    limit = 1 if task == "wikitext-word" else 12
    ours = _score(stories, task, tmp_path, limit=limit)
    monkeypatch.setattr(datasets, "load_dataset", _only_validation)
    base, _ = stories
    direct = simple_evaluate(
        model=HFLM(base.source, dtype="float32", batch_size=8, device="cpu", add_bos_token=False),
        tasks=[DIRECT[task]],
        limit=limit,
        task_manager=compat.make_task_manager(None),
    )
    assert direct is not None
    theirs = direct["results"][DIRECT[task]]
    metrics = {row.metric: row for row in ours.rows}
    assert set(metrics) == {
        name.removesuffix(",none") for name in theirs if "," in name and "_stderr" not in name
    }
    for metric, row in metrics.items():
        assert row.value == theirs[f"{metric},none"]
        if row.stderr is not None:
            assert row.stderr == theirs[f"{metric}_stderr,none"]
    assert {row.task for row in ours.rows} == {task}


@pytest.mark.parametrize(
    ("task", "primary", "others"),
    [
        ("piqa", "acc,none", {"acc_norm,none"}),
        ("arc_challenge", "acc,none", {"acc_norm,none"}),
        ("gsm8k", "exact_match,flexible-extract", {"exact_match,strict-match"}),
        ("humaneval", "pass@1,create_test", set()),
    ],
)
def test_tasks_run_from_the_mirror(
    real: Path,
    stories: tuple[Pretrained, Model],
    task: str,
    primary: str,
    others: set[str],
    tmp_path: Path,
) -> None:
    rows = _score(stories, task, tmp_path, limit=1).rows
    names = {f"{row.metric},{row.filter}": row for row in rows}
    assert [name for name, row in names.items() if row.primary] == [primary]
    assert {name for name, row in names.items() if not row.primary} == others
    assert all(row.n == 1 and row.value in (0, 1) for row in rows)


def test_mmlu_is_the_macro_mean_of_57_subjects(
    real: Path, stories: tuple[Pretrained, Model], tmp_path: Path
) -> None:
    first, *subjects = _score(stories, "mmlu", tmp_path, limit=1).rows
    assert (first.task, first.n, first.primary) == ("mmlu", 57, True)
    assert (first.num_fewshot, first.aggregation) == (5, "macro_mean")
    assert len(subjects) == 57 and not any(row.primary for row in subjects)
    assert {row.group for row in subjects} == {"mmlu"}
    assert first.value == pytest.approx(sum(row.value or 0 for row in subjects) / 57)


def test_perplexity_of_mirrored_texts(
    real: Path, stories: tuple[Pretrained, Model], tmp_path: Path
) -> None:
    for task in ("wikitext2", "c4-new"):
        (row,) = _score(stories, task, tmp_path, window=128, limit=2).rows
        assert row.n == 2 and row.value is not None and math.isfinite(row.value)


def test_prompts_that_are_cut_are_counted(real: Path, shared: Path, tmp_path: Path) -> None:
    folder = str(shared / "models/stories260K")
    found = pretrained(folder, "float32"), read_model(folder, "float32")
    rows = _score(found, "winogrande", tmp_path, limit=1, num_fewshot=0).rows
    assert rows[0].protocol == "lm-eval"
    rows = _score(found, "gsm8k", tmp_path, limit=1).rows
    assert rows[0].protocol == "lm-eval; 1 prompts cut to fit the context"


def test_humanevals_own_solutions_pass_and_wrong_ones_do_not(real: Path) -> None:
    rows = list(hub.find_access().rows(hub.Split("openai/openai_humaneval", None, "test")))[:6]
    tests = [f"{row['test']}\ncheck({row['entry_point']})" for row in rows]
    right = [[row["prompt"] + row["canonical_solution"]] for row in rows]
    wrong = [[row["prompt"] + "    return None\n"] for row in rows]
    assert sandbox.pass_at_k(tests, right)[0] == {"pass@1": 1.0}
    assert sandbox.pass_at_k(tests, wrong)[0] == {"pass@1": 0.0}
    # The very function that lm-eval's task scores with.
    with lm_eval_run._quiet(), lm_eval_run._served(hub.find_access(), sandbox.pass_at_k):
        task = compat.make_task_manager(None).load(["humaneval"])["tasks"]["humaneval"]
        score = task._metric_fn_list["pass_at_k"]
    assert score(references=tests[:1], predictions=right[:1], k=[1]) == {"pass@1": 1.0}
    assert score(references=tests[:1], predictions=wrong[:1], k=[1]) == {"pass@1": 0.0}


def test_pass_at_k_is_the_unbiased_estimate() -> None:
    programs = ["x = 1", "x = 2", "x = 2", "x = 2"]
    rates, _ = sandbox.pass_at_k(["assert x == 1"], [programs], k=[1, 2, 8])
    assert rates == {"pass@1": pytest.approx(1 / 4), "pass@2": pytest.approx(1 / 2)}


def test_what_the_mirror_lacks_is_said_before_anything_is_computed(
    small: Path, tiny_folder: Path
) -> None:
    base = pretrained(str(tiny_folder))
    with pytest.raises(TextError) as caught:
        build_evaluation(base, "winogrande")
    message = str(caught.value)
    assert message.startswith(
        "task 'winogrande' reads allenai/winogrande (winogrande_xl) validation: "
        f"the mirror lacks {small}/allenai/winogrande/winogrande_xl/validation.jsonl[.gz]"
    )
    row = {"sentence": "The _ is wet.", "option1": "cup", "option2": "pot", "answer": "1"}
    mirror.write(small, "allenai/winogrande", "winogrande_xl", "validation", [row])
    assert isinstance(build_evaluation(base, "winogrande"), LmEval)
    with pytest.raises(TextError, match=r"train: the mirror lacks .*choices: validation"):
        build_evaluation(base, "winogrande", num_fewshot=5)
    mirror.write(small, "cais/mmlu", "anatomy", "test", [])
    mirror.write(small, "cais/mmlu", "anatomy", "dev", [{"question": "?"}])
    with pytest.raises(TextError, match=r"mmlu \(anatomy\) test: .* is empty"):
        build_evaluation(base, "mmlu_anatomy")


@pytest.mark.parametrize(
    ("task", "place", "row", "column"),
    [
        ("piqa", ("baber/piqa", None, "validation"), ["goal", "sol1", "sol2"], "label"),
        ("piqa", ("baber/piqa", None, "validation"), ["goal", "sol1", "label"], "sol2"),
        ("mmlu_anatomy", ("cais/mmlu", "anatomy", "test"), ["question", "choices"], "answer"),
        ("gsm8k", ("openai/gsm8k", "main", "test"), ["question"], "answer"),
    ],
)
def test_a_column_that_a_tasks_templates_name_is_missed_before_anything_is_computed(
    small: Path, tiny_folder: Path, task: str, place: tuple[str, str, str], row: list, column: str
) -> None:
    """Without the column of right answers lm-eval finds every answer wrong, and says nothing."""
    file = mirror.write(
        small, *place, [dict.fromkeys([*row, column], "x"), dict.fromkeys(row, "x")]
    )
    with pytest.raises(TextError) as caught:
        task_files.digest(Task(task), 0, hub.find_access())
    told = f"{file}: line 2 has no column {column!r}; columns: {', '.join(row)}"
    assert str(caught.value).endswith(told)
    mirror.write(small, *place, [dict.fromkeys([*row, column], "x")])
    assert task_files.digest(Task(task), 0, hub.find_access())


def test_columns_that_a_function_makes_are_not_asked_of_the_rows() -> None:
    made = {"process_docs": "utils.f", "doc_to_text": "{{query}}", "doc_to_target": "label"}
    assert not task_files.find_columns(made)
    words = {"doc_to_text": "{{a}}{% if b is defined %}{{b}}{% endif %}", "doc_to_target": "all"}
    assert not task_files.find_columns(words)
    chosen = {"doc_to_text": "", "doc_to_target": "yes", "doc_to_choice": ["yes", "no"]}
    assert not task_files.find_columns(chosen)


@pytest.mark.parametrize(
    ("task", "place", "row", "words"),
    [
        ("gsm8k", ("openai/gsm8k", "main", "test"), {"quest": "?"}, "'question' is undefined"),
        (
            "winogrande",
            ("allenai/winogrande", "winogrande_xl", "validation"),
            {"sentence": None, "option1": "x", "option2": "y", "answer": "1"},
            "AttributeError 'NoneType' object has no attribute 'index'",
        ),
        (
            "hellaswag",
            ("Rowan/hellaswag", None, "validation"),
            {"ctx_a": "x", "label": "0"},
            "KeyError 'ctx_b'",
        ),
    ],
)
def test_rows_that_a_tasks_templates_do_not_fit(
    small: Path, tiny_folder: Path, task: str, place: tuple[str, str, str], row: Any, words: str
) -> None:
    mirror.write(small, *place, [row])
    model = read_model(str(tiny_folder), "float32")
    with pytest.raises(TextError) as caught:
        lm_eval_run.run_task(model, Task(task), 0, False, None, 4, hub.find_access(), task)
    message = str(caught.value)
    assert (
        message.startswith(f"task {task!r} does not fit the rows it reads: ") and words in message
    )
    kinds = {str: "text", type(None): "null"}
    columns = ", ".join(f"{name} ({kinds[type(held)]})" for name, held in row.items())
    assert message.endswith(f"; {place[0]} has the columns {columns}")


def test_a_broken_line_of_a_tasks_items_is_said_before_anything_is_computed(
    small: Path, tiny_folder: Path
) -> None:
    file = mirror.write(small, "baber/piqa", None, "validation", [])
    file.write_bytes(gzip.compress(b'{"goal": "x"}\n{"goal": \n'))
    with pytest.raises(TextError) as caught:
        build_evaluation(pretrained(str(tiny_folder)), "piqa")
    assert f"{file}: line 2 is not a JSON object: Expecting value" in str(caught.value)


def test_rows_that_disagree_in_type_name_their_file(small: Path) -> None:
    file = mirror.write(small, "some/set", None, "test", [{"label": 1}, {"label": "one"}])
    with pytest.raises(TextError, match=r"test.jsonl.gz: rows do not agree in type: "):
        read_dataset(file)


def test_items_are_part_of_the_key_by_content_or_commit(
    small: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(task: str = "piqa") -> str:
        return build_evaluation(pretrained(str(tiny_folder)), task).key

    piqa = {"sol1": "a", "sol2": "b", "label": 0}
    mirror.write(small, "baber/piqa", None, "validation", [{**piqa, "goal": "one"}])
    first = key()
    mirror.write(small, "baber/piqa", None, "validation", [{**piqa, "goal": "two, longer"}])
    assert key() != first
    (small / "baber/piqa/REVISION").write_text("c" * 40 + "\n")
    pinned = key()
    mirror.write(small, "baber/piqa", None, "validation", [{**piqa, "goal": "three"}])
    assert key() == pinned
    # The same data set at the same commit, on a machine that has a network and no mirror.
    monkeypatch.delenv("BITGRID_MIRROR")
    monkeypatch.setattr(hub, "_commit", lambda path: "c" * 40)
    assert key() == pinned


def test_a_group_reads_what_its_tasks_read() -> None:
    found = task_files.find_splits(Task("mmlu"), 5)
    assert len(found) == 2 * 57
    assert {(read.path, read.split) for read in found} == {
        ("cais/mmlu", "test"),
        ("cais/mmlu", "dev"),
    }
    assert task_files.find_splits(Task("mmlu_anatomy"), 0) == (
        hub.Split("cais/mmlu", "anatomy", "test"),
    )
    assert {read.config for read in task_files.find_splits(Task("ai2_arc"), None)} == {
        "ARC-Easy",
        "ARC-Challenge",
    }
    assert (
        task_files.find_splits(Task("wikitext-word"), None)[0].path
        == "EleutherAI/wikitext_document_level"
    )
    # Its examples are in its YAML, not in a split.
    assert [read.split for read in task_files.find_splits(Task("mbpp"), None)] == ["test"]


def test_tasks_that_run_code_are_known_by_their_yaml() -> None:
    for name in ("humaneval", "humaneval_plus", "mbpp", "cruxeval_input"):
        assert find_evaluation(name).runs_code
    for name in ("gsm8k", "mmlu", "wikitext2"):
        assert not find_evaluation(name).runs_code


def test_texts_that_look_like_dates_stay_texts(small: Path) -> None:
    rows = [{"answer": "2020-01-01", "label": 1, "none": None, "choices": {"text": ["a", "b"]}}]
    file = mirror.write(small, "some/set", None, "test", rows)
    assert list(read_dataset(file)) == rows


def test_a_plan_is_made_anew_when_the_mirror_changes(
    small: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.core.store import Store
    from harness.run import plan, remembering

    store, path = Store(tmp_path / "store"), tmp_path / "grid.yaml"
    piqa = {"sol1": "a", "sol2": "b", "label": 0}
    mirror.write(small, "baber/piqa", None, "validation", [{**piqa, "goal": "one"}])
    path.write_text(f"model: {tiny_folder}\nmethod: bf16\nevaluate: [piqa]\n")
    remembering.remember(plan.build(grid.load(path)), store)
    assert remembering.remembered(path, store) is not None
    mirror.write(small, "baber/piqa", None, "validation", [{**piqa, "goal": "two, longer"}])
    assert remembering.remembered(path, store) is None
    remembering.remember(plan.build(grid.load(path)), store)
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path))
    assert remembering.remembered(path, store) is None


GRID = "model: {model}\nmethod: bf16\nmirror: {mirror}\nevaluate:\n  - {task}\n"


@pytest.mark.parametrize(
    ("task", "line", "words"),
    [
        ("wikitext", 5, "'wikitext-word' is lm-eval's word perplexity"),
        ("{wikitext2: {window: 513}}", 5, "wikitext2: window 513, but the context is 512"),
        ("humaneval", 5, "humaneval: answers may have 1024 tokens, but the model's context is 512"),
        ("{piqa: {bos: true}}", 5, "piqa: bos is true, but the tokenizer has no BOS token"),
        ("{wikitext2: {bos: true, window: 64}}", 5, "but the tokenizer has no BOS token"),
        ("{wikitext2: {window: 64}}", 5, "test.jsonl.gz is empty"),
        ("{c4: {window: 64}}", 5, "the mirror lacks"),
        ("wikitext-word", 5, "after a BOS or EOS token, and the tokenizer has neither: set bos_"),
        ("gsm8k", 5, "the mirror lacks"),  # a batch can be filled with any token
    ],
)
def test_bad_input_is_one_line_with_its_place(
    tiny_folder: Path, tmp_path: Path, task: str, line: int, words: str
) -> None:
    folder = tmp_path / "mirror"
    mirror.write(folder, "Salesforce/wikitext", "wikitext-2-raw-v1", "test", [])
    model = tmp_path / "bare"
    shutil.copytree(tiny_folder, model)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (model / name).exists():
            told = json.loads((model / name).read_text())
            kept = {key: given for key, given in told.items() if not key.endswith("_token")}
            (model / name).write_text(json.dumps(kept))
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.format(model=model, mirror="mirror", task=task))
    with pytest.raises(GridError) as caught:
        grid.load(path, allow_code_execution=True)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ") and "\n" not in message
    assert words in message


def test_a_mirror_that_is_not_there(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID.format(model=tiny_folder, mirror="no/where", task="piqa"))
    with pytest.raises(GridError, match=rf"grid.yaml:3: the mirror folder {tmp_path}/no/where is"):
        grid.load(path)


def test_a_bos_that_the_tokenizer_does_not_put_first(tiny_folder: Path) -> None:
    tokenizer = copy.deepcopy(pretrained(str(tiny_folder)).tokenizer())
    story = Task("testbed_story", TASKS)
    task_files.check_model(story, True, tokenizer, 512)
    tokenizer.bos_token = "<pad>"
    with pytest.raises(ModelError, match="bos is true, but the tokenizer's first token is '<s>'"):
        task_files.check_model(story, True, tokenizer, 512)
