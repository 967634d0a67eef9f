"""examples/: a stranger's package is installed into a folder, and its method is a name as any."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import harness.api

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "examples/bitgrid-binary"
VERBS = """
from harness.cli.main import main
for line in ("methods", "plan grid.yaml --cells", "run grid.yaml", "check binary"):
    print("$", line, flush=True)
    assert main(line.split()) == 0, line
import test_binary  # it runs `check binary` as well
"""


def _run(*command: str | Path, cwd: Path, **more: str) -> str:
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=os.environ | more, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_package_adds_its_method(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    shutil.copytree(PACKAGE, source, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
    _run(*pip, "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source,
         cwd=tmp_path)  # fmt: skip
    (source / "bitgrid_binary.py").unlink()  # what is imported is what was installed
    said = _run(sys.executable, "-P", "-c", VERBS, cwd=source,
                PYTHONPATH=f"{target}{os.pathsep}{source}")  # fmt: skip
    methods, plan, run, checks = said.split("$ ")[1:]
    assert "binary  " in methods and "signs times a group's mean magnitude" in methods
    assert "  Binary seed=0" in plan
    rows = map(json.loads, (source / "runs/grid/rows.jsonl").read_text().splitlines())
    assert {row["method"] for row in rows} == {"bf16", "rtn", "binary"}
    assert "Binary" in run and "FAILED" not in checks and checks.count("  passed") > 15


def test_the_package_imports_what_is_public_in_few_lines() -> None:
    text = (PACKAGE / "bitgrid_binary.py").read_text()
    assert len(text.splitlines()) <= 60
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith(("harness", "methods")):
            assert node.module == "harness.api"
            assert {alias.name for alias in node.names} <= set(harness.api.__all__)
