"""Which rows were fitted to the text that they are scored on is said where others were not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd

from reports.numbers.domains import describe_domains

COLUMNS: Any = [SimpleNamespace(task="ppl", title="PPL"), SimpleNamespace(task="kl", title="KL")]
OTHERS = " The methods of other rows do not read it."


def _say(*rows: tuple[str, list[str] | None, list[str] | None], text: str = "wiki") -> str | None:
    """Rows by name, texts of training, texts of calibration; a label ends at a comma."""
    facts = {"text": text}
    lines = [
        {"name": n, "label": n.partition(",")[0], "task": c.task, "trained_on": t, **facts}
        | {"calibrated_on": k}
        for c in COLUMNS
        for n, t, k in rows
    ]
    return describe_domains(pd.DataFrame(lines), COLUMNS)


def test_rows_that_were_fitted_stand_beside_rows_that_were_not() -> None:
    said = _say(("Ours", ["wiki:train", "c4"], []), ("Clip", [], ["wiki"]), ("RTN", [], []))
    assert said == "PPL and KL read wiki. Trained on it: Ours. Calibrated on it: Clip." + OTHERS


def test_a_calibration_is_no_training() -> None:
    said = _say(("Ours", ["wiki"], []), ("Clip", [], ["wiki"]))
    assert said == "PPL and KL read wiki. Trained on it: Ours. Calibrated on it: Clip."


def test_nothing_is_said_where_all_rows_are_alike() -> None:
    assert _say(("Ours", ["wiki"], []), ("KL", ["wiki:validation"], ["c4"])) is None
    assert _say(("Ours", [], ["wiki"]), ("Clip", [], ["wiki"])) is None
    assert _say(("Ours", ["wiki"], []), ("RTN", [], []), text="c4") is None
    assert _say(("Ours", None, None), ("RTN", None, None)) is None


def test_a_row_that_does_not_tell_is_named_and_no_other_row() -> None:
    said = _say(("Ours", ["wiki"], []), ("Old", None, None))
    assert said is not None
    assert said.endswith("Trained on it: Ours. Not known of Old: stages behind them are missing.")


def test_many_rows_are_counted_and_a_method_of_one_kind_is_named_once() -> None:
    said = _say(*((f"M{number}", ["wiki"], []) for number in range(9)), ("RTN", [], []))
    assert said is not None and "M4; M5 and 3 more." in said and "M6" not in said
    said = _say(
        ("M, a", ["wiki"], []), ("M, b", ["wiki"], []), ("N, a", ["wiki"], []), ("N", [], [])
    )
    assert said == "PPL and KL read wiki. Trained on it: M; N, a." + OTHERS
