"""Texts by name and token blocks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import TextError
from harness.core.execution import execute
from harness.data import Packed, Tokens, calibration, pack, packed, texts
from harness.models import read_model


class Letters:
    """A tokenizer of one token a letter, 1 and 2 around a document."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}


@given(st.lists(st.text("abc", max_size=9), min_size=1), st.integers(1, 7), st.integers(1, 5))
def test_pack_is_the_stream_cut_into_blocks(documents: list[str], length: int, count: int) -> None:
    stream = [t for d in documents if d for t in (1, *map(ord, d), 2)]
    if len(stream) < length:
        with pytest.raises(TextError, match="fewer than one block"):
            pack(documents, Letters(), length, count)  # type: ignore[arg-type]
        return
    found = pack(documents, Letters(), length, count)  # type: ignore[arg-type]
    assert len(found) == min(count, len(stream) // length)
    assert found.ids.flatten().tolist() == stream[: found.ids.numel()]
    assert found.mask.all()


def test_tokens_come_back_from_disk(tmp_path: Path) -> None:
    tokens = Tokens(torch.arange(6).view(2, 3), torch.tensor([[True, False, True]] * 2))
    facts = tokens.save(tmp_path)
    assert facts == {"sequences": 2, "length": 3, "labels": 4}
    again = Tokens.load(tmp_path, facts)
    assert torch.equal(again.ids, tokens.ids)
    assert torch.equal(again.mask, tokens.mask)


@pytest.mark.parametrize("packed", [False, True])
def test_files_of_text_and_of_rows(tmp_path: Path, packed: bool) -> None:
    def write(name: str, content: str) -> str:
        path = tmp_path / (name + ".gz" if packed else name)
        path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
        return f"file:{path}"

    plain = write("a.txt", "one\nline\n\ntwo\n\n\n\nthree\n")
    rows = write("b.jsonl", "".join(json.dumps({"text": t}) + "\n" for t in ("x\n\ny", "z")))
    assert execute(texts(plain, "train"), {}, tmp_path) == ["one\nline", "two", "three"]
    assert execute(texts(rows, "train"), {}, tmp_path) == ["x\n\ny", "z"]


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    first = texts(f"file:{path}", "train").key
    path.write_text("two")
    assert texts(f"file:{path}", "train").key != first


@pytest.mark.parametrize(
    ("source", "split", "words"),
    [
        ("wikitxt2", "train", "did you mean 'wikitext2'?"),
        ("testbed", "test", "split 'test' is unknown"),
        ("file:/nowhere.txt", "train", "file /nowhere.txt does not exist"),
    ],
)
def test_unknown_texts(source: str, split: str, words: str) -> None:
    with pytest.raises(TextError, match=words.replace("?", r"\?")):
        texts(source, split)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b" \n", "a.txt is empty"),
        ("a.txt", b"one\n\xff\xfe", "a.txt: line 2 is not text in UTF-8: invalid start byte"),
        ("a.txt.gz", b"not gzip", "a.txt.gz cannot be read: Not a gzip"),
        ("a.jsonl", b"\n", "a.jsonl is empty"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0), "a.jsonl.gz is empty"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "a"}', mtime=0)[:-9],
            "a.jsonl.gz cannot be read: Comp",
        ),
        ("a.jsonl", b'{"text": " "}\n', "a.jsonl: every text in column 'text' is blank"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text"\n', "line 3 is not a JSON object: Expecting ':'"),
        ("a.jsonl", b'{"text": "x"}\n3\n', "a.jsonl: line 2 is not a JSON object: 3"),
        ("a.jsonl", b'{"text": "x"}\n["text"]\n', "line 2 is not a JSON object: ['text']"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"txt": 1, "b": 2}',
            "line 2 has no column 'text'; columns: txt, b",
        ),
        ("a.jsonl", b'{"text": "x"}\n{"text": null}\n', "line 2 has no text in column 'text'"),
        ("a.jsonl", b"\xff\n", "a.jsonl: line 1 is not text in UTF-8"),
        (
            "a.json",
            b'[{"text": "x"}]',
            "'.json' is not a kind of text file; did you mean '.jsonl'?",
        ),
        (
            "a.csv",
            b"text\nx\n",
            "'.csv' is not a kind of text file; choices: .jsonl, .jsonl.gz, .txt",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_before_anything_runs(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError) as caught:
        texts(f"file:{tmp_path / name}", "train")
    message = str(caught.value).replace('["text"]', "['text']")
    assert words in message and str(tmp_path / name) in message and "\n" not in message


def test_a_file_too_short_for_one_block(tiny_folder: Path, tmp_path: Path) -> None:
    from harness.models import pretrained

    base = pretrained(str(tiny_folder))
    for name, content in (("a.txt", "one two three\n\nfour"), ("b.txt", "words and more " * 999)):
        (tmp_path / name).write_text(content)
    with pytest.raises(TextError, match=r"a\.txt': the text has \d+ tokens, fewer than one .* 64"):
        packed(texts(f"file:{tmp_path}/a.txt", "train"), base, 64, 8)
    with pytest.raises(TextError, match=r"a\.txt': the text has"):
        calibration(base, f"file:{tmp_path}/a.txt", 8, 64)
    assert packed(texts(f"file:{tmp_path}/a.txt", "train"), base, 4, 8)
    assert calibration(base, f"file:{tmp_path}/b.txt", 8, 64)


def test_testbed_documents_and_their_openings(tmp_path: Path) -> None:
    whole = execute(texts("testbed:arithmetic", "calibration"), {}, tmp_path)
    opened = execute(texts("testbed:arithmetic", "calibration", prompts=True), {}, tmp_path)
    assert all(text.startswith(prompt) for text, prompt in zip(whole, opened, strict=True))


def test_blocks_longer_than_the_context_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from harness.models import pretrained

    base, documents = pretrained(str(tiny_folder)), texts("testbed", "calibration")
    model = read_model(str(tiny_folder), "float32")
    values = {base.key: model, documents.key: ["some words"] * 100}
    assert execute(Packed(documents, base, 32, 4), values, tmp_path).ids.shape == (4, 32)
    with pytest.raises(TextError, match="context is 512"):
        execute(Packed(documents, base, 513, 4), values, tmp_path)


def test_json_lines_end_where_json_says(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    file.write_text('{"text": "one\u2028line"}\n{"text": "two"}\n', encoding="utf-8")
    assert execute(texts(f"file:{file}", "train"), {}, tmp_path) == ["one\u2028line", "two"]
