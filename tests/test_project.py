"""What describes the project says the same everywhere: versions, licence, requirements, checks."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import harness

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ["3.11", "3.12", "3.13"]


def _read_pins(file: str = "constraints.txt") -> dict[str, str]:
    text = (ROOT / file).read_text()
    return {
        canonicalize_name(name): version
        for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.MULTILINE)
    }


def _requirements() -> list[Requirement]:
    """Those of the package, its tests and its site. Extras that are models are exact files."""
    extras = PROJECT["optional-dependencies"]
    lines = (*PROJECT["dependencies"], *extras["dev"], *extras["docs"])
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("requirement", _requirements(), ids=lambda found: found.name)
def test_a_pin_lies_in_the_range_that_is_asked_for(requirement: Requirement) -> None:
    pin = _read_pins().get(canonicalize_name(requirement.name))
    if pin is None:
        assert requirement.name == "setuptools", "what the tests use is pinned"
    else:
        assert requirement.specifier.contains(pin), f"{requirement} and {pin}"


def test_the_lock_holds_what_is_pinned_and_names_no_host() -> None:
    pins, locked = _read_pins(), _read_pins("requirements.lock")
    assert locked.items() >= pins.items()
    text = (ROOT / "requirements.lock").read_text()
    assert len(re.findall(r"^[\w.-]+==.*\\\n    --hash=sha256:", text, re.MULTILINE)) == len(locked)
    assert "://" not in text and "index" not in text


def test_no_dependency_is_pinned_for_users() -> None:
    for requirement in _requirements():
        assert not any(each.operator == "==" for each in requirement.specifier), requirement
    assert "torch>=2.10" in PROJECT["dependencies"]


def test_the_version_is_said_once() -> None:
    assert "version" in PROJECT["dynamic"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == harness.__version__
    assert f"\n## [{harness.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_the_same_everywhere() -> None:
    assert PROJECT["license"] == "MIT"
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License\n")


def test_make_and_the_package_take_the_same_pythons() -> None:
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if ":: 3." in line]
    assert versions == PYTHONS
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    candidates = re.findall(r"\bpython(3\.\d+)\b", (ROOT / "Makefile").read_text())
    assert set(candidates) == set(PYTHONS)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert set(workflow["jobs"]["checks"]["strategy"]["matrix"]["python"]) <= set(PYTHONS)


def test_make_refuses_another_python_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = ["make", "--silent", "--no-print-directory", "python", f"PYTHON={old}"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert made.returncode and made.stderr.startswith("Python 3.11, 3.12 or 3.13 with venv")


@pytest.mark.parametrize("package", ["harness", "methods", "reports"])
def test_every_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").exists()


def test_hooks_fetch_nothing() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_a_form_for_issues_is_whole(form: Path) -> None:
    said = yaml.safe_load(form.read_text())
    assert said["name"] and said["description"]
    fields = [field["id"] for field in said["body"]]
    assert len(set(fields)) == len(fields) > 1


def test_the_guide_names_files_and_headings_that_exist() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    names = re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", text)
    own = {"methods/my_method.py", "harness/published/NAME.csv", "experiments/NAME.yaml"}
    own |= {"reports/plots/NAME.py", "harness/evaluation/NAME.py", "site/"}
    assert len(names) > 15
    for name in set(names) - own:
        assert (ROOT / name).exists(), name
    for name in own:
        assert (ROOT / name).parent.is_dir(), name
    for target in re.findall(r"\]\(([^)]+)\)", text):
        file, _, heading = target.partition("#")
        assert (ROOT / file).exists(), target
        titles = re.findall(r"^#+ (.*)$", (ROOT / file).read_text(), re.MULTILINE)
        assert not heading or heading in {title.lower().replace(" ", "-") for title in titles}


def test_the_tree_names_every_room_and_nothing_else() -> None:
    tree = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where things are")[2]
    tree = tree.partition("```text\n")[2].partition("```")[0]
    top, named = "", set()
    for indent, name in re.findall(r"^( *)([\w.]+/?) +\S", tree, re.MULTILINE):
        top = top if indent else name
        named.add(top + name if indent else name)
    rooms = {
        f"{path.parent.relative_to(ROOT)}/"
        for room in ("harness", "methods", "reports")
        for path in (ROOT / room).glob("*/__init__.py")
    }
    assert named >= rooms | {"experiments/", "results/", "runs/", "tests/", "benchmarks/", "docs/"}
    assert all((ROOT / name).exists() for name in named - {"runs/"})


VOLATILE = re.compile(r"(gzip|time|random|uuid|tempfile|secrets)\..*|datetime\..*now|os.getpid|id$")
FILE_LINES, FUNCTION_LINES = 400, 60  # a file and a function have fewer
TOO_LONG = {  # this list only shrinks: what got short enough must leave it
    "harness/testbed/articles.py": "three quarters of it are sentences, which are data",
    "benchmarks/makespan.py": "not split yet",
    "tests/harness/data/test_mirror.py": "not split yet",
    "tests/harness/grid/test_grid.py": "not split yet",
    "tests/methods/quantization/test_awq.py": "not split yet",
    "tests/methods/quantization/test_inits.py": "not split yet",
    "tests/methods/training/test_train.py": "not split yet",
    "tests/reports/pages/test_html.py": "not split yet",
}


def _list_too_long(name: str, text: str) -> set[str]:
    """The file's name if it is too long, and with it the name of each function that is."""
    found = {name} if len(text.splitlines()) >= FILE_LINES else set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if node.end_lineno - node.lineno + 1 >= FUNCTION_LINES:
                found.add(f"{name} {node.name}")
    return found


def test_files_and_functions_are_short() -> None:
    found: set[str] = set()
    for folder in ("harness", "methods", "reports", "benchmarks", "docs", "tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found |= _list_too_long(str(path.relative_to(ROOT)), path.read_text())
    assert not found - set(TOO_LONG), "split what is too long"
    assert not set(TOO_LONG) - found, "short enough by now: take it from TOO_LONG"


def _list_volatile(text: str) -> set[str]:
    """Calls in `parametrize` that answer differently in another process or second."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("mark.parametrize"):
            for call in (each for each in ast.walk(node) if isinstance(each, ast.Call)):
                name = ast.unparse(call.func)
                if name == "gzip.compress" and any(each.arg == "mtime" for each in call.keywords):
                    continue  # a gzip header has the time in it, unless one is given
                if VOLATILE.match(name):
                    found.add(name)
    return found


def test_every_process_collects_the_same_tests() -> None:
    found = {
        str(path.relative_to(ROOT)): calls
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if (calls := _list_volatile(path.read_text()))
    }
    assert not found, "tests run in two processes, which must name them alike"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("gzip.compress(b'')", {"gzip.compress"}),
        ("gzip.compress(b'', mtime=0)", set()),
        ("time.time()", {"time.time"}),
        ("str(time.time())", {"time.time"}),
        ("sorted(set(NAMES))", set()),
    ],
)
def test_what_differs_between_processes_is_found(value: str, found: set[str]) -> None:
    assert _list_volatile(f"@pytest.mark.parametrize('a', [{value}])\ndef f(): ...") == found


def test_what_is_too_long_is_found() -> None:
    body = "def f() -> None:\n" + "    pass\n" * (FUNCTION_LINES - 2)
    assert _list_too_long("a.py", body) == set()
    assert _list_too_long("a.py", body + "    pass\n") == {"a.py f"}
    assert _list_too_long("a.py", "\n" * (FILE_LINES - 1)) == set()
    assert _list_too_long("a.py", "\n" * FILE_LINES) == {"a.py"}
