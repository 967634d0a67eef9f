"""YAML with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config.document import Document
from harness.core.errors import GridError


def _document(tmp_path: Path, text: str) -> Document:
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    return Document(path)


def test_data_comment_and_lines(tmp_path: Path) -> None:
    found = _document(
        tmp_path, "# What?\n# And why?\n\na: 1\nb:\n  c: [x, y]\n  d:\n    - z\n    - w\n"
    )
    assert found.data == {"a": 1, "b": {"c": ["x", "y"], "d": ["z", "w"]}}
    assert found.comment == "What? And why?"
    assert str(found.error(("b", "d", 1), "no")) == f"{tmp_path}/grid.yaml:9: no"
    assert str(found.error(("b", "e"), "no")).endswith("grid.yaml:5: no")
    assert str(found.error(("q",), "no")).endswith("grid.yaml:4: no")


def test_files_of_other_systems_are_read(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_bytes("\ufeff# Größe?\r\na: 010\r\nb:\r\n- x\r\n".encode())
    found = Document(path)
    assert (found.data, found.comment) == ({"a": 10, "b": ["x"]}, "Größe?")
    assert str(found.error(("b", 0), "no")).endswith("grid.yaml:4: no")


def test_the_line_for_editors_is_no_part_of_the_question(tmp_path: Path) -> None:
    found = _document(tmp_path, "# yaml-language-server: $schema=s.json\n# What?\na: 1\n")
    assert found.comment == "What?"
    assert str(found.error(("a",), "no")).endswith("grid.yaml:3: no")


@pytest.mark.parametrize(
    ("text", "number"), [("8e-6", 8e-6), ("1E3", 1000.0), ("-2.5e+1", -25.0), (".5e1", 5.0)]
)
def test_exponents_are_numbers(tmp_path: Path, text: str, number: float) -> None:
    assert _document(tmp_path, f"lr: {text}").data == {"lr": number}


@pytest.mark.parametrize("text", ["e5", "1.2.3", "12e", "0x1e5g", "2e-6x"])
def test_other_words_stay_words(tmp_path: Path, text: str) -> None:
    assert _document(tmp_path, f"a: {text}").data == {"a": text}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: [1\nc: 2\n", ":3: not YAML"),
        ("a: 1\nb: 2\na: 3\n", ":3: key 'a' is given twice"),
        ("a: !!python/object:os.system x\n", ":1: not YAML"),
        ("a: \x01\n", ":1: not YAML"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(GridError, match=words):
        _document(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"none.yaml: cannot be read: No such file"):
        Document(tmp_path / "none.yaml")


def test_a_file_builds_on_others(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "one.yaml").write_text("# one\na: 1\nlist: [1, 2, 3]\nd: {x: 1, y: 1}\n")
    (tmp_path / "two.yaml").write_text("base: sub/one.yaml\nb: 2\nd:\n  y: 2\n")
    path = tmp_path / "three.yaml"
    path.write_text("# three\nbase: [sub/one.yaml, two.yaml]\nc: 3\nlist: [9]\nd: {z: 3}\n")
    found = Document(path, merged=("d",))
    assert found.data == {"a": 1, "b": 2, "c": 3, "list": [9], "d": {"x": 1, "y": 2, "z": 3}}
    assert found.comment == "three"
    assert found.files[0] == path
    assert {file.name for file in found.files} == {"one.yaml", "two.yaml", "three.yaml"}
    assert str(found.error(("a",), "no")) == f"{tmp_path}/sub/one.yaml:2: no"
    assert str(found.error(("d", "y"), "no")) == f"{tmp_path}/two.yaml:4: no"
    assert str(found.error(("c",), "no")) == f"{path}:3: no"
    # The list is this file's own: its third item, which only the base had, is nowhere.
    assert str(found.error(("list", 2), "no")) == f"{path}:4: no"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("base: nne.yaml\n", r"grid.yaml:1: base: file 'nne.yaml' is missing; did you mean 'one"),
        ("a: 1\nbase: grid.yaml\n", "grid.yaml:2: base: 'grid.yaml' builds on this file itself"),
        ("base: list.yaml\n", "grid.yaml:1: base: 'list.yaml' should be a mapping"),
        ("base: back.yaml\n", "back.yaml:1: base: 'grid.yaml' builds on this file itself"),
    ],
)
def test_a_base_that_cannot_be(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "one.yaml").write_text("a: 1\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    (tmp_path / "back.yaml").write_text("base: grid.yaml\n")
    with pytest.raises(GridError, match=words):
        _document(tmp_path, text)


def test_a_base_that_cannot_be_read_is_said_where_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_bytes(b"\xff\xfe")
    path = tmp_path / "grid.yaml"
    path.write_text("model: x\nbase: base.yaml\n")
    with pytest.raises(GridError, match=rf"^{path}:2: base: .*base.yaml:1: cannot be read"):
        Document(path)
