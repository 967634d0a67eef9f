"""The items behind rows: read, refused where broken, and matched with their rows."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reports
from harness.core.errors import ReportError
from reports.reading.items import ITEM_FIELDS, behind, read
from tests.support.synthetic_grids import measured, row, write


def test_the_frame_is_typed_and_documented(tmp_path: Path) -> None:
    made, line = measured([1, 0, 0, 1])
    frame = reports.load_items(write(tmp_path, [made], items=[{**line, "items": [3, 5, 8, 9]}]))
    assert list(frame.columns) == list(ITEM_FIELDS)
    for name, field in ITEM_FIELDS.items():
        assert str(frame[name].dtype) == field.dtype and field.words
    assert frame["item"].tolist() == [3, 5, 8, 9]
    joined = frame.merge(reports.load(tmp_path)[["key", "value"]], on="key")
    assert joined["score"].mean() == joined["value"][0] == 0.5
    none = reports.load_items(write(tmp_path / "old", [row()]))
    assert len(none) == 0 and list(none.columns) == list(ITEM_FIELDS)


def test_a_groups_members_weigh_alike(tmp_path: Path) -> None:
    _, one = measured([1, 1, 0, 0], task="mmlu_a")
    _, two = measured([1, 1, 1], task="mmlu_b")
    group = row(task="mmlu", value=0.75, key="k")
    index = read(write(tmp_path, [group], items=[{**one, "key": "k"}, {**two, "key": "k"}]))
    found = behind(index, group)
    assert found is not None
    assert [part.task for part in found] == ["mmlu_a", "mmlu_b"]
    assert [part.weight for part in found] == [0.5, 0.5]
    assert behind(index, {**group, "value": 5 / 7}) is None  # not what these items give
    assert behind(index, {**group, "key": "other"}) is None


def test_a_perplexity_is_exp_of_its_items(tmp_path: Path) -> None:
    made, line = measured([1.0, 2.0], task="testbed-ppl", metric="ppl")
    assert made["value"] == math.exp(1.5)
    found = behind(read(write(tmp_path, [made], items=[line])), made)
    assert found is not None and np.array_equal(found[0].scores, [1.0, 2.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "items.jsonl.gz:2: schema version 2, not 1"),
        ({"items": [1]}, "items.jsonl.gz:2: not the items of a row"),
        ({"scores": ["a", "b"]}, "items.jsonl.gz:2: not the items of a row"),
        ({"scores": []}, "items.jsonl.gz:2: not the items of a row"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    made, line = measured([1, 0])
    folder = write(tmp_path, [made], items=[line, {**line, **change}])
    with pytest.raises(ReportError) as error:
        reports.load_items(folder)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_file_cut_short(tmp_path: Path) -> None:
    made, line = measured([1, 0])
    folder = write(tmp_path, [made], items=[line])
    whole = gzip.compress(json.dumps(line).encode())
    for data in (b"no gzip", whole[:-9]):
        (folder / "items.jsonl.gz").write_bytes(data)
        with pytest.raises(ReportError, match=r"items.jsonl.gz: not a gzipped text"):
            reports.text(folder)
