"""What the README shows works as it stands there, and each of its numbers is that of the rows."""

from __future__ import annotations

import re
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from harness.cli.main import make_parser
from harness.core.execution import execute
from harness.core.stage import closure
from harness.grid.expand import load
from harness.method import METHODS
from harness.models import matrices, pretrained
from reports import load as load_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COUNTS = {4: "Four", 15: "Fifteen"}
COLUMNS = {"PPL ↓": "ppl", "KL ↓": "kl"}  # of the table, by metric
# The numbers behind each answer, in their order: the varied setting, its value, the task.
ANSWERS: dict[str, list[tuple[str, object, str]]] = {
    "quickstart": [
        ("label", each, "testbed-ppl") for each in ("BitDistiller", "AWQ-clip", "LLM-QAT", "RTN")
    ],
    "composition-testbed": [],
    "objective-testbed": [],
    "confidence-testbed": [],
    "init-testbed": [
        ("init", "clip", "testbed-ppl"),
        ("init", "awq clip=True", "testbed-ppl"),
        ("init", "none", "testbed-ppl"),
    ],
    "clip-threshold-testbed": [
        ("init.shrink", 0.5, "testbed-ppl"),
        ("init.shrink", 0.25, "testbed-ppl"),
    ],
    "data-testbed": [
        ("data", "ground-truth text=testbed", "testbed-ppl"),
        ("data", "generated text=testbed", "testbed-ppl"),
    ],
    "teacher-testbed": [("teacher", None, "testbed-ppl"), ("teacher", "testbed", "testbed-ppl")],
    "format-testbed": [("format", "int-asym", "testbed-ppl"), ("format", "int-sym", "testbed-ppl")],
    "cost-testbed": [("data.sequences", 2048, "testbed-ppl")],
    "group-size-testbed": [
        ("format.group_size", 32, "testbed-ppl"),
        ("format.group_size", 128, "testbed-ppl"),
    ],
    "gradient-testbed": [],
    "domains-testbed": [
        ("data.text", "testbed:code", "testbed-ppl-code"),
        ("data.text", "testbed:stories", "testbed-ppl-code"),
    ],
    "llm-qat-testbed": [],
    "tuned-smollm2": [
        ("label", each, "wikitext2")
        for each in ("BitDistiller", "BitDistiller unclipped", "AWQ-clip")
    ],
    "smollm2-baselines-3bit": [
        ("label", each, "wikitext2") for each in ("BitDistiller", "EfficientQAT")
    ],
    "smollm2-baselines": [("label", each, "wikitext2") for each in ("BitDistiller", "SignRound")],
}


def _block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1, language
    return str(found[0])


def _read_table(text: str) -> list[dict[str, str]]:
    """The rows of the first table of a text: a cell by its column's head."""
    lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert lines
    head, _, *rows = ([c.strip() for c in line[1:-1].split("|")] for line in lines[0].splitlines())
    return [dict(zip(head, row, strict=True)) for row in rows]


def _read_set(text: str) -> str:
    """The set of results whose report a text links to last."""
    return re.findall(r"\]\(results/([\w-]+)/report\.md\)", text)[-1]


@cache
def _list_values(name: str) -> list[tuple[str, dict[str, object], float, str, str, float, str]]:
    """Of each primary row: label, varied settings, bits, task, metric, value, key of its model."""
    rows = load_rows(ROOT / "results" / name)
    rows = rows[rows.primary]
    columns = ["label", "settings", "bits", "task", "metric", "value", "model_key"]
    return list(rows[columns].itertuples(index=False, name=None))


def test_it_is_short_and_says_how_to_begin() -> None:
    assert len(README.split()) < 900
    for command in ("pip install .", "bitgrid init", "bitgrid run", "make demo", "make test"):
        assert re.search(rf"^    {re.escape(command)}", README, re.MULTILINE), command


def test_the_grid_of_the_tour(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(_block("yaml"))
    grid = load(path)
    assert len(grid.cells) == 2 * 3 + 3 * 3
    assert grid.question.startswith("Does the confidence-aware divergence")


def test_the_method_of_the_tour(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ternary.py"
    path.write_text(_block("python").replace('register("ternary"', 'register("of-readme"'))
    code = compile(path.read_text(), str(path), "exec", dont_inherit=True)
    exec(code, {"__name__": "ternary"})
    method = replace(METHODS.load()["of-readme"].method, group_size=32)  # type: ignore[type-var]
    values: dict[str, object] = {}
    root = method.build(pretrained(str(tiny_folder), "float32"), seed=0)
    for stage in closure([root]):
        values[stage.key] = execute(stage, values, tmp_path)
    for linear in matrices(values[root.key].network).values():  # type: ignore[attr-defined]
        for group in linear.weight.split(32, dim=1):
            assert max(len(row.unique()) for row in group) <= 3
            assert torch.isfinite(group).all()


@pytest.mark.parametrize(
    "words", re.findall(r"^    bitgrid (.*?)(?:\s+(?:#|&&).*)?$", README, re.MULTILINE)
)
def test_the_commands_of_the_tour_exist(words: str) -> None:
    make_parser().parse_args(words.split())


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)(.*?)\)", README):
        assert (ROOT / target).exists(), target


def test_the_table_is_part_of_the_committed_report() -> None:
    """Digit for digit, and all rows of each width that it has."""
    above, _, _ = README.partition("\n| ")
    report = _read_table((ROOT / "results" / _read_set(above) / "report.md").read_text())
    shown = _read_table(README)
    assert 1 < len(shown[0]) <= 6 and set(shown[0]) <= set(report[0])
    widths = {row["Bits"] for row in report if row["Bits"] == "16" or _project(row, shown) in shown}
    expected = [_project(row, shown) for row in report if row["Bits"] in widths]
    assert sorted(map(str, shown)) == sorted(map(str, expected))
    assert "2" in widths


def _project(row: dict[str, str], shown: list[dict[str, str]]) -> dict[str, str]:
    return {head: row[head] for head in shown[0]}


def test_the_tables_numbers_follow_from_the_rows() -> None:
    """Means and standard deviations over seeds, computed here from the rows alone."""
    above, _, _ = README.partition("\n| ")
    values = _list_values(_read_set(above))
    for row in _read_table(README):
        bits = int(row.get("Bits", 16 if row["Method"] == "BF16" else 2))
        for head, metric in ((head, COLUMNS[head]) for head in row if head in COLUMNS):
            models = {
                model: value
                for label, _, width, _, kind, value, model in values
                if (label, width, kind) == (row["Method"], bits, metric)
            }
            mean, _, spread = row[head].replace("*", "").partition(" ± ")
            digits = len(mean.partition(".")[2])
            assert f"{statistics.mean(models.values()):.{digits}f}" == mean, (row["Method"], head)
            assert len(models) == (3 if spread else 1)
            assert not spread or f"{statistics.stdev(models.values()):.{digits}f}" == spread


def test_what_is_said_of_the_table_is_so() -> None:
    above, _, _ = README.partition("\n| ")
    rows = load_rows(ROOT / "results" / _read_set(above))
    methods = [row for row in _read_table(README) if row["Method"] != "BF16"]
    assert f"{COUNTS[len(methods)]} baselines" in above
    (group,) = set(rows[rows.label.isin({row["Method"] for row in methods})].group_size)
    assert f"Groups of {group:.0f} weights" in README
    assert (
        set(rows.model) <= {"testbed", "testbed-small"} and "The model is the **testbed**" in README
    )


def _list_answers() -> dict[str, str]:
    lines = re.findall(r"^- .*?\n(?=- |\n)", README.partition("## Answers")[2], re.M | re.S)
    return {_read_set(line): line for line in lines}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_numbers_of_an_answer_are_those_of_the_rows(name: str) -> None:
    answer = re.sub(r"\]\(.*?\)|SmolLM2-135M", "", _list_answers()[name])
    expected = []
    for axis, setting, task in ANSWERS[name]:
        found = [
            value
            for label, settings, bits, where, _, value, _ in _list_values(name)
            if bits == (3 if name.endswith("-3bit") else 2)
            and where == task
            # All but the axis of a label are BitDistiller's: the others are there to compare.
            and (label == setting if axis == "label" else label == "BitDistiller")
            and (axis == "label" or (axis in settings and settings[axis] == setting))
        ]
        assert found, (name, setting)
        assert not isinstance(setting, int) or f"{setting:,}" in answer
        mean = statistics.mean(found)
        expected.append(f"{mean:.0f}" if mean > 1000 else f"{mean:.2f}")
    numbers = re.findall(r"\d+\.\d+|\b\d{4}\b", answer)
    assert numbers == expected


def test_every_answer_is_looked_at() -> None:
    assert set(_list_answers()) == set(ANSWERS)
    others = README.partition("## Answers")[2].partition("## Limits")[0]
    assert others.count("\n- ") == len(ANSWERS)
