"""Tokens of the environment stand in no file of a store, a launch or a report."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.cluster import snapshots
from tests.support import fakeslurm

TOKENS = {"HF_TOKEN": "hf_QxWvUtSrQpOnMl", "LAB_API_KEY": "made-up-0123456789"}
GRID = """# Is anything said?
model: {model}
method: rtn
defaults: {{format.bits: 3, format.group_size: 32}}
evaluate: [{{testbed-ppl: {{limit: {limit}, window: 64}}}}]
"""
PROFILE = """partition: gpu
setup: [export WANDB_API_KEY=$LAB_API_KEY]
sbatch: {comment: $LAB_API_KEY, export: "ALL,HF_TOKEN"}
"""


@pytest.fixture
def place(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two grids and a profile, in an environment with tokens."""
    for name, value in TOKENS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for limit in (1, 2):
        (tmp_path / f"grid{limit}.yaml").write_text(GRID.format(model=tiny_folder, limit=limit))
    (tmp_path / "profile.yaml").write_text(PROFILE)
    return tmp_path


def test_no_file_and_no_line_has_a_token(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm = fakeslurm.install(place / "lab", monkeypatch)
    monkeypatch.setattr(snapshots, "PACKAGES", ("harness/published",))  # is copied faster
    for verb in ("plan", "run", "report --html", "publish"):
        assert main([*verb.split(), "grid1.yaml"]) == 0
    for words in (["--dry"], []):
        assert main(["launch", "grid2.yaml", "--cluster", "profile.yaml", *words]) == 0
    assert all("export WANDB_API_KEY=$LAB_API_KEY" in script for script in slurm.submitted)
    said = capsys.readouterr()
    texts = {"stdout": said.out.encode(), "stderr": said.err.encode()}
    for path in (path for path in place.rglob("*") if path.is_file()):
        data = path.read_bytes()
        texts[str(path)] = gzip.decompress(data) if path.suffix == ".gz" else data
    kinds = {Path(name).suffix for name in texts}
    expected = ".json .jsonl .gz .md .html .csv .sh .pkl"
    assert kinds >= set(expected.split())
    found = [name for name, data in texts.items() for t in TOKENS.values() if t.encode() in data]
    assert not found


@pytest.mark.parametrize("file", ["grid1.yaml", "profile.yaml"])
def test_a_file_with_a_token_is_refused_before_anything_is_kept(
    place: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / file
    lines = path.read_text().count("\n")
    path.write_text(path.read_text() + f"# {TOKENS['LAB_API_KEY']}\n")
    words = ["plan", file] if file == "grid1.yaml" else ["launch", "grid2.yaml", "--cluster", file]
    assert main(words) == 2
    said = capsys.readouterr()
    assert f"{file}:{lines + 1}: the value of LAB_API_KEY stands here" in said.err
    assert TOKENS["LAB_API_KEY"] not in said.out + said.err
    assert not list(Path(os.curdir).rglob("launches"))
