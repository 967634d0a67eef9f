"""What is recorded of a run: machine, versions, commits, peak memory; and why a value is stale."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from harness.core import provenance
from harness.core.definitions import ROOT
from harness.core.provenance import (
    explain_staleness,
    find_commit,
    find_other_sources,
    find_versions,
)


def test_the_environment_names_what_can_move_a_number() -> None:
    facts = provenance.describe_machine(torch.device("cpu"))
    assert {"python", "device", "device_name", "threads"} <= set(facts)


def test_versions_are_of_what_is_behind_a_value() -> None:
    assert set(find_versions(["safetensors", "no-such-package"])) == {
        "bitgrid",
        "torch",
        "safetensors",
    }


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A git checkout with one committed file, `code.py`."""
    (tmp_path / "code.py").write_text("x = 1\n")
    person = ["-c", "user.name=T", "-c", "user.email=t@t"]
    for arguments in (["init", "-q"], ["add", "."], [*person, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    for cached in (provenance._head, provenance._top, provenance._changed_files):
        cached.cache_clear()
    return tmp_path


def test_a_file_of_a_plug_in_has_the_commit_of_its_own_checkout(checkout: Path) -> None:
    (checkout / "new.py").write_text("y = 1\n")
    head = provenance._head(checkout)
    assert head is not None
    named = find_other_sources(
        [checkout / "code.py", checkout / "new.py", ROOT / "harness/method.py"]
    )
    assert named == {str(checkout / "code.py"): head, str(checkout / "new.py"): head + "+"}


def test_a_file_outside_of_any_checkout_is_marked(tmp_path: Path) -> None:
    (tmp_path / "loose.py").write_text("x = 1\n")
    assert find_other_sources([tmp_path / "loose.py"]) == {str(tmp_path / "loose.py"): "untracked"}


def test_only_code_that_computes_marks_the_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "ROOT", checkout)
    head = provenance._head(checkout)
    (checkout / "report.md").write_text("rendered anew")
    assert find_commit([checkout / "code.py"]) == head
    (checkout / "code.py").write_text("x = 2\n")
    provenance._changed_files.cache_clear()
    assert find_commit([checkout / "code.py"]) == f"{head}+"
    assert find_commit([]) == head


def test_the_reason_of_staleness_names_the_definition_or_the_package(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = {"code": "one", "packages": {"torch": "2.0", "bitgrid": "0.0"}}
    old, new = {"a.f": "1", "a.g": "1"}, {"a.f": "2", "a.g": "1"}
    assert explain_staleness(recorded, "two", old, new) == "code changed: a.f"
    assert explain_staleness(recorded, "two", None, new) == "code changed"
    monkeypatch.setattr(provenance, "_version", {"torch": "2.1"}.get)
    assert explain_staleness(recorded, "one", None, None) == "package changed: torch 2.0 -> 2.1"
    monkeypatch.setattr(provenance, "_version", {"torch": "2.0"}.get)
    assert explain_staleness(recorded, "one", None, None) is None


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

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    with provenance.measure(torch.device(name)) as measured:
        pass
    assert measured.facts.get("peak_gpu_gib") == (None if name == "cpu" else 3.0)
    assert asked == ([] if name == "cpu" else ["cuda:1"] * 2)
    assert measured.facts["peak_rss_gib"] > 0
