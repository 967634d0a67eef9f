"""How the settings of a table's rows were chosen, and what is to be known of that.

Not here: choosing (`harness.grid.tuning`), the table of what was chosen (`reports.pages.tuning`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pandas as pd

from harness.core.records import Tuning
from reports.numbers.columns import format_bits
from reports.numbers.wording import Wording


class Tuned(NamedTuple):
    """How settings of a row were chosen: the same for all its seeds."""

    name: str
    bits: float
    tuning: Tuning


def list_tuned(shown: pd.DataFrame) -> tuple[Tuned, ...]:
    """Of primary rows with their `name`, those that could be tuned, most bits first."""
    known = shown[shown["tuning"].notna()].sort_values("bits", ascending=False, kind="stable")
    rows = {
        (name, bits): tuning
        for name, bits, tuning in zip(known["name"], known["bits"], known["tuning"], strict=True)
    }
    return tuple(Tuned(name, bits, tuning) for (name, bits), tuning in rows.items())


def describe_tuning(tuned: Sequence[Tuned], is_trained: bool, wording: Wording) -> str | None:
    """In a sentence, for under the table; None where there is nothing to tune."""
    if not tuned:
        return UNTUNED if is_trained else None
    chosen = [each for each in tuned if each.tuning.trials]
    return " ".join([*_describe_chosen(chosen, wording), *_describe_faults(tuned)])


UNTUNED = "none; trained methods have the grid's own settings."


def _describe_chosen(chosen: Sequence[Tuned], wording: Wording) -> Iterator[str]:
    if not chosen:
        return
    counts = sorted({each.tuning.trials for each in chosen})
    tried = dict.fromkeys(path for each in chosen for path in each.tuning.tried)
    axes = " and ".join(map(wording.name_axis, tried))
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} (unequal)"
    yield f"{axes[:1].upper()}{axes[1:]} chosen for each row among {number} trials by the least"
    yield f"{chosen[0].tuning.on}."
    if halved := [each.tuning.parts for each in chosen if each.tuning.parts]:
        shares = " and ".join(share for share in max(halved, key=len) if share != "1")
        rest = "" if len(halved) == len(chosen) else ", where a row is trained"
        yield f"Of the trials the worse half ended after {shares} of the steps{rest}."


def _describe_faults(tuned: Sequence[Tuned]) -> Iterator[str]:
    own = [_name(each) for each in tuned if not each.tuning.trials]
    ends = [_name(each) for each in tuned if each.tuning.at_end]
    cut = [_name(each) for each in tuned if each.tuning.trials < each.tuning.combinations]
    failed = [f"{_name(each)} ({each.tuning.failed})" for each in tuned if each.tuning.failed]
    if own:
        yield f"Not tuned, with settings of their own: {'; '.join(own)}."
    if ends:
        yield (
            "At the end of what was tried, so that a better value may lie beyond: "
            f"{'; '.join(ends)}."
        )
    if cut:
        yield f"Not every combination was tried: {'; '.join(cut)}."
    if failed:
        yield f"Trials that failed: {'; '.join(failed)}."


def _name(each: Tuned) -> str:
    return f"{each.name}, {format_bits(each.bits)} bits"
