"""The settings that were chosen for each row of a grid that tunes, and what choosing cost.

Not here: how one is chosen (`harness.grid.tuning`); the trials themselves, which are a folder of
rows of their own beside the grid's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.core.records import Tuning
from reports.numbers.columns import format_bits
from reports.numbers.naming import format_setting
from reports.numbers.summary import Summary
from reports.numbers.tuning import Tuned
from reports.numbers.wording import Wording
from reports.pages.sheet import MISSING, Cell, Sheet


def make_sheet(summary: Summary) -> Sheet | None:
    """One line a row of the table that could be tuned; None where nothing was."""
    if not summary.tuned:
        return None
    wording = Wording(summary.grid.report.names)
    groups: dict[float, list[tuple[Cell, ...]]] = {}
    for each in summary.tuned:
        groups.setdefault(each.bits, []).append(_make_line(each, wording))
    return Sheet(
        name=f"{summary.grid.name}-tuning",
        caption=(
            f"What was chosen for each row, by the least {summary.tuned[0].tuning.on}, at the "
            "first seed. Device-h: of making the trials' models, with searches and generated text. "
            "Rows that are not here have none of these settings."
        ),
        head=("Bits", "Method", "Chosen", "Tried", "Trials", "Tokens", "Device-h"),
        groups=tuple(map(tuple, groups.values())),
        left=4,
    )


def _make_line(each: Tuned, wording: Wording) -> tuple[Cell, ...]:
    tuning = each.tuning
    tried = [
        f"{wording.name_axis(path)}: {_list_values(path, values, wording)}"
        for path, values in tuning.tried.items()
    ]
    hours = "" if tuning.device_hours is None else f"{tuning.device_hours:.3f}"
    return (
        Cell(format_bits(each.bits)),
        Cell(each.name),
        Cell(_describe_settings(tuning, wording)),
        Cell("; ".join(tried) or "not tuned"),
        Cell(_describe_trials(tuning)),
        Cell(f"{tuning.tokens:,.0f}" if tuning.tokens else MISSING),
        Cell(hours or MISSING),
    )


def _describe_trials(tuning: Tuning) -> str:
    """How many went how far, where the worse ones ended early: `4 to 1/2, 2 to the end`."""
    ways = {share: "to the end" if share == "1" else f"to {share}" for share in tuning.parts}
    parts = [f"{count} {ways[share]}" for share, count in tuning.parts.items()]
    return ", ".join(parts) or str(tuning.trials)


def _list_values(path: str, values: Sequence[Any], wording: Wording) -> str:
    return ", ".join(wording.name_value(path, format_setting(value)) for value in values)


def _describe_settings(tuning: Tuning, wording: Wording) -> str:
    return ", ".join(
        wording.name_setting(path, format_setting(value))
        + (" (end)" if path in tuning.at_end else "")
        for path, value in tuning.chosen.items()
    )
