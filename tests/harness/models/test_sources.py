"""Models by name: what is registered, what a folder is, and what is said of both."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.core.errors import CollisionError, ModelError
from harness.core.execution import execute
from harness.models import FolderModel, pretrained, register_model
from harness.models.registry import MODELS
from harness.models.sources import find_source


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it, and what it looked up by name."""
    MODELS.load()
    monkeypatch.setattr(MODELS, "_items", dict(MODELS._items))
    pretrained.cache_clear()


def test_the_testbed_is_registered_by_an_entry_point_and_says_what_it_is() -> None:
    assert {"testbed", "testbed-small", "smollm2-135m"} <= set(MODELS.load())
    assert "say nothing about a real LLM" in str(pretrained("testbed").caveat)
    assert "Instruct" in str(find_source("smollm2-135m").caveat)


def test_a_folder_called_testbed2_is_a_folder(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "testbed2")
    monkeypatch.chdir(tmp_path)
    stage = pretrained("testbed2")
    assert stage.caveat is None
    assert stage.source == str(tmp_path / "testbed2")


def test_a_model_of_a_package_is_a_name_in_any_grid(tiny_folder: Path, tmp_path: Path) -> None:
    register_model("archive", FolderModel(tiny_folder, "an archive's", caveat="read in 2024"))
    stage = pretrained("archive")
    assert (stage.source, stage.caveat) == ("archive", "read in 2024")
    assert stage.digest == pretrained(str(tiny_folder)).digest
    assert execute(stage, {}, tmp_path).context == 512
    with pytest.raises(ModelError, match="did you mean 'archive'"):
        pretrained("archve")
    with pytest.raises(ModelError, match="'archive' is built in and has no revisions"):
        pretrained("archive@main")


def test_two_models_of_one_name_are_an_error_that_names_both_files(tiny_folder: Path) -> None:
    with pytest.raises(CollisionError, match=r"registered twice: .*registration\.py.*test_sources"):
        register_model("testbed", FolderModel(tiny_folder))


def test_the_files_of_a_folder_are_what_its_key_rests_on(tiny_folder: Path) -> None:
    (read,) = pretrained(str(tiny_folder)).reads()
    names = {path.name for path in read.files()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert read.fetch() is None and read.obstacle is None
