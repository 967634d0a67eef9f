"""The wheel works without the checkout; a folder's own methods/ and reports/ shadow nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "harness", "methods", "reports", "experiments")
GRID = {
    "model": "testbed-small",
    "dtype": "float32",
    "method": "rtn",
    "defaults": {"format.bits": 3, "format.group_size": 64},
    "evaluate": [{"testbed-ppl": {"limit": 2}}],
}


def _run(*command: str | Path, cwd: Path, code: int = 0, **more: str) -> str:
    """What a command prints, without this process's way to the checkout."""
    mine = ("PYTHONPATH", "BITGRID_STORE", "VIRTUAL_ENV")
    environment = {name: said for name, said in os.environ.items() if name not in mine} | more
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy, so that nothing that earlier builds left gets in."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, symlinks=True, ignore=ignored)
        else:
            shutil.copyfile(source, folder / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", "dist"]
    _run(*pip, "wheel", *options, ".", cwd=folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, and the libraries that are installed here."""
    folder = tmp_path_factory.mktemp("environment")
    _run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    libraries = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    into = ["--python", folder / "bin/python"]
    _run(*pip, *into, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder, with packages of the names that ours have."""
    for name in ("methods", "reports"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ImportError('a decoy')\n")
    return tmp_path


def test_a_grid_runs_and_published_figures_are_told(bin_folder: Path, folder: Path) -> None:
    bitgrid = bin_folder / "bitgrid"
    code = "import harness, methods, reports; print(harness.__file__, harness.__version__)"
    assert str(ROOT) not in _run(bin_folder / "python", "-P", "-c", code, cwd=folder)

    assert "bitgrid run experiments/quickstart.yaml" in _run(bitgrid, "init", ".", cwd=folder)
    copied = {path.relative_to(folder) for path in (folder / "experiments").rglob("*.yaml")}
    grids = {path.relative_to(ROOT) for path in (ROOT / "experiments").rglob("*.yaml")}
    assert copied == grids
    assert "exists already" in _run(bitgrid, "init", ".", cwd=folder, code=2)

    grid = "# Does it run?\n" + yaml.safe_dump(GRID)
    (folder / "experiments/mine.yaml").write_text(grid)
    assert "RTN " in _run(bitgrid, "run", "experiments/mine.yaml", cwd=folder)
    (row,) = map(json.loads, (folder / "runs/mine/rows.jsonl").read_text().splitlines())
    assert row["value"] > 1
    stages = map(json.loads, (folder / "runs/mine/provenance.jsonl").read_text().splitlines())
    assert {stage["commit"] for stage in stages if "commit" in stage} == {None}

    published = _run(bitgrid, "report", "bitdistiller-2402.10631", cwd=folder)
    assert "BitDistiller" in published and "5.47" in published


def test_jobs_run_from_a_snapshot_of_what_is_installed(bin_folder: Path, folder: Path) -> None:
    (folder / "mine.yaml").write_text("# Does it run?\n" + yaml.safe_dump(GRID))
    (folder / "cluster.yaml").write_text("cluster: local\n")
    bitgrid = bin_folder / "bitgrid"
    _run(bitgrid, "launch", "mine.yaml", "--cluster", "cluster.yaml", cwd=folder)
    assert "failed" not in _run(bitgrid, "status", "mine.yaml", cwd=folder)
    assert len(list((folder / ".bitgrid/values").iterdir())) == 1
    (snapshot,) = (folder / ".bitgrid/code").iterdir()
    assert (snapshot / "methods/rtn.py").exists() and not (snapshot / "methods/decoy").exists()


def test_a_decoy_that_would_be_imported_is_refused(bin_folder: Path, folder: Path) -> None:
    """`python -m` puts the current folder first; nothing would say that its methods are meant."""
    said = _run(bin_folder / "python", "-m", "harness.cli", "methods", cwd=folder, code=2)
    assert said.startswith("bitgrid: package 'methods' would be imported from ")
    assert said.count("\n") == 1
    verb = ("report", "bitdistiller-2402.10631", "--format", "csv")
    assert "5.47" in _run(bin_folder / "python", "-P", "-m", "harness.cli", *verb, cwd=folder)
