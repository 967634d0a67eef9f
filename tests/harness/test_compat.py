"""lm-eval's index of tasks is what lm-eval reads, kept until a file behind it changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks import TaskManager
from lm_eval.tasks._index import TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from harness import compat

TASK = "task: {name}\ninclude: _shared\ntag: [both]\ndoc_to_text: !function code.ask\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two tasks that share an included file without a suffix, a tag, a group; and an own cache."""
    monkeypatch.setenv("BITGRID_CACHE", str(tmp_path / "cache"))
    made = tmp_path / "tasks"
    (made / "inner").mkdir(parents=True)
    (made / "_shared").write_text("output_type: multiple_choice\nnum_fewshot: 3\n")
    (made / "one.yaml").write_text(TASK.format(name="one"))
    (made / "two.yaml").write_text(TASK.format(name="two"))
    (made / "inner/group.yaml").write_text("group: all\ntask: [one, two]\n")
    (made / "code.py").write_text("")
    return made


def _read(folder: Path) -> dict[str, Any]:
    with compat.kept_index():
        index: dict[str, Any] = TaskManager(
            include_path=str(folder), include_defaults=False
        ).task_index
    return index


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """How often lm-eval has built an index itself."""
    built: list[object] = []
    before = TaskIndex.build

    def build(paths: list[Path]) -> Any:
        built.append(paths)
        return before(paths)

    monkeypatch.setattr(TaskIndex, "build", staticmethod(build))
    return built


def test_the_kept_index_is_lm_evals_own(folder: Path, builds: list[object]) -> None:
    own = TaskManager(include_path=str(folder), include_defaults=False).task_index
    assert set(own) == {"one", "two", "both", "all"}
    assert own["one"].cfg["num_fewshot"] == 3
    assert [_read(folder), _read(folder), _read(folder)] == [own] * 3
    assert list(_read(folder)) == list(own)
    assert len(builds) == 2  # its own, and the first that was kept


@pytest.mark.parametrize(
    "change", ["included", "same length", "added", "removed", "moved", "linked"]
)
def test_a_changed_file_is_read(folder: Path, change: str) -> None:
    before = _read(folder)
    if change == "included":
        (folder / "_shared").write_text("output_type: multiple_choice\nnum_fewshot: 25\n")
    elif change == "same length":
        (folder / "one.yaml").write_text(TASK.format(name="eno"))
        os.utime(folder / "one.yaml", ns=(1, 1))
    elif change == "added":
        (folder / "inner/three.yaml").write_text("task: three\n")
    elif change == "removed":
        (folder / "two.yaml").unlink()
    elif change == "linked":  # beside what an editor leaves of a file that is open
        (folder / ".#one.yaml").symlink_to("nowhere")
        (folder / "four.yaml").symlink_to(folder.parent / "four.yaml")
        (folder.parent / "four.yaml").write_text("task: four\n")
    else:
        folder = folder.rename(folder.with_name("elsewhere"))
    own = TaskManager(include_path=str(folder), include_defaults=False).task_index
    assert _read(folder) == own
    assert own != before


def test_what_json_would_change_is_not_kept(folder: Path, builds: list[object]) -> None:
    (folder / "one.yaml").write_text("task: one\nmetadata: {1: a, when: 2024-01-01}\n")
    (folder / "two.yaml").write_text("task: two\nmetadata: {1: a}\n")
    for _ in range(2):
        index = _read(folder)
        assert index["two"].cfg["metadata"] == {1: "a"}
    assert len(builds) == 2
    (folder / "one.yaml").unlink()
    for _ in range(2):
        assert _read(folder)["two"].cfg["metadata"] == {1: "a"}
    assert len(builds) == 4


def test_a_broken_cache_is_read_past(folder: Path, tmp_path: Path) -> None:
    own = _read(folder)
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_text(kept.read_text()[:50])
    assert _read(folder) == own


def test_lm_evals_own_tasks_are_what_their_files_say() -> None:
    index = compat.make_task_manager(None).task_index
    tasks = [each for each in index.values() if each.yaml_path]
    assert len(tasks) > 10_000
    for entry in tasks[:: len(tasks) // 50]:
        assert entry.cfg == load_yaml(entry.yaml_path, resolve_func=False)
