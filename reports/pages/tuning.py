"""The settings that were chosen for each row of a grid that tunes, and what choosing cost.

Not here: how one is chosen (`harness.grid.tuning`); the trials themselves, which are a folder of
rows of their own beside the grid's.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.records import Tuning
from reports.numbers.columns import format_bits
from reports.numbers.naming import format_setting
from reports.numbers.summary import Summary, Tuned
from reports.pages.sheet import MISSING, Cell, Sheet


def make_sheet(summary: Summary) -> Sheet | None:
    """One line a row of the table that could be tuned; None where nothing was."""
    if not summary.tuned:
        return None
    groups: dict[float, list[tuple[Cell, ...]]] = {}
    for each in summary.tuned:
        groups.setdefault(each.bits, []).append(_make_line(each))
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


def describe(summary: Summary) -> str | None:
    """In a sentence, for under the table."""
    if not summary.tuned:
        return UNTUNED if summary.is_trained else None
    chosen = [each for each in summary.tuned if each.tuning.trials]
    return " ".join([*_describe_chosen(chosen), *_describe_faults(summary.tuned)])


UNTUNED = "none; trained methods have the grid's own settings."


def _describe_chosen(chosen: list[Tuned]) -> Iterator[str]:
    if not chosen:
        return
    counts = sorted({each.tuning.trials for each in chosen})
    paths = dict.fromkeys(path for each in chosen for path in each.tuning.tried)
    number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} (unequal)"
    yield f"{' and '.join(paths)} chosen for each row among {number} trials by the least"
    yield f"{chosen[0].tuning.on}."


def _describe_faults(tuned: tuple[Tuned, ...]) -> Iterator[str]:
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


def _make_line(each: Tuned) -> tuple[Cell, ...]:
    tuning = each.tuning
    tried = [
        f"{path}: {', '.join(format_setting(value, path) for value in values)}"
        for path, values in tuning.tried.items()
    ]
    hours = "" if tuning.device_hours is None else f"{tuning.device_hours:.3f}"
    return (
        Cell(format_bits(each.bits)),
        Cell(each.name),
        Cell(_describe_settings(tuning)),
        Cell("; ".join(tried) or "not tuned"),
        Cell(str(tuning.trials)),
        Cell(f"{tuning.tokens:,.0f}" if tuning.tokens else MISSING),
        Cell(hours or MISSING),
    )


def _describe_settings(tuning: Tuning) -> str:
    return ", ".join(
        f"{path} {format_setting(value, path)}" + (" (end)" if path in tuning.at_end else "")
        for path, value in tuning.chosen.items()
    )


def _name(each: Tuned) -> str:
    return f"{each.name}, {format_bits(each.bits)} bits"
