"""What docs/methods.md says that a method costs: lines, listed names alone, seconds."""

from __future__ import annotations

import ast
import csv
import inspect
import re

import pytest

import harness.api
import methods.parts
from harness.method import METHODS
from tests.support.mistakes import PAGE

PUBLIC = {*harness.api.__all__, *methods.parts.__all__}
SECTION = PAGE.read_text().partition("\n## How long they are\n")[2].partition("\n## ")[0]
TABLE = re.findall(r"^\| (.+?) \| .*\]\((.+?)\) \| (\d+) \|$", SECTION, re.MULTILINE)


def _read(target: str) -> str:
    """A file, or the code under a heading of the page."""
    if not target.startswith("#"):
        return (PAGE.parent / target).read_text()
    title = target[1:].replace("-", " ")
    under = re.split(rf"^## {title}$", PAGE.read_text(), flags=re.MULTILINE | re.IGNORECASE)[1]
    found = re.search(r"^```python\n(.*?)^```", under, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def _list_private(code: str) -> set[str]:
    """Names of Bitgrid that a file imports and that authors may not."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("harness", "methods")):
            found |= {alias.name for alias in node.names} - PUBLIC
        elif isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
            found |= {name for name in names if name.startswith(("harness", "methods"))}
    return found


def test_the_table_has_each_kind() -> None:
    assert [int(most) for *_, most in TABLE] == [70, 50, 60, 80, 60, 30, 80]


@pytest.mark.parametrize(("what", "target", "most"), TABLE, ids=[each[0] for each in TABLE])
def test_a_method_is_short_and_public(what: str, target: str, most: str) -> None:
    code = _read(target)
    assert len(code.splitlines()) <= int(most), what
    assert not _list_private(code), what


def test_an_adapter_of_a_library_has_fewer_than_60_lines() -> None:
    """One for each method of docs/libraries.md."""
    methods = [each.method for each in METHODS.load().values() if each.method.needs]
    adapters = {type(each) for each in methods if type(each).__module__.startswith("methods.")}
    page = (PAGE.parent / "libraries.md").read_text()
    assert {each.name for each in adapters} == set(re.findall(r"^\| `([\w-]+)` \|", page, re.M))
    for adapter in adapters:
        assert len(inspect.getsource(inspect.getmodule(adapter)).splitlines()) < 60, adapter


def test_a_private_name_is_found() -> None:
    assert _list_private(
        "from harness.models import Model, read_text_config\nimport methods.a"
    ) == {
        "read_text_config",
        "methods.a",
    }


def test_the_path_is_told_as_it_was_measured() -> None:
    with (PAGE.parents[1] / "benchmarks/stranger.csv").open(newline="") as file:
        measured = list(csv.DictReader(file))
    section = PAGE.read_text().partition("\n## How long it takes\n")[2].partition("\n## ")[0]
    told = re.findall(r"^\| `(.+)` \| (.+) \|$", section, re.MULTILINE)
    assert told == [(row["command"], row["seconds"]) for row in measured]
    assert f"{sum(float(row['seconds']) for row in measured):.1f} s of commands" in section
    assert not any(row["commit"].endswith("-dirty") for row in measured)
