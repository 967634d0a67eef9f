"""What `bitgrid prefetch` brings from a hub is enough to run without one, under the same keys."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import TextError
from harness.data import hub
from harness.data.jsonl import read_dataset
from harness.grid import expand as grid
from harness.run.prefetch import find_obstacles, prefetch
from tests.support import fakehub

CONFIGS = """---
configs:
- config_name: wikitext-2-raw-v1
  data_files: [{split: test, path: wikitext-2-raw-v1/test.jsonl}]
---
"""


def _put(root: Path, place: str, rows: list[dict[str, Any]]) -> None:
    file = root / "datasets" / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def online(tiny_folder: Path, tmp_path: Path) -> Path:
    """A hub's content: the tiny model, PIQA's items, WikiText's lines."""
    root = tmp_path / "hub"
    shutil.copytree(tiny_folder, root / "models/some/tiny")
    (root / "models/some/tiny/pytorch_model.bin").write_bytes(b"the same weights once more")
    item = {"goal": "boil water", "sol1": "heat it", "sol2": "cool it", "label": 0}
    _put(root, "baber/piqa/data/validation.jsonl", [item] * 3)
    lines = [{"text": " = Title = \n"}, {"text": "words and words " * 99 + "\n"}]
    _put(root, "Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl", lines)
    (root / "datasets/Salesforce/wikitext/README.md").write_text(CONFIGS)
    return root


def _bitgrid(place: Path, *words: str, code: int = 0, **environment: str) -> str:
    """What a verb says, or complains of where it is to fail."""
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "BITGRID_"))}
    told = {"HF_HOME": str(place / "home"), "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", *words],
        cwd=place,
        env=ours | told | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def _keys(place: Path) -> list[str]:
    (file,) = (place / ".bitgrid/plans").glob("*.json")
    return list(json.loads(file.read_text())["nodes"])


def test_a_prefetched_grid_runs_without_a_network_under_the_same_keys(
    online: Path, tmp_path: Path
) -> None:
    grid_file = "model: some/tiny@main\nmethod: bf16\nevaluate: [piqa, {wikitext2: {window: 64}}]\n"
    (tmp_path / "g.yaml").write_text(grid_file)
    with fakehub.serve(online) as (url, asked):
        said = _bitgrid(tmp_path, "prefetch", "g.yaml", HF_ENDPOINT=url)
        _bitgrid(tmp_path, "plan", "g.yaml", HF_ENDPOINT=url)
    assert not any(path.endswith("pytorch_model.bin") for path in asked)
    lines = [line.split() for line in said.splitlines()]
    assert [line[0] for line in lines[:3]] == ["some/tiny", "baber/piqa", "Salesforce/wikitext"]
    assert all(fakehub.COMMIT[:12] in line and line[-1] == "fetched" for line in lines[:3])
    assert lines[3] == ["mirror:", str(tmp_path / "mirror")]

    unmirrored = _keys(tmp_path)
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "BITGRID_MIRROR": str(tmp_path / "mirror")}
    _bitgrid(tmp_path, "run", "g.yaml", **nowhere)
    assert _keys(tmp_path) == unmirrored
    rows = [json.loads(line) for line in (tmp_path / "runs/g/rows.jsonl").open()]
    assert {row["task"] for row in rows} == {"piqa", "wikitext2"}


@pytest.fixture
def pieces(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A grid with one text and one task whose data come from a stand-in for the hub."""
    from datasets import Dataset

    row = {"question": "?", "answer": "!"}

    def rows(split: hub.Split) -> Dataset:
        return Dataset.from_list([{**row, "text": f"{split.path} {n}"} for n in range(3)])

    monkeypatch.setattr(hub.Access, "rows", lambda self, split: rows(split))
    monkeypatch.setattr(hub, "_commit", lambda path: "a" * 40)
    path = tmp_path / "g.yaml"
    tasks = "[gsm8k, {wikitext2: {window: 64}}]"
    path.write_text(f"model: {tiny_folder}\nmethod: bf16\nevaluate: {tasks}\nmirror: kept\n")
    return path


def test_what_is_there_stays_and_the_mirrors_commit_wins(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch() -> dict[str, tuple[str, bool]]:
        loaded = grid.load(pieces, fill=tmp_path / "not asked for")
        return {f.name: (f.revision, f.new) for f in prefetch(loaded)}

    names = {
        "openai/gsm8k (main) test",
        "openai/gsm8k (main) train",
        "Salesforce/wikitext (wikitext-2-raw-v1) test",
    }
    assert fetch() == dict.fromkeys(names, ("a" * 40, True))
    kept = tmp_path / "kept/openai/gsm8k"
    assert read_dataset(kept / "main/test.jsonl.gz")[2]["text"] == "openai/gsm8k 2"
    monkeypatch.setattr(hub, "_commit", lambda path: "b" * 40)
    (kept / "main/train.jsonl.gz").unlink()
    assert fetch() == {name: ("a" * 40, name.endswith("train")) for name in names}
    # Rows that someone has put there are not claimed for a commit.
    (kept / "REVISION").unlink()
    (kept / "main/train.jsonl.gz").unlink()
    assert fetch()["openai/gsm8k (main) train"] == ("by content", True)
    assert not (tmp_path / "not asked for").exists()


def test_rows_that_are_no_json_leave_nothing_behind(
    pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub.Access, "rows", lambda self, split: [{"image": b"bytes"}])
    with pytest.raises(TextError, match="cannot be kept as JSON"):
        list(prefetch(grid.load(pieces, fill=tmp_path)))
    assert not list(tmp_path.rglob("*.gz*"))


def test_tasks_whose_data_only_their_code_knows_are_named(tmp_path: Path) -> None:
    (tmp_path / "g.yaml").write_text("model: testbed\nmethod: bf16\nevaluate: [testbed_story]\n")
    assert find_obstacles(grid.load(tmp_path / "g.yaml")) == []


@pytest.mark.parametrize("status", [401, 403])  # nobody is logged in; they have no access
def test_a_gated_model_says_where_to_ask(online: Path, tmp_path: Path, status: int) -> None:
    (tmp_path / "g.yaml").write_text("model: some/tiny\nmethod: bf16\nevaluate: [testbed-ppl]\n")
    with fakehub.serve(online, gated=status) as (url, _):
        said = _bitgrid(tmp_path, "plan", "g.yaml", code=2, HF_ENDPOINT=url)
    assert f"ask for access at {url}/some/tiny; 'hf auth login' or HF_TOKEN" in said
    assert said.count("\n") == 1
