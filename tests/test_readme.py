"""What the README shows works as it stands there: the grid, the method, the commands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness.cli.main import make_parser
from harness.core.execution import execute
from harness.core.stage import closure
from harness.grid.expand import load
from harness.method import METHODS
from harness.models import matrices, pretrained

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    assert len(found) == 1, language
    return str(found[0])


def test_the_grid_of_the_tour(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(_block("yaml"))
    grid = load(path)
    assert len(grid.cells) == 2 * 3 + 3 * 3
    assert grid.question.startswith("Does the confidence-aware divergence")


def test_the_method_of_the_tour(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ternary.py"
    path.write_text(_block("python").replace('register("ternary"', 'register("test-ternary"'))
    code = compile(path.read_text(), str(path), "exec", dont_inherit=True)
    exec(code, {"__name__": "ternary"})
    method = replace(METHODS.load()["test-ternary"].method, group_size=32)  # type: ignore[type-var]
    values: dict[str, object] = {}
    root = method.build(pretrained(str(tiny_folder), "float32"), seed=0)
    for stage in closure([root]):
        values[stage.key] = execute(stage, values, tmp_path)
    for linear in matrices(values[root.key].network).values():  # type: ignore[attr-defined]
        for group in linear.weight.split(32, dim=1):
            assert max(len(row.unique()) for row in group) <= 3
            assert torch.isfinite(group).all()


@pytest.mark.parametrize(
    "words", re.findall(r"^    bitgrid (.*?)(?:\s+#.*)?$", README, re.MULTILINE)
)
def test_the_commands_of_the_tour_exist(words: str) -> None:
    make_parser().parse_args(words.split())


def test_the_tree_names_every_room_and_nothing_else() -> None:
    lines = re.findall(
        r"^    ( *)([\w.]+/?) +\S", README.split("## Where things are")[1], re.MULTILINE
    )
    top, named = "", set()
    for indent, name in lines:
        top = top if indent else name
        named.add(top + name if indent else name)
    rooms = {
        f"{path.parent.relative_to(ROOT)}/"
        for room in ("harness", "methods", "reports")
        for path in (ROOT / room).glob("*/__init__.py")
    }
    assert named >= rooms | {"experiments/", "results/", "runs/", "tests/", "benchmarks/", "docs/"}
    assert all((ROOT / name).exists() for name in named - {"runs/"})


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)(.*?)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("grid", ["quickstart", "smollm2"])
def test_the_tables_are_the_committed_ones(grid: str) -> None:
    report = (ROOT / f"results/{grid}/report.md").read_text()
    table = next(part for part in report.split("\n\n") if part.startswith("| Bits"))
    assert table in README
