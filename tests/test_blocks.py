"""Every block of code in docs/ works as it stands there, or says above itself why no test runs it.

A page is a script: files that it shows are written, commands run one after another in the folder
that the tutorial leaves. `bitgrid` runs in this process, since its imports cost more than most of
what it does here. Python of docs/methods.md is run by `test_methods_page`, grids and numbers of the
README by `test_readme`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from harness.cli.main import main
from harness.grid.expand import load
from harness.grid.schema import GridFile
from tests.support import fakeslurm
from tests.support.mistakes import registries_restored
from tests.test_methods_page import EXAMPLES

DOCS = Path(__file__).parents[1] / "docs"
LANGUAGES = {"sh", "python", "yaml", "toml", "text"}
NOT_RUN, PRINTS, PART = "Not run by the tests: ", "prints", "part of a grid"
TUTORIAL = "tutorial.md"


@dataclass(frozen=True)
class Block:
    """A fenced block: `title` stands above it on the site."""

    language: str
    title: str
    text: str

    @property
    def is_run(self) -> bool:
        return not self.title.startswith(NOT_RUN)


def _read_blocks(page: str) -> list[Block]:
    pattern = r"^```(\w*)(?: title=\"([^\"\n]*)\")?\n(.*?)^```$"
    found = re.findall(pattern, (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


PAGES = {path.name: _read_blocks(path.name) for path in sorted(DOCS.glob("*.md"))}


class Script:
    """Runs the blocks of a page in the current folder."""

    printed = ""

    def run(self, block: Block) -> None:
        if block.title.endswith((".yaml", ".py")):
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text)
        elif block.title == PART:
            _check_part(block.text)
        elif block.title == PRINTS:
            _check_printed(block.text, self.printed)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python":
            exec(compile(block.text, "block", "exec", dont_inherit=True), {"__name__": "block"})
        elif block.language == "sh" and block.is_run:
            self._run_commands(block.text)

    def _run_commands(self, text: str) -> None:
        if not re.search(r"^(bitgrid|cd) ", text, re.MULTILINE):
            subprocess.run(["bash", "-euc", text], check=True)
            return
        for line in text.splitlines():
            for command in re.sub(r"\s+# .*$", "", line).split(" && "):
                self._run_command(command)

    def _run_command(self, command: str) -> None:
        verb, *arguments = shlex.split(command) or [""]
        if verb == "cd":
            os.chdir(arguments[0])
        elif verb == "bitgrid":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                code = main(arguments)
            self.printed = printed.getvalue()
            assert code == 0, command
        else:
            subprocess.run(["bash", "-euc", command], check=True)


def _check_part(text: str) -> None:
    """It may stand in the grid of the tutorial: its keys, or settings among its defaults."""
    part = yaml.safe_load(text)
    if part is None:  # a comment
        return
    is_whole = set(part) <= set(GridFile.model_fields)
    grid = text if is_whole else f"method: rtn\ndefaults:\n{textwrap.indent(text, '  ')}"
    path = Path("experiments/part.yaml")
    path.write_text(f"# A part?\nbase: mine.yaml\ncompare: []\n{grid}")
    assert load(path).cells


def _check_printed(expected: str, printed: str) -> None:
    """Each line is printed, in this order; what … stands for may be anything."""
    lines = iter(" ".join(line.split()) for line in printed.splitlines())
    for line in expected.splitlines():
        start, cut, _ = " ".join(line.split()).partition("…")
        assert any(each.startswith(start) if cut else each == start for each in lines), line


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the tutorial leaves, once it was done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("tutorial"))
        script = Script()
        for block in PAGES[TUTORIAL]:
            script.run(block)
        return Path.cwd()


def test_the_tutorial_ends_with_a_table(study: Path) -> None:
    assert study.name == "my-study"
    assert r"\toprule" in (study / "table.tex").read_text()
    assert (study / "runs/mine/index.html").is_file()


@pytest.mark.parametrize("page", [name for name in PAGES if name != TUTORIAL and PAGES[name]])
def test_a_page(page: str, study: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(study)
    fakeslurm.install(tmp_path / "lab", monkeypatch)
    script = Script()
    with registries_restored():
        for block in PAGES[page]:
            if (page, block.language) != ("methods.md", "python") or block.title:
                script.run(block)


def test_every_block_is_of_a_kind_that_is_looked_at() -> None:
    examples = {code for _, code in EXAMPLES}
    for page, blocks in PAGES.items():
        fences = re.findall(r"^```", (DOCS / page).read_text(), re.MULTILINE)
        assert len(fences) == 2 * len(blocks), page
        for block in blocks:
            assert block.language in LANGUAGES, (page, block)
            if page == "methods.md" and block.language == "python" and not block.title:
                assert block.text in examples
            if block.language == "yaml":  # shown for its own sake, or run
                assert block.title.endswith(".yaml") or block.title == PART, (page, block)


def test_no_block_is_marked_by_indentation_alone() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(), flags=re.M | re.S)
        assert not re.findall(r"^\n    \S.*$", text, re.M), page


@pytest.mark.parametrize(
    ("expected", "printed"),
    [("a b\nc …", "a  b\n---\nc 3\n"), ("c", "a\nc\n")],
)
def test_what_is_printed_is_found(expected: str, printed: str) -> None:
    _check_printed(expected, printed)
    with pytest.raises(AssertionError):
        _check_printed(expected + "\nmore", printed)
    with pytest.raises(AssertionError):
        _check_printed(expected, "")
