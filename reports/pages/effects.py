"""The effects of an axis as a table.

Not here: how they are computed (`reports.numbers.effects`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from reports.numbers.effects import Effect
from reports.numbers.stats import LEVEL, Interval
from reports.pages.sheet import MISSING, Cell, Sheet


def make_sheet(effects: Sequence[Effect], decimals: int) -> Sheet:
    """One line a comparison, one table of an axis."""
    groups: dict[tuple[str, str, str], list[tuple[Cell, ...]]] = {}
    for effect in effects:
        rows = groups.setdefault((effect.label, effect.context, effect.setting), [])
        name = " ".join(part for part in (effect.label, effect.context) if part)
        change, low, high = (_shown(effect, value, decimals) for value in _ends(effect.difference))
        known = not math.isnan(effect.difference.low)
        rows.append(
            (
                Cell(name),
                Cell(f"{effect.baseline} → {effect.setting}"),
                Cell(f"{effect.column.title} {'↑' if effect.column.higher else '↓'}"),
                Cell(change, best=effect.p < 1 - LEVEL),
                Cell(f"[{low}, {high}]" if known else MISSING),
                Cell(f"{effect.p:.3f}" if known else MISSING),
                Cell(str(effect.difference.n)),
            )
        )
    tested = sum(not math.isnan(effect.p) for effect in effects)
    return Sheet(
        name=f"effect-{effects[0].axis}",
        caption=(
            f"The effect of {effects[0].axis}, all else paired: mean over seeds of the difference, "
            "with Student's 95 % interval, scores in percentage points. p: paired t-test, "
            f"Holm-corrected for {tested} comparisons; in bold below 0.05."
        ),
        head=("Method", "Change", "Column", "Difference", "95 % interval", "p", "Seeds"),
        groups=tuple(tuple(rows) for rows in groups.values()),
        left=3,
    )


def _ends(difference: Interval) -> tuple[float, float, float]:
    return difference.mean, difference.low, difference.high


def _shown(effect: Effect, value: float, decimals: int) -> str:
    """With its sign; a difference of scores in points."""
    if effect.column.percent:
        return f"{100 * value:+.{decimals}f}".replace("-", "−")
    return f"{value:+.3f}".replace("-", "−")
