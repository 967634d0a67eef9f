"""Texts of hub data sets, read from a mirror: documents, prompts, digests, and what is missing."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.core.errors import TextError
from harness.core.execution import execute
from harness.data import Documents, fill, gives_whole_prompts, hub, jsonl, texts
from harness.data.hub_texts import HUB
from harness.data.sources import SPLITS


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv("BITGRID_MIRROR", str(folder))
    return folder


def put(mirror: Path, place: str, rows: list[dict[str, Any]]) -> None:
    path = mirror / place
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def read(stage: Documents, work: Path) -> list[str]:
    return execute(stage, {}, work)


WIKI = "Salesforce/wikitext/wikitext-2-raw-v1"
LINES = [
    "",
    " = One = \n",
    "",
    " First line .\n",
    " = = Part = = \n",
    "",
    " = Two = \n",
    " More .\n",
]


def test_wikitext_rows_are_lines_and_documents_are_articles(mirror: Path, tmp_path: Path) -> None:
    put(mirror, f"{WIKI}/test.jsonl.gz", [{"text": line} for line in LINES])
    articles = read(texts("wikitext2", "heldout"), tmp_path)
    assert [article.strip().splitlines()[0].strip() for article in articles] == [
        "= One =",
        "= Two =",
    ]
    assert "= = Part = =" in articles[0]
    # The protocol joins rows; whoever joins articles gets the same text, to the letter.
    assert "\n\n".join(articles) == "\n\n".join(LINES)
    assert read(texts("wikitext2", "heldout", prompts=True), tmp_path) == LINES


def test_one_of_the_hubs_own_splits(mirror: Path, tmp_path: Path) -> None:
    put(mirror, f"{WIKI}/validation.jsonl", [{"text": "kept for training"}])
    stage = texts("wikitext2:validation", "train")
    assert read(stage, tmp_path) == ["kept for training"]
    with pytest.raises(TextError, match=r"lacks .*/train.jsonl\[.gz\]: choices: validation"):
        texts("wikitext2", "train")
    with pytest.raises(TextError, match="did you mean 'validation'"):
        texts("wikitext2:validaton", "train")


ROWS: dict[str, tuple[str, dict[str, str], str]] = {
    "alpaca": (
        "tatsu-lab/alpaca/default/train.jsonl",
        {"text": "Below.\n\n### Instruction:\nAsk\n\n### Response:\nTell"},
        "Below.\n\n### Instruction:\nAsk\n\n### Response:\n",
    ),
    "dolly": (
        "databricks/databricks-dolly-15k/default/train.jsonl",
        {"instruction": "Ask", "context": "", "response": "Tell"},
        "### Instruction:\nAsk\n\n### Response:\n",
    ),
    "gsm8k": (
        "openai/gsm8k/main/train.jsonl",
        {"question": "Ask", "answer": "Tell"},
        "### Instruction:\nAsk\n\n### Response:\n",
    ),
    "evol-instruct-code": (
        "nickrosh/Evol-Instruct-Code-80k-v1/default/train.jsonl",
        {"instruction": "Ask", "output": "Tell"},
        "### Instruction:\nAsk\n\n### Response:\n",
    ),
    "metamath": (
        "meta-math/MetaMathQA/default/train.jsonl",
        {"query": "Ask", "response": "Tell"},
        "### Instruction:\nAsk\n\n### Response:\n",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_instructions_are_prompts_and_with_the_answer_documents(
    mirror: Path, tmp_path: Path, name: str
) -> None:
    place, row, prompt = ROWS[name]
    put(mirror, place, [row])
    (asked,) = read(texts(name, "train", prompts=True), tmp_path)
    (whole,) = read(texts(name, "train"), tmp_path)
    assert asked.endswith(prompt)
    assert whole == asked + "Tell"
    assert gives_whole_prompts(name)


@pytest.mark.parametrize("name", ["c4", "c4-new", "pile-val", "tinystories"])
def test_plain_texts(mirror: Path, tmp_path: Path, name: str) -> None:
    source = HUB[name]
    for split in source.splits.values():
        put(mirror, f"{source.path}/{source.config or 'default'}/{split}.jsonl", [{"text": split}])
    for split, theirs in source.splits.items():
        assert read(texts(name, split), tmp_path) == [theirs]
    assert not gives_whole_prompts(name)
    for split in set(SPLITS) - set(source.splits):
        with pytest.raises(TextError, match=f"it has no {split} split"):
            texts(name, split)


def test_a_digest_is_the_commit_where_it_is_known_else_the_content(mirror: Path) -> None:
    put(mirror, f"{WIKI}/test.jsonl", [{"text": "a"}])
    first = texts("wikitext2", "heldout").digest
    put(mirror, f"{WIKI}/test.jsonl", [{"text": "another"}])
    assert texts("wikitext2", "heldout").digest != first
    (mirror / "Salesforce/wikitext/REVISION").write_text("c0ffee\n")
    assert texts("wikitext2", "heldout").digest == "c0ffee"
    # What was fetched is noted; a file that was changed since is not the commit's.
    fill.note_content(mirror / "Salesforce/wikitext", mirror / WIKI / "test.jsonl")
    assert texts("wikitext2", "heldout").digest == "c0ffee"
    put(mirror, f"{WIKI}/test.jsonl", [{"text": "trimmed"}])
    assert texts("wikitext2", "heldout").digest not in (first, "c0ffee")


def test_texts_that_look_like_dates_stay_texts(mirror: Path, tmp_path: Path) -> None:
    put(mirror, f"{WIKI}/test.jsonl", [{"text": "2020-01-01"}, {"text": "2021-12-31 10:00"}])
    found = read(texts("wikitext2", "heldout", prompts=True), tmp_path)
    assert found == ["2020-01-01", "2021-12-31 10:00"]


def test_a_broken_file_of_the_mirror(mirror: Path) -> None:
    put(mirror, f"{WIKI}/test.jsonl.gz", [{"text": "whole"}])
    file = mirror / WIKI / "test.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(TextError, match=r"test\.jsonl\.gz cannot be read"):
        texts("wikitext2", "heldout")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            '{"text": "x"}\n{"text"\n',
            "line 2 is not a JSON object: Expecting ':' delimiter (column 8)",
        ),
        ('{"text": "x"}\n["x"]\n', 'line 2 is not a JSON object: ["x"]'),
        ('{"text": "x"}\n{"text": null}\n', "line 2 has no text in column 'text'"),
        ('{"words": "x", "n": 1}\n', "line 1 has no column 'text'; columns: words, n"),
        ('{"text": " "}\n{"text": ""}\n', "every text in column 'text' is blank"),
        ("\n\n", "test.jsonl is empty"),
    ],
)
def test_every_row_of_a_mirrored_text_is_checked_before_anything_runs(
    mirror: Path, content: str, words: str
) -> None:
    file = mirror / WIKI / "test.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    with pytest.raises(TextError) as caught:
        texts("wikitext2", "heldout")
    message = str(caught.value)
    assert message.startswith(f"text 'wikitext2': {file}") and words in message


def test_an_instruction_without_its_answer(mirror: Path) -> None:
    put(mirror, "openai/gsm8k/main/train.jsonl", [{"question": "Ask"}])
    with pytest.raises(TextError, match="line 1 has no column 'answer'; columns: question"):
        texts("gsm8k", "train", prompts=True)


def test_a_mirrored_file_is_read_again_only_where_it_changed(
    mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    rows = jsonl.json_rows
    monkeypatch.setattr(jsonl, "json_rows", lambda file: read.append(file) or rows(file))
    put(mirror, f"{WIKI}/test.jsonl", [{"text": "a"}])
    for _ in range(3):
        texts("wikitext2", "heldout")
    assert len(read) == 1
    put(mirror, f"{WIKI}/test.jsonl", [{"text": "another"}])
    texts("wikitext2", "heldout")
    assert len(read) == 2


def test_the_same_key_with_a_mirror_and_without(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, known_commits: None
) -> None:
    put(mirror, f"{WIKI}/test.jsonl", [{"text": "a"}])
    (mirror / "Salesforce/wikitext/REVISION").write_text(hub._commit("Salesforce/wikitext"))
    mirrored = texts("wikitext2", "heldout").key
    monkeypatch.delenv("BITGRID_MIRROR")
    assert texts("wikitext2", "heldout").key == mirrored


def test_what_is_missing_is_said_before_anything_runs(
    mirror: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(TextError, match=r"text .c4.: the mirror lacks .*nothing of this data set"):
        texts("c4", "heldout")
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path / "none"))
    with pytest.raises(TextError, match=r"mirror folder .* is not there"):
        texts("wikitext2", "heldout")
    monkeypatch.delenv("BITGRID_MIRROR")
    hub._commit.cache_clear()
    with pytest.raises(TextError, match="not reachable on the hub, and no mirror with it is set"):
        texts("wikitext2", "heldout")


@given(st.lists(st.sampled_from(["a", "b.c", "..", ".", "", "/", "~", "\0", "/etc"]), min_size=1))
def test_no_name_leads_out_of_the_mirror(parts: list[str]) -> None:
    access = hub.Access(Path("/mirror"))
    for names in (
        ("/".join(parts),),
        ("owner/data", "/".join(parts)),
        ("owner/data", "c", parts[0]),
    ):
        with contextlib.suppress(TextError):
            place = access.place(*names)
            assert os.path.normpath(place) == str(place)  # no `..`, none absolute
            assert place.is_relative_to("/mirror") and "\0" not in str(place)


def test_a_task_file_cannot_fill_what_lies_beside_the_mirror(mirror: Path, tmp_path: Path) -> None:
    access = hub.Access(mirror, fills=True)
    for split in (
        hub.Split("../x", None, "test"),
        hub.Split("owner/data", "../../..", "test"),
        hub.Split("owner/data", None, "../../../test"),
        hub.Split(str(tmp_path / "x"), None, "test"),
    ):
        with pytest.raises(TextError, match="would lie outside of the mirror"):
            fill.DataSetRead(split, access).fetch()
    assert [each.name for each in tmp_path.rglob("*")] == ["mirror"]
