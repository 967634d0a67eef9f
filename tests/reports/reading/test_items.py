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
from harness.core.records import ITEM_KEY
from reports.reading.export import Export
from reports.reading.items import ITEM_COLUMNS
from tests.support.synthetic_grids import measured, row, write

ROOT = Path(__file__).parents[3]


def test_the_frame_is_typed_and_documented(tmp_path: Path) -> None:
    made, line = measured([1, 0, 0, 1])
    frame = reports.load_items(write(tmp_path, [made], items=[{**line, "items": [3, 5, 8, 9]}]))
    assert list(frame.columns) == list(ITEM_COLUMNS)
    assert {name: str(frame[name].dtype) for name in frame} == ITEM_COLUMNS
    assert frame["item"].tolist() == [3, 5, 8, 9]
    joined = frame.merge(reports.load(tmp_path), on=list(ITEM_KEY))
    assert joined["score"].mean() == joined["value"][0] == 0.5
    none = reports.load_items(write(tmp_path / "old", [row()]))
    assert len(none) == 0 and list(none.columns) == list(ITEM_COLUMNS)


def test_a_groups_members_weigh_alike(tmp_path: Path) -> None:
    key = {"key": "k", "group": "mmlu"}
    one, ones = measured([1, 1, 0, 0], task="mmlu_a")
    two, twos = measured([1, 1, 1], task="mmlu_b")
    group = row(task="mmlu", value=0.75, key="k", aggregation="macro_mean")
    rows = [group, {**one, **key}, {**two, **key}]
    items = [{**ones, "key": "k"}, {**twos, "key": "k"}]
    index = Export(write(tmp_path, rows, items=items)).items
    found = index.behind(group)
    assert found is not None
    assert [part.task for part in found] == ["mmlu_a", "mmlu_b"]
    assert [part.weight for part in found] == [0.5, 0.5]
    assert index.behind({**group, "key": "other"}) is None
    assert index.behind({**group, "aggregation": None}) is None  # not said how it follows
    for lacking in (items[:1], [items[0], {**items[1], "metric": "f1"}]):
        assert Export(write(tmp_path, rows, items=lacking)).items.behind(group) is None
    rows[2]["aggregation"] = None
    assert Export(write(tmp_path, rows, items=items)).items.behind(group) is None


def test_metrics_of_one_task_are_not_mixed(tmp_path: Path) -> None:
    made = [
        measured(scores, metric=metric, filter=filter, primary=metric == "acc")
        for metric, filter, scores in (
            ("acc", "none", [1.0, 0.0]),
            ("acc_norm", "none", [0.0, 0.0]),
            ("exact_match", "flexible", [0.0, 1.0]),
            ("exact_match", "strict", [1.0, 1.0]),
        )
    ]
    folder = write(tmp_path, [each for each, _ in made], items=[items for _, items in made])
    joined = reports.load_items(folder).merge(reports.load(folder), on=list(ITEM_KEY))
    assert joined.groupby(["metric", "filter"])["score"].mean().tolist() == [0.5, 0.0, 0.5, 1.0]


def test_a_perplexity_is_exp_of_its_items(tmp_path: Path) -> None:
    made, line = measured([1.0, 2.0], task="testbed-ppl", metric="ppl")
    assert made["value"] == math.exp(1.5)
    found = Export(write(tmp_path, [made], items=[line])).items.behind(made)
    assert found is not None and np.array_equal(found[0].scores, [1.0, 2.0])


def test_items_of_another_value_are_an_error(tmp_path: Path) -> None:
    made, line = measured([1, 0])
    folder = write(tmp_path, [{**made, "value": 0.6}], items=[line])
    with pytest.raises(ReportError, match=r"gz:1: these items give 0.5, but the value .* is 0.6"):
        reports.load_items(folder)


COMMITTED = sorted(path.parent for path in (ROOT / "results").glob("*/rows.jsonl"))


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_joined_items_give_the_values_of_committed_rows(folder: Path) -> None:
    """The join that `load_items` documents: every row gets its own items, and no others."""
    rows = reports.load(folder)
    joined = rows.merge(reports.load_items(folder), on=list(ITEM_KEY))
    means = joined.groupby(["cell", *ITEM_KEY])["score"].mean()
    for record in rows.to_dict("records"):
        if record["aggregation"] == "macro_mean":
            members = rows[(rows["cell"] == record["cell"]) & (rows["group"] == record["task"])]
            expected = members.loc[members["metric"] == record["metric"], "value"].mean()
        elif record["aggregation"] is None:  # a quantile over tokens, which are no items
            assert tuple(record[name] for name in ("cell", *ITEM_KEY)) not in means
            continue
        else:
            mean = means[tuple(record[name] for name in ("cell", *ITEM_KEY))]
            expected = math.exp(mean) if record["aggregation"] == "exp_mean" else mean
        assert record["value"] == pytest.approx(expected, rel=1e-6), record["cell"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1}, "items.jsonl.gz:2: schema version 1, expected 2"),
        ({"items": [1]}, "items.jsonl.gz:2: 1 items, but 2 scores"),
        ({"scores": ["a", "b"]}, "items.jsonl.gz:2: scores: 'a' should be a number"),
        ({"scores": []}, "items.jsonl.gz:2: 0 items, but 0 scores"),
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
