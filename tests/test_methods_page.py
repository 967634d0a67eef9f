"""The page for authors: each example passes the checker, each mistake prints what stands there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness.api
import methods.parts
from harness.testing import Bench, check, load_file
from tests.support.mistakes import HEAD, MISTAKES, PAGE, find_answer, registries_restored

EXAMPLES: list[tuple[str, str]] = re.findall(
    r"^## (.*?)$.*?^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE
)
ROWS = PAGE.read_text().partition(HEAD)[2].splitlines()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with registries_restored():
        yield Bench.make(tmp_path_factory.mktemp("bench"))


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_passes_the_checker(title: str, code: str, bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / f"example_{len(title)}_{title.lower().replace(' ', '_').replace(',', '')}.py"
    path.write_text(code)
    (name,) = load_file(path)
    check(name, bench=bench)


@pytest.mark.parametrize(("title", "code"), EXAMPLES, ids=[title for title, _ in EXAMPLES])
def test_an_example_imports_what_is_public(title: str, code: str) -> None:
    public = {"harness.api": harness.api.__all__, "methods.parts": methods.parts.__all__}
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("harness", "methods")):
            assert {alias.name for alias in node.names} <= set(public[str(node.module)])


def test_the_page_has_an_example_of_each_kind() -> None:
    assert len(EXAMPLES) == 10 and len(ROWS) == len(MISTAKES) > 25


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[each.title for each in MISTAKES])
def test_a_mistake_prints_what_the_page_says(number: int, bench: Bench, tmp_path: Path) -> None:
    """`python -m tests.support.mistakes` writes the table anew."""
    with registries_restored():
        answer = find_answer(number, tmp_path, bench).replace("|", "\\|")
    assert ROWS[number] == f"| {MISTAKES[number].title} | `` {answer} `` |"
