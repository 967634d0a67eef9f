"""Reading exported files: types, repeats, and what is said when one is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import pytest

import reports
from harness.core.errors import ReportError
from reports.reading.rows import FIELDS, load_curves, load_grid
from tests.support.synthetic_grids import ppl, quickstart, row, write


def test_columns_are_typed_and_documented(tmp_path: Path) -> None:
    frame = reports.load(quickstart(tmp_path))
    assert list(frame.columns) == [*FIELDS, "line", "axes.format.bits"]
    for name, field in FIELDS.items():
        assert str(frame[name].dtype) == field.dtype, name
        assert field.words
    assert frame["bos"].tolist()[0] is False
    assert load_curves(tmp_path)["step"].dtype == "int64"


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
    words = bad_rows(tmp_path, json.dumps(row(schema=2)))
    assert words.startswith(f"{tmp_path / 'rows.jsonl'}:3: schema version 2, expected 1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"schema": 1, "cell"', "rows.jsonl:3: not JSON"),
        ("[1]", "rows.jsonl:3: expected an object, found list"),
        (json.dumps({**row(seed=1), "task": None}), "rows.jsonl:3: field 'task' is missing"),
        (json.dumps(row(seed=1, value="61")), "field 'value' should be int or float, found '61'"),
        (json.dumps(row(seed=1, n=True)), "rows.jsonl:3: field 'n' should be int, found True"),
        (json.dumps(row(seed=1, higher_is_better=False)), "better higher in one row"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    assert words in bad_rows(tmp_path, line)


def test_a_bad_curve_line_is_named(tmp_path: Path) -> None:
    curve = {"cell": "a", "label": "A", "axes": {}, "seed": 0, "bits": 2, "step": 1, "loss": 1.0}
    folder = write(tmp_path, [row()], [curve, {**curve, "step": "two"}])
    with pytest.raises(ReportError, match=r"curves.jsonl:2: field 'step' should be int"):
        reports.render(folder)


def test_nothing_finished_says_what_is_open(tmp_path: Path) -> None:
    hole = {"cell": "a", "label": "A", "axes": {}, "seed": 0}
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
    spec = load_grid(write(tmp_path, [row()])).spec
    assert (spec.rows, spec.over, spec.average) == (("label",), "seed", None)
    assert load_grid(write(tmp_path, [row()], report={"rows": "a"})).spec.rows == ("a",)
    folder = write(tmp_path, [row()], report={"averages": ["x"]})
    with pytest.raises(ReportError, match=r"no setting 'averages'; did you mean 'average'\?"):
        load_grid(folder)
    with pytest.raises(ReportError, match=r"schema version 3, expected 1"):
        load_grid(write(tmp_path, [row()], schema=3))


def test_no_primary_row(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="no row is marked primary"):
        reports.text(write(tmp_path, [row(primary=False)]))
