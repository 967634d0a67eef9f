"""Which rows were fitted to the text that a column scores, where others were not.

A perplexity on the text of a training tells how well a model knows that text. Beside rows that
never saw it, it is no fair comparison, and the page says so. Texts are one where their names agree
up to the colon: the training and the test part of WikiText-2 are alike. Not here: which texts those
are (`harness.run.export`, which follows the stages).
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from reports.numbers.columns import Column

_MOST = 6  # rows that are named


def describe_domains(shown: pd.DataFrame, columns: Sequence[Column]) -> str | None:
    """In sentences; None where no column has rows of both kinds, or the rows do not tell.

    `shown`: primary rows with their `name`. What a model was pre-trained on is not known here, and
    is the same for all rows.
    """
    known = shown[shown["text"].notna() & shown["trained_on"].notna()]
    said: dict[tuple[str, str], list[str]] = {}
    for column in columns:
        rows = known[known["task"] == column.task]
        for text, of_text in rows.groupby("text", sort=False):
            fitted = _list_fitted(of_text, str(text))
            if fitted is not None:
                said.setdefault((str(text), fitted), []).append(column.title)
    sentences = [
        f"{' and '.join(titles)} {'read' if len(titles) > 1 else 'reads'} {text}, {fitted}."
        for (text, fitted), titles in said.items()
    ]
    return " ".join(sentences) or None


def _list_fitted(rows: pd.DataFrame, text: str) -> str | None:
    """Who was trained on a text, and who was calibrated on it; None where all or none were."""
    names = {"trained_on": "trained", "calibrated_on": "calibrated"}
    parts, fitted = [], pd.Series(False, index=rows.index)
    for field, verb in names.items():
        is_fitted = rows[field].map(lambda texts: any(_is_alike(each, text) for each in texts))
        fitted |= is_fitted
        if is_fitted.any():
            listed = list(dict.fromkeys(rows.loc[is_fitted, "name"]))
            more = f" and {len(listed) - _MOST} more" if len(listed) > _MOST else ""
            be = "was" if len(listed) == 1 else "were"
            parts.append(f"{', '.join(listed[:_MOST])}{more} {be} {verb}")
    if not parts or fitted.all():
        return None
    return f"on which {'; '.join(parts)}; the methods of other rows do not read it"


def _is_alike(one: str, other: str) -> bool:
    return one.partition(":")[0] == other.partition(":")[0]
