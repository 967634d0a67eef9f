"""Reading exported files: types, repeats, and what is said when one is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

import reports
from harness.core.errors import ReportError
from harness.core.records import SCHEMA, Row, documentation
from reports.reading.export import Export
from reports.reading.frames import column_types
from tests.support.synthetic_grids import ppl, quickstart, row, write


def test_columns_are_typed_and_documented(tmp_path: Path) -> None:
    frame = reports.load(quickstart(tmp_path))
    assert list(frame.columns) == [*column_types(Row), "line", "settings.format.bits"]
    for name, dtype in column_types(Row).items():
        assert str(frame[name].dtype) == dtype, name
        assert documentation(Row)[name]
    assert frame["bos"].tolist()[0] is False
    assert reports.load_curves(tmp_path)["step"].dtype == "int64"


def test_missing_facts_keep_their_type(tmp_path: Path) -> None:
    given = row(seed=None, n=None, bos=None, limit=None, group_size=None, format=None)
    frame = reports.load(write(tmp_path, [given]))
    for name in ("seed", "n", "bos", "limit", "group_size", "format"):
        assert pd.isna(frame[name][0]), name
    assert str(frame["seed"].dtype) == "Int64"


def test_nan_null_and_infinite_values_are_values(tmp_path: Path) -> None:
    rows = [ppl(value=v, seed=i) for i, v in enumerate([math.nan, None, math.inf])]
    values = reports.load(write(tmp_path, rows))["value"].tolist()
    assert math.isnan(values[0])
    assert math.isnan(values[1])
    assert values[2] == math.inf


def test_a_repeated_row_counts_once(tmp_path: Path) -> None:
    assert len(reports.load(write(tmp_path, [row(), row(), ppl(value=math.nan)] * 2))) == 2


@pytest.mark.parametrize("change", [{"value": 0.6}, {"limit": 20}, {"num_fewshot": 0}])
def test_rows_that_disagree_are_an_error(tmp_path: Path, change: dict[str, object]) -> None:
    folder = write(tmp_path, [row(), ppl(value=3.0), row(**change)])
    with pytest.raises(ReportError) as error:
        reports.load(folder)
    (name,) = change
    words = str(error.value)
    for part in ("rows.jsonl", "testbed_knowledge", name, "line 1", "line 3", str(change[name])):
        assert part in words


def bad_rows(tmp_path: Path, second: str) -> str:
    folder = write(tmp_path, [row()])
    with (folder / "rows.jsonl").open("a") as file:
        file.write("\n" + second + "\n")
    with pytest.raises(ReportError) as error:
        reports.text(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_another_schema_version(tmp_path: Path) -> None:
    words = bad_rows(tmp_path, json.dumps(row(schema=1)))
    assert words.startswith(f"{tmp_path / 'rows.jsonl'}:3: schema version 1, expected 2")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"schema": 2, "cell"', "rows.jsonl:3: not JSON"),
        ("[1]", "rows.jsonl:3: expected an object, found list"),
        (
            json.dumps({**row(seed=1), "task": None}),
            "rows.jsonl:3: task: null should be text",
        ),
        (json.dumps(row(seed=1, value="61")), "value: '61' should be a number"),
        (
            json.dumps(row(seed=1, n=True)),
            "rows.jsonl:3: n: true should be a whole number",
        ),
        (json.dumps(row(seed=1, higher_is_better=False)), "better higher in one row"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    assert words in bad_rows(tmp_path, line)


def test_a_bad_curve_line_is_named(tmp_path: Path) -> None:
    curve = {
        "cell": "a",
        "label": "A",
        "settings": {},
        "seed": 0,
        "bits": 2,
        "step": 1,
        "loss": 1.0,
    }
    folder = write(tmp_path, [row()], [curve, {**curve, "step": "two"}])
    with pytest.raises(ReportError, match=r"curves.jsonl:2: step: 'two' should be a whole number"):
        reports.render(folder)


def test_nothing_finished_says_what_is_open(tmp_path: Path) -> None:
    hole = {"cell": "a", "label": "A", "settings": {}, "seed": 0}
    holes = [{**hole, "reason": "not run yet"}, {**hole, "reason": "failed: out of memory"}]
    folder = write(tmp_path, [], holes=holes, cells=2)
    with pytest.raises(ReportError, match=r"no finished row; 2 of 2 .* failed: out of memory"):
        reports.text(folder)
    (folder / "rows.jsonl").unlink()
    with pytest.raises(ReportError, match=r"rows.jsonl is missing"):
        reports.render(folder)
    with pytest.raises(ReportError, match=r"grid.json is missing"):
        reports.render(tmp_path / "nowhere")


def test_the_spec_has_defaults_and_no_unread_keys(tmp_path: Path) -> None:
    options = Export(write(tmp_path, [row()])).grid.report
    assert (options.row_names, options.over, options.average) == (("label",), "seed", None)
    options = Export(write(tmp_path, [row()], report={"rows": "a"})).grid.report
    assert options.row_names == ("a",)
    folder = write(tmp_path, [row()], report={"averages": ["x"]})
    with pytest.raises(ReportError, match=r"'averages' is unknown; did you mean 'average'\?"):
        _ = Export(folder).grid
    with pytest.raises(ReportError, match=f"schema version 3, expected {SCHEMA}"):
        _ = Export(write(tmp_path, [row()], schema=3)).grid


def test_no_primary_row(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no row is marked primary"):
        reports.text(write(tmp_path, [row(primary=False)]))
