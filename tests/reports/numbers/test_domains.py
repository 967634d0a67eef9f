"""Which rows were fitted to the text that they are scored on is said where others were not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd

from reports.numbers.domains import describe_domains

COLUMNS: Any = [SimpleNamespace(task="ppl", title="PPL"), SimpleNamespace(task="kl", title="KL")]


def _say(*rows: tuple[str, list[str] | None, list[str] | None], text: str = "wiki") -> str | None:
    lines = [
        {"name": n, "task": c.task, "text": text, "trained_on": t, "calibrated_on": k}
        for c in COLUMNS
        for n, t, k in rows
    ]
    return describe_domains(pd.DataFrame(lines), COLUMNS)


def test_rows_that_were_fitted_stand_beside_rows_that_were_not() -> None:
    said = _say(("Ours", ["wiki:train", "c4"], []), ("Clip", [], ["wiki"]), ("RTN", [], []))
    assert said == (
        "PPL and KL read wiki, on which Ours was trained; Clip was calibrated; "
        "the methods of other rows do not read it."
    )


def test_nothing_is_said_where_all_or_none_were_or_where_rows_do_not_tell() -> None:
    assert _say(("Ours", ["wiki"], []), ("Clip", [], ["wiki"])) is None
    assert _say(("Ours", ["wiki"], []), ("RTN", [], []), text="c4") is None
    assert _say(("Ours", None, None), ("RTN", None, None)) is None


def test_names_alike_up_to_the_colon_alone_are_one_text() -> None:
    assert _say(("Ours", ["wikitext2"], []), ("RTN", [], [])) is None


def test_many_rows_are_counted() -> None:
    said = _say(*((f"M{number}", ["wiki"], []) for number in range(9)), ("RTN", [], []))
    assert said is not None and "M5 and 3 more were trained" in said and "M6" not in said
