"""Texts by name: what a package may register, and what a stage keeps of how it is read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.core.errors import CollisionError, TextError
from harness.core.execution import execute
from harness.data import Access, TextSource, hub, register_text, texts
from harness.data.sources import TEXTS


@dataclass(frozen=True)
class Letters(TextSource):
    about = "letters of an archive"
    caveat = "old spelling"

    def pin(self, part: str, split: str, access: Access) -> str:
        if part not in ("", "war"):
            raise TextError(f"part {part!r} is unknown")
        return "letters-1"

    def documents(self, part: str, split: str, access: Access) -> list[str]:
        return [f"{part} {split}"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    TEXTS.load()
    monkeypatch.setattr(TEXTS, "_items", dict(TEXTS._items))


def test_a_text_of_a_package_is_a_name_in_any_grid(tmp_path: Path) -> None:
    register_text("letters", Letters())
    stage = texts("letters:war", "train")
    assert execute(stage, {}, tmp_path) == ["war train"]
    assert stage.digest == "letters-1"
    assert Letters in stage.uses()
    with pytest.raises(TextError, match="text 'letters:peace': part 'peace' is unknown"):
        texts("letters:peace", "train")
    with pytest.raises(TextError, match="did you mean 'letters'"):
        texts("leters", "train")


def test_two_texts_of_one_name_are_an_error_that_names_both_files() -> None:
    with pytest.raises(CollisionError, match=r"registered twice: .*hub_texts\.py.*test_sources"):
        register_text("wikitext2", Letters())


def test_a_stage_keeps_the_mirror_that_it_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No variable and no module has to tell a process that runs the stage alone."""
    mirrors = [tmp_path / "one", tmp_path / "two"]
    for mirror in mirrors:
        file = mirror / "Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"text": f"of {mirror.name}"}) + "\n")
    monkeypatch.delenv("BITGRID_MIRROR", raising=False)
    with hub.reading(Access(mirrors[0])):
        stage = texts("wikitext2", "heldout")
    assert execute(stage, {}, tmp_path) == ["of one"]
    (read,) = stage.reads()
    assert [path.name for path in read.files()] == ["test.jsonl"]
    monkeypatch.setenv("BITGRID_MIRROR", str(mirrors[1]))  # a user's own, on another machine
    assert execute(stage, {}, tmp_path) == ["of two"]


def test_where_a_mirror_lies_is_not_in_the_key(tmp_path: Path) -> None:
    for name in ("one", "two"):
        file = tmp_path / name / "Salesforce/wikitext/wikitext-2-raw-v1/test.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text('{"text": "the same"}\n')
    keys = set()
    for name in ("one", "two"):
        with hub.reading(Access(tmp_path / name)):
            keys.add(texts("wikitext2", "heldout").key)
    assert len(keys) == 1
