"""What verbs over a store do is linear in its stages; each manifest is looked at once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.core.store import Store
from harness.run.remembering import remember
from tests.support import fakeslurm
from tests.support.calls import compute_calls_a_pair, count_calls
from tests.support.plans import plan_of


def _make_words(verb: str, folder: Path, count: int) -> list[str]:
    """A command over a grid of that many stages, all of them done."""
    folder.mkdir()
    grid, store = folder / "grid.yaml", Store(folder / "store")
    grid.write_text("# made up\n")
    plan = plan_of(grid, range(1, count + 1))
    remember(plan, store)
    for key, node in plan.nodes.items():
        store.path(key).mkdir(parents=True)
        facts = {"schema": 1, "key": key, "code": node.code, "files": {}, "value": {}}
        (store.path(key) / "manifest.json").write_text(json.dumps(facts))
    return [verb, *([] if verb == "gc" else [str(grid)]), "--store", str(store.root)]


@pytest.mark.parametrize("verb", ["status", "plan", "gc"])
def test_verbs_are_linear_in_stages(verb: str, tmp_path: Path) -> None:
    assert main(_make_words(verb, tmp_path / "first", 2)) == 0  # what is imported, and kept
    made = [_make_words(verb, tmp_path / str(count), count) for count in (20, 40, 80)]
    steps = [count_calls(lambda words=words: main(words)) for words in made]  # type: ignore[misc]
    assert compute_calls_a_pair(20, *steps) < 0.2, steps


def test_status_looks_at_each_manifest_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = _make_words("status", tmp_path / "once", 20)
    seen: list[str] = []
    stat = os.stat

    def note(path: Any, **options: Any) -> os.stat_result:
        seen.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", note)
    assert main(words) == 0
    looked = [path for path in seen if path.endswith("manifest.json")]
    assert len(looked) == len(set(looked)) == 20


def test_a_launch_of_a_kept_plan_imports_no_torch_and_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakeslurm.install(tmp_path / "lab", monkeypatch)
    words = _make_words("launch", tmp_path / "kept", 4)
    shutil.rmtree(next((tmp_path / "kept" / "store" / "values").iterdir()))
    (tmp_path / "cluster.yaml").write_text("partition: gpu\n")
    code = (
        "import re, sys; from harness.cli.main import main\n"
        "assert main(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'transformers', 'lm_eval', 'pandas'} & set(sys.modules)\n"
        "peak = re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())\n"
        "assert int(peak[1]) < 150 * 1024, peak[1]"
    )
    command = [sys.executable, "-c", code, *words, "--dry"]
    command += ["--cluster", str(tmp_path / "cluster.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --partition=gpu" in done.stdout
