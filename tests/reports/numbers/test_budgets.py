"""What is said of training budgets under a table."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from harness.core.records import Match
from reports.numbers.budgets import describe_budgets


def _say(**matches: Match | None) -> str | None:
    rows = pd.DataFrame({"name": list(matches), "match": list(matches.values())})
    return describe_budgets(rows, pd.DataFrame(), rows)


def _make(**facts: Any) -> Match:
    return Match(unit="tokens", budget=10_000, **facts)


def test_equal_budgets_and_what_has_none_are_said() -> None:
    said = _say(
        A=_make(spent=10_000, steps=5, calibration=4096),
        B=_make(spent=9_950, steps=4),
        C=_make(why="nothing is trained"),
        D=_make(why="nothing is trained"),
        E=_make(why="fitted to 64 tokens of calibration text", calibration=64),
    )
    assert said == (
        "Each trained row has 10,000 tokens, trained on or written to train on, within 0.5 %. "
        "Beside it, and not counted, tokens of calibration text: A 4,096. "
        "Not matched: C, D (nothing is trained); E (fitted to 64 tokens of calibration text)."
    )


def test_several_budgets_are_listed_and_a_grid_without_says_nothing() -> None:
    one = Match(unit="flops", budget=1.5e12, spent=1.5e12)
    two = Match(unit="flops", budget=3e12, spent=3e12)
    assert _say(A=one, B=two, C=None) == (
        "Each trained row has 1.5e+12 or 3e+12 FLOPs, 6 a weight and token that is trained on, "
        "2 where it is read or written."
    )
    assert _say(A=None) is None


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ((600, 400, 300), "Not matched: trained rows saw 300 (B) to 500 (A) tokens."),
        ((600, 400, 490), None),  # within 5 %
    ],
)
def test_unequal_tokens_are_said(tokens: tuple[int, ...], said: str | None) -> None:
    """Of A two seeds, whose mean counts; C is not trained."""
    rows = pd.DataFrame(
        {
            "name": ["A", "A", "B", "C"],
            "cell": ["a0", "a1", "b", "c"],
            "model_key": ["a0", "a1", "b", "c"],
            "bits": 2.0,
            "match": None,
        }
    )
    curves = pd.DataFrame({"cell": ["a0", "a1", "b"] * 2, "tokens": [*[1.0] * 3, *tokens]})
    assert describe_budgets(rows, curves, rows) == said
