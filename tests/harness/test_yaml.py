"""YAML with line numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GridError
from harness.yaml import Document


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
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(GridError, match=words):
        _document(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(GridError, match=r"none.yaml: cannot be read: No such file"):
        Document(tmp_path / "none.yaml")
