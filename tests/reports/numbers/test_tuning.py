"""What is said of how rows were tuned: among how many trials, and what was not equal."""

from __future__ import annotations

from typing import Any

import pandas as pd

from harness.core.records import Tuning
from reports.numbers.tuning import describe_tuning, list_tuned
from reports.numbers.wording import Wording

TRIED: Any = {"tried": {"train.lr": [1, 2, 4]}, "trials": 3, "combinations": 3}


def _say(*tunings: Tuning | None) -> str | None:
    rows = [{"name": f"M{n}", "bits": 2.0 + n, "tuning": each} for n, each in enumerate(tunings)]
    return describe_tuning(list_tuned(pd.DataFrame(rows)), True, Wording())


def test_equal_trials_are_said_in_one_sentence() -> None:
    tuning = Tuning(chosen={"train.lr": 2}, on="kl on held", **TRIED)
    said = "Learning rate chosen for each row among 3 trials by the least kl on held."
    assert _say(tuning, tuning, None) == said


def test_what_makes_a_comparison_unequal_is_said() -> None:
    said = _say(
        Tuning(chosen={"train.lr": 4}, on="kl", at_end=["train.lr"], **TRIED),
        Tuning(chosen={"train.lr": 2}, on="kl", failed=1, **{**TRIED, "combinations": 9}),
        Tuning(chosen={"train.lr": 2}, on="kl", **{**TRIED, "trials": 2, "combinations": 2}),
        Tuning(chosen={"train.lr": 7}, on="kl"),
    )
    assert said == (
        "Learning rate chosen for each row among 2 to 3 (unequal) trials by the least kl. "
        "Not tuned, with settings of their own: M3, 5 bits. "
        "At the end of what was tried, so that a better value may lie beyond: M0, 2 bits. "
        "Not every combination was tried: M1, 3 bits. "
        "Trials that failed: M1, 3 bits (1)."
    )


def test_a_grid_that_tunes_nothing_says_so_where_something_was_trained() -> None:
    assert _say(None) == "none; trained methods have the grid's own settings."
    assert describe_tuning((), False, Wording()) is None
