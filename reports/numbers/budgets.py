"""Training budgets of a table's rows: equal where the grid matches them, else how far apart.

Not here: how steps follow from a budget (`harness.grid.matching`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from harness.core.records import Match

_MEANT = {
    "tokens": "tokens, trained on or written to train on",
    "flops": "FLOPs, 6 a weight and token that is trained on, 2 where it is read or written",
}


_UNLIKE = 1.05  # the most tokens of a row by the least, from which on it is said


def count_tokens(models: pd.DataFrame, curves: pd.DataFrame, frame: pd.DataFrame) -> pd.Series:
    """Tokens that each of `models` was trained on; NaN for those that were not.

    A training that several cells share has its curve under one of them: the model tells.
    """
    keys = frame.drop_duplicates("cell").set_index("cell")["model_key"]
    total = curves.groupby(curves["cell"].map(keys))["tokens"].max()
    return models["model_key"].map(total).astype(float)


def describe_budgets(shown: pd.DataFrame, curves: pd.DataFrame, frame: pd.DataFrame) -> str | None:
    """In sentences, for under the table; None where no budget differs and none was matched.

    `shown`: primary rows with their `name`. `curves`, `frame`: those of the export.
    """
    known = shown[shown["match"].notna()]
    if known.empty:
        return None if curves.empty else _describe_unlike(shown, curves, frame)
    of_names: dict[str, list[Match]] = {}
    for name, match in zip(known["name"], known["match"], strict=True):
        if match not in of_names.setdefault(name, []):
            of_names[name].append(match)
    return " ".join([*_describe_matched(of_names), *_describe_unmatched(of_names)])


def _describe_unlike(shown: pd.DataFrame, curves: pd.DataFrame, frame: pd.DataFrame) -> str | None:
    """The least and the most that a trained row saw, on average over its models."""
    models = shown.drop_duplicates(["name", "bits", "model_key"])
    tokens = models.assign(tokens=count_tokens(models, curves, frame)).dropna(subset="tokens")
    groups = tokens.groupby(["name", "bits"], sort=False)
    means = [(float(group["tokens"].mean()), str(group["name"].iloc[0])) for _, group in groups]
    if not means:
        return None
    least, most = min(means), max(means)
    if most[0] <= _UNLIKE * least[0]:
        return None
    ends = (f"{count:,.0f} ({name})" for count, name in (least, most))
    return f"Not matched: trained rows saw {' to '.join(ends)} tokens."


def _describe_matched(of_names: Mapping[str, list[Match]]) -> Iterator[str]:
    matched = [each for matches in of_names.values() for each in matches if each.spent is not None]
    if not matched:
        return
    budgets = sorted({each.budget for each in matched})
    sums = " or ".join(map(_format, budgets))
    furthest = max(abs((each.spent or 0) / each.budget - 1) for each in matched)
    off = f", within {100 * furthest:.1f} %" if furthest >= 0.0005 else ""
    yield f"Each trained row has {sums} {_MEANT[matched[0].unit]}{off}."
    read = {name: _format_calibration(matches) for name, matches in of_names.items()}
    rows = [f"{name} {tokens}" for name, tokens in read.items() if tokens]
    if rows:
        yield f"Beside it, and not counted, tokens of calibration text: {', '.join(rows)}."


def _format_calibration(matches: list[Match]) -> str:
    """Of what is trained too: what is calibrated alone is named with what is not matched."""
    counts = sorted({each.calibration for each in matches if each.spent is not None})
    return " or ".join(f"{each:,}" for each in counts if each)


def _describe_unmatched(of_names: Mapping[str, list[Match]]) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for name, matches in of_names.items():
        for why in dict.fromkeys(each.why for each in matches if each.spent is None):
            reasons.setdefault(why or "unknown why", []).append(name)
    if reasons:
        parts = [f"{', '.join(names)} ({why})" for why, names in reasons.items()]
        yield f"Not matched: {'; '.join(parts)}."


def _format(amount: float) -> str:
    return f"{amount:,.0f}" if amount < 1e9 else f"{amount:.3g}"
