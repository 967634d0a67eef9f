"""What new-method, new-objective and new-format write is whole: it passes the checker."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.cli.main import main
from tests.support.mistakes import registries_restored

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _unregistered() -> Iterator[None]:
    with registries_restored():
        yield


@pytest.mark.parametrize("kind", ["method", "objective", "format"])
def test_a_new_file_passes_the_checker_and_the_linter(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([f"new-{kind}", f"test-new-{kind}"]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name == f"test_new_{kind}.py"
    assert not re.search(r"NAME|CLASS|TITLE", path.read_text())
    # Here the project's own packages are others', so imports are grouped otherwise.
    options = ["--config", str(ROOT / "pyproject.toml"), str(path)]
    for command in (["check", "--ignore", "I001"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, *options]
        done = subprocess.run(ruff, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    capsys.readouterr()
    assert main(["check", path.name]) == 0, capsys.readouterr().out
    before = path.read_text()
    assert main([f"new-{kind}", f"test-new-{kind}"]) == 2  # by now the name is taken
    assert "is taken" in capsys.readouterr().err and path.read_text() == before


def test_in_a_checkout_it_is_a_file_of_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods/__init__.py").touch()
    (tmp_path / "harness").mkdir()
    assert main(["new-method", "test-there"]) == 0
    assert (tmp_path / "methods/test_there.py").is_file()
    assert main(["new-method", "test-there"]) == 2
    assert "exists already; nothing was written" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["My-Method", "2bit", "a_b", "../up", "a--b", "-a", ""])
def test_a_name_that_no_grid_could_say(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-method", "--", name]) == 2
    assert "should be small letters, digits and hyphens" in capsys.readouterr().err
