"""Code digests: what is behind a stage counts, what only looks different does not."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from harness import models
from harness.core import provenance


def _digest(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    importlib.invalidate_caches()
    for name in [n for n in sys.modules if n.partition(".")[0] == "plugin"]:
        del sys.modules[name]
    for cached in (provenance.code_digest, provenance._file, provenance._imports):
        cached.cache_clear()
    provenance._code.cache_clear()
    provenance._tree.cache_clear()
    return provenance.code_digest(frozenset({"plugin.stage"}))


FILES = {
    "plugin/__init__.py": "",
    "plugin/stage.py": "from plugin import helper\n\ndef f():\n    return helper.g()\n",
    "plugin/helper.py": "def g():\n    return 1\n",
    "plugin/unrelated.py": "x = 1\n",
}


def test_comments_layout_and_strangers_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _digest(tmp_path, monkeypatch, FILES)
    dressed = '"""Words."""\n# more\nfrom plugin import helper\n\n\ndef f():\n    """Doc."""\n    return (\n        helper.g()\n    )\n'
    assert _digest(tmp_path, monkeypatch, {"plugin/stage.py": dressed}) == before
    assert _digest(tmp_path, monkeypatch, {"plugin/unrelated.py": "x = 2\n"}) == before


def test_what_is_imported_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _digest(tmp_path, monkeypatch, FILES)
    changed = {"plugin/helper.py": "def g():\n    return 2\n"}
    assert _digest(tmp_path, monkeypatch, changed) != before


def test_the_formats_are_behind_training_but_the_reports_are_not() -> None:
    reached = set(provenance._reachable("methods.training.train"))
    assert {
        "methods.quantization.formats",
        "methods.training.objectives",
        "harness.models.model",
    } <= reached
    assert not any(
        name.startswith(("reports", "harness.cli.main", "harness.run.runner")) for name in reached
    )


def test_the_environment_names_what_can_move_a_number() -> None:
    found = provenance.environment()
    assert {"commit", "packages", "python", "device", "device_name", "threads"} <= set(found)
    assert {"torch", "transformers", "lm_eval"} <= set(found["packages"])


@pytest.mark.parametrize("name", ["cpu", "cuda:1"])
def test_peak_memory_is_of_the_device_that_computes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not of whichever GPU is current; and a CPU's run does not touch a GPU."""
    asked: list[str] = []

    def reset(device: torch.device) -> None:
        asked.append(str(device))

    def peak(device: torch.device) -> int:
        asked.append(str(device))
        return 3 * 2**30

    monkeypatch.setattr(models, "device", lambda: torch.device(name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    with provenance.measured() as measured:
        pass
    assert measured.facts.get("peak_gpu_gib") == (None if name == "cpu" else 3.0)
    assert asked == ([] if name == "cpu" else ["cuda:1"] * 2)
    assert measured.facts["peak_rss_gib"] > 0
