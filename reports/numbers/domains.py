"""Which rows were fitted to the text that a column scores, where others were not.

A perplexity on the text of a training tells how well a model knows that text. Beside rows that
never saw it, or were only calibrated on it, it is no fair comparison, and the page says so. Not
here: which texts those are, and which of them are alike (`harness.core.lineage`).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from harness.core.lineage import is_alike
from reports.numbers.columns import Column

_MOST = 6  # rows that are named
_SAID = {
    "trained": "Trained on it: {}.",
    "calibrated": "Calibrated on it: {}.",
    "unknown": "Not known of {}: stages behind them are missing.",
    "neither": "The methods of other rows do not read it.",
}


def describe_domains(shown: pd.DataFrame, columns: Sequence[Column]) -> str | None:
    """In sentences; None where all rows of each column were fitted alike, or none tells its text.

    `shown`: primary rows with their `name`. What a model was pre-trained on is not known here, and
    is the same for all rows.
    """
    read = shown[shown["text"].notna()]
    said: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        rows = read[read["task"] == column.task]
        for text, of_text in rows.groupby("text", sort=False):
            if (fitted := _describe_fitted(of_text, str(text))) is not None:
                said.setdefault((str(text), fitted), []).append(column.title)
    sentences = [
        f"{' and '.join(titles)} {'read' if len(titles) > 1 else 'reads'} {text}. {fitted}"
        for (text, fitted), titles in said.items()
    ]
    return " ".join(sentences) or None


def _describe_fitted(rows: pd.DataFrame, text: str) -> str | None:
    """Who was trained on a text, who was calibrated on it; None where it is the same for all."""
    trained, calibrated = rows["trained_on"], rows["calibrated_on"]
    ways = pd.Series("neither", index=rows.index)
    ways[calibrated.map(lambda texts: _has(texts, text))] = "calibrated"
    ways[trained.map(lambda texts: _has(texts, text))] = "trained"
    ways[trained.isna()] = "unknown"
    if len(set(ways)) == 1:
        return None
    found = {way: rows[ways == way] for way in _SAID if (ways == way).any()}
    return " ".join(_SAID[way].format(_list_names(its, rows)) for way, its in found.items())


def _has(texts: object, text: str) -> bool:
    return isinstance(texts, list) and any(is_alike(each, text) for each in texts)


def _list_names(these: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Names of some of `rows`; of a method whose rows are all among them, its label."""
    split = set(rows.loc[rows.index.difference(these.index), "label"])
    pairs = zip(these["name"], these["label"], strict=True)
    names = list(dict.fromkeys(name if label in split else label for name, label in pairs))
    more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
    return f"{'; '.join(names[:_MOST])}{more}"
