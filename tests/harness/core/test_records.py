"""Records: what is read is checked, what is written comes back, a digest is of numbers alone."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest

from harness.core import records
from harness.core.errors import ReportError
from harness.core.record_lines import from_json, to_json
from harness.core.records import (
    SCHEMA,
    CurvePoint,
    GridHead,
    Hole,
    Row,
    documentation,
)
from harness.core.report_options import Finding, ReportOptions, rows_digest

KINDS = [
    kind
    for kind in vars(records).values()
    if isinstance(kind, type) and kind.__module__ == records.__name__
]
HEAD = GridHead(
    name="a",
    question="Which?",
    model="m",
    cells=2,
    holes=[Hole(cell="c", label="A", settings={"bits": 2}, seed=0, reason="not run yet")],
    report=ReportOptions(columns="piqa", decimals={"piqa": 1}, finding=Finding(text="t", rows="r")),
)


def row(**facts: Any) -> Row:
    base: dict[str, Any] = dict.fromkeys(each.name for each in fields(Row)) | {
        "cell": "c",
        "label": "A",
        "settings": {"bits": 2},
        "bits": 2,
        "task": "t",
        "metric": "acc",
        "filter": "none",
        "primary": True,
        "higher_is_better": True,
        "grid": "g",
        "method": "a",
        "model": "m",
        "key": "k",
        "model_key": "mk",
    }
    return Row(**base | facts)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_says_what_it_means(kind: type) -> None:
    assert kind.__doc__ and all(documentation(kind).values())


@pytest.mark.parametrize("record", [row(value=math.inf), row(value=0.1), HEAD])
def test_a_record_comes_back_from_its_json(record: Any) -> None:
    assert from_json(type(record), to_json(record), "here") == record


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 1}, f"here: schema version 1, expected {SCHEMA}"),
        ({"cells": "two"}, "here: cells: 'two' should be a whole number"),
        ({"cells": True}, "here: cells: true should be a whole number"),
        ({"holes": [{}]}, "here: holes: key 'cell' is missing"),
        ({"report": {"colums": []}}, "here: report: key 'colums' is unknown; did you mean 'col"),
        ({"report": {"finding": "x"}}, "here: report.finding: 'x' should be a mapping"),
        ({"report": {"finding": {"txt": "x"}}}, "report.finding: key 'txt' is unknown; did you"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ReportError) as error:
        from_json(GridHead, {**to_json(HEAD), **change}, "here")
    assert words in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ReportError, match="here: expected an object, found list"):
        from_json(GridHead, [], "here")


def test_names_that_are_not_known_and_lines_of_before_a_field_can_be_read() -> None:
    line = {"schema": SCHEMA, "cell": "c", "label": "A", "settings": {}, "seed": None}
    point = from_json(CurvePoint, {**line, "bits": 2, "step": 1, "later": 3}, "here")
    assert (point.step, point.seconds) == (1, None)


def test_a_digest_of_rows_is_of_their_numbers() -> None:
    rows = [row(), row(task="other", value=0.5)]
    digest = rows_digest(map(vars, rows))
    assert digest == rows_digest(map(vars, [*reversed(rows), rows[0]]))
    renamed = [replace(each, label="B", cell="B", key="other", caveat="x") for each in rows]
    assert digest == rows_digest(map(vars, renamed))
    for change in ({"value": 0.25}, {"seed": 1}, {"settings": {"bits": 3}}, {"method": "b"}):
        assert digest != rows_digest(map(vars, [replace(rows[0], **change), rows[1]]))


def test_importing_the_records_loads_nothing_heavy() -> None:
    code = (
        "import sys, harness.core.records; print({'torch','pandas','pydantic'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
