"""The committed grids: each asks a question, each ablation has its twin, and all of them load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from harness import models
from harness.config.document import Document
from harness.core.model_names import may_be_called
from harness.core.stage import closure
from harness.data import Packed
from harness.grid import published
from harness.grid.expand import load
from harness.grid.schema import GridFile
from harness.models import smollm2, sources
from methods.training.data import Generate
from methods.training.train import Train

FOLDER = Path(__file__).parents[1] / "experiments"
GRIDS = sorted(FOLDER.glob("*.yaml"))
TESTBED = [p for p in GRIDS if "testbed" in p.stem] + [FOLDER / "quickstart.yaml"]
REAL = [p for p in GRIDS if p not in TESTBED]
ABLATIONS = {
    *("objective", "confidence", "format", "init", "clip-threshold", "data", "teacher"),
    *("group-size", "cost", "domains", "gradient"),
}
VERIFIED = {"opt-125m", "opt-350m", "bloom-560m", "llama-2-7b"}


def test_all_that_the_paper_asks_is_there() -> None:
    paper = {
        *("paper-general-llama2-7b", "paper-general-llama2-13b"),
        *("paper-code-wizardcoder", "paper-math-metamath", "smollm2"),
        *("gradient-smollm2", "smollm2-baselines", "tuned-smollm2"),
        *("gradient-smollm2-3bit", "smollm2-baselines-3bit"),
    }
    printed = {f"published-{name}" for name in VERIFIED}
    assert {path.stem for path in REAL} == ABLATIONS | paper | printed
    twins = {f"{name}-testbed" for name in ABLATIONS}
    assert {path.stem for path in TESTBED} == twins | {
        "quickstart",
        "inside-testbed",
        "tuned-testbed",
        "llm-qat-testbed",
        "testbed-baselines",
        "composition-testbed",
        "rotation-testbed",
    }


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_each_opens_with_one_line_that_says_what_it_answers(path: Path) -> None:
    for_editors, question, first = path.read_text().splitlines()[:3]
    assert for_editors.startswith("# yaml-language-server: ")
    assert question == f"# {Document(path).comment}"
    assert len(question) > 20 and not first.startswith("#")


@pytest.mark.parametrize("path", TESTBED, ids=lambda path: path.stem)
def test_testbed_grids_load(path: Path) -> None:
    grid = load(path)
    assert all(cell.source.startswith("testbed") for cell in grid.cells)
    if path.stem.removesuffix("-testbed") in ABLATIONS:
        assert {cell.seed for cell in grid.cells} == {0, 1, 2}


@pytest.mark.usefixtures("known_commits")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_grids_load(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are but for the model: a small one with a long context in place of one on the hub."""
    small = tmp_path / "small"
    shutil.copytree(sources.find_source("testbed").folder(), small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    monkeypatch.setattr("methods.recipe.another", lambda base, _: models.pretrained(str(small)))
    stand_in = tmp_path / path.name
    stand_in.write_text(f"base: {path}\nmodel: {small}\n")
    grid = load(stand_in)
    named = Document(path, merged=("defaults", "report")).data
    assert named["model"] == smollm2.NAME or "/" in named["model"]
    labels = {cell.label for cell in grid.cells}
    if path.stem.startswith("published"):
        assert labels >= {"RTN", "GPTQ"}
        return
    assert "BitDistiller" in labels
    if path.stem.startswith(("paper", "smollm2")):
        assert {label.removesuffix(" asym") for label in labels} >= {
            *("BF16", "RTN", "AWQ-clip", "LLM-QAT")
        }


@pytest.mark.parametrize("path", [p for p in REAL if "paper" in p.stem], ids=lambda p: p.stem)
def test_each_task_of_a_paper_grid_is_one_that_the_paper_prints(path: Path) -> None:
    file = GridFile.model_validate(Document(path, merged=("defaults", "report")).data)
    assert file.published is not None and file.published.tolerance
    lines = published.figures(published.find(file.published.name, None), file.published.model)
    asked = [task for each in file.evaluate for task in ([each] if isinstance(each, str) else each)]
    names = {ours: theirs.task for ours, theirs in file.published.tasks.items()}
    assert {names.get(task, task) for task in asked} <= {line["task"] for line in lines}
    known = {*(line["task"] for line in lines), *(line["metric"] for line in lines)}
    assert isinstance(file.published.tolerance, dict) and set(file.published.tolerance) <= known


@pytest.mark.parametrize("name", sorted(VERIFIED))
def test_a_list_of_figures_is_measured_as_it_was_printed(name: str) -> None:
    """Its grid asks for it, and has each width and group of what it can run."""
    path = published.find_grid(published.find(name))
    assert path.read_bytes() == (FOLDER / f"published-{name}.yaml").read_bytes()
    named = Document(path, merged=("defaults", "report")).data
    file, lines = GridFile.model_validate(named), published.figures(published.find(name))
    assert file.published is not None and file.published.name == name
    assert may_be_called(file.model, lines[0]["model"])
    widths = {
        (str(each["bits"]), str(each["group_size"] or "channel")) for each in file.vary["format"]
    }
    runs = [line for line in lines if line["method"] in ("RTN", "GPTQ", "AWQ")]
    assert {(line["bits"], line["group_size"]) for line in runs} <= widths


@pytest.mark.usefixtures("known_commits")
def test_baselines_keep_their_own_sampling(tmp_path: Path) -> None:
    """LLM-QAT samples at temperature 1, BitDistiller at 0.7, in one grid."""
    grid = load(FOLDER / "data-testbed.yaml")
    found = {
        (stage.documents is None, stage.temperature)
        for stage in closure([cell.model for cell in grid.cells])
        if isinstance(stage, Generate)
    }
    assert found == {(True, 1.0), (False, 0.7)}


@pytest.mark.parametrize("name", ["teacher", "teacher-testbed"])
@pytest.mark.usefixtures("known_commits")
def test_teachers_are_compared_on_one_text(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A generated text would change with the teacher to be judged. Their vocabularies are one:
    `models.another` allows no other teacher."""
    larger = models.pretrained("testbed")
    monkeypatch.setattr("methods.recipe.another", lambda base, _: larger)
    stand_in = tmp_path / f"{name}.yaml"
    stand_in.write_text(
        f"base: {FOLDER / name}.yaml\nmodel: testbed-small\n"
        "defaults: {init.length: 256, data.length: 256}\n"
        "evaluate: [testbed-ppl]\nreport: {average: []}\n"
    )
    found = [
        stage
        for stage in closure([cell.model for cell in load(stand_in).cells])
        if isinstance(stage, Train)
    ]
    assert len({stage.teacher for stage in found}) == 2
    texts = [stage.tokens for stage in found if isinstance(stage.tokens, Packed)]
    assert len(texts) == len(found)
    assert len({(text.documents, text.length, text.count) for text in texts}) == 1
