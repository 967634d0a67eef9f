"""The site builds, without a link that leads nowhere, and its reference says what the code has."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path, PurePosixPath
from types import ModuleType

import pytest
import yaml

import harness.api
import methods.parts
from harness.cli.main import VERBS
from harness.config.settings import find_families
from harness.core.records import Row
from harness.grid.schema import GridFile
from methods.recipe import Recipe

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def generate() -> Iterator[tuple[ModuleType, ModuleType]]:
    """`pages` and `reference` of docs/generate, which mkdocs imports from their folder."""
    folder = str(ROOT / "docs" / "generate")
    sys.path.insert(0, folder)
    yield importlib.import_module("pages"), importlib.import_module("reference")
    sys.path.remove(folder)
    for name in ("pages", "reference"):
        del sys.modules[name]


@pytest.fixture(scope="module")
def reference(generate: tuple[ModuleType, ModuleType]) -> Mapping[str, str]:
    return generate[1].write_pages()


def test_the_reference_has_all_that_the_code_has(reference: Mapping[str, str]) -> None:
    headings = {name: re.findall(r"^#+ (.*)$", text, re.M) for name, text in reference.items()}
    assert {verb.name for verb in VERBS} == set(headings["verbs"][1:])
    for name, known in (
        ("schema", GridFile.model_fields),
        ("records", [f.name for f in fields(Row)]),
    ):
        section = reference[name].split("\n## ")[1]
        assert set(known) <= set(re.findall(r"^\| `(\w+)`", section, re.M)), name
    assert {"BitDistiller", "RTN", "GPTQ", "LLM-QAT"} <= set(headings["methods"])
    for place, family in find_families(Recipe).items():
        if "." not in place:
            assert {f"{place}: {name}" for name in family.siblings()} <= set(headings["components"])
    for page, module in (("api", harness.api), ("parts", methods.parts)):
        shown = re.findall(r"^::: (\S+)$", reference[page], re.M)
        assert shown == [f"{module.__name__}.{name}" for name in module.__all__]


def test_no_table_of_the_reference_is_ragged(reference: Mapping[str, str]) -> None:
    for name, text in reference.items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.M):
            sizes = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(sizes) == 1, (name, table)


@pytest.mark.parametrize(
    ("source", "link", "turned"),
    [
        ("README.md", "docs/grids.md#keys", "grids.md#keys"),
        ("README.md", "results/quickstart/report.md", "results/quickstart/report.md"),
        ("README.md", "LICENSE", "source/LICENSE.md"),
        ("docs/log.md", "../README.md#limits", "index.md#limits"),
        ("docs/log.md", "../methods/rtn.py", "source/methods/rtn.py.md"),
        (
            "docs/methods.md",
            "../examples/bitgrid-binary",
            "source/examples/bitgrid-binary/index.md",
        ),
        ("results/quickstart/report.md", "plots/a.png", "plots/a.png"),
        ("docs/reference/api.md", "../../methods/rtn.py", "../source/methods/rtn.py.md"),
        ("docs/log.md", "https://arxiv.org/abs/1", "https://arxiv.org/abs/1"),
        ("docs/log.md", "#top", "#top"),
    ],
)
def test_a_link_leads_where_its_target_is_on_the_site(
    generate: tuple[ModuleType, ModuleType], source: str, link: str, turned: str
) -> None:
    text = f"[a]({link})\n```text\n[b]({link})\n```\n"
    expected = f"[a]({turned})\n```text\n[b]({link})\n```\n"
    assert generate[0].turn_links(text, PurePosixPath(source)) == expected


def test_pipes_in_the_code_of_tables_are_shown(generate: tuple[ModuleType, ModuleType]) -> None:
    text = "| `a \\| b` | c \\| d | `` e`\\|`f `` |\n`x \\| y`\n"
    shown = "| `a | b` | c \\| d | `` e`|`f `` |\n`x \\| y`\n"
    assert generate[0].show_pipes(text) == shown


def test_every_page_has_a_place_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r": ([\w/-]+\.md)$", str(yaml.safe_dump(yaml.safe_load(text))), re.M))
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= listed


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed: make setup-docs"
)
def test_the_site_builds_and_asks_nothing_of_a_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    home = (tmp_path / "index.html").read_text()
    assert "Answers so far" in home and "results/testbed-baselines/report/" in home
    assert "Quantized" in (tmp_path / "reference/api/index.html").read_text()
    assert (tmp_path / "results/quickstart/report/index.html").is_file()
    for page in tmp_path.rglob("index.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]* (?:src|href)=\"?(\S+)", page.read_text())
        assert not [each for each in loaded if re.match(r"(https?:)?//", each)], page
