"""The effects of an axis as a table.

Not here: how they are computed (`reports.numbers.effects`).
"""

from __future__ import annotations

from collections.abc import Sequence

from reports.numbers.columns import format_difference
from reports.numbers.effects import Effect, Status
from reports.numbers.stats import Interval
from reports.pages.sheet import MISSING, Cell, Sheet


def make_sheet(effects: Sequence[Effect], decimals: int) -> Sheet:
    """One line a comparison, one table of an axis."""
    groups: dict[tuple[str, str, str], list[tuple[Cell, ...]]] = {}
    for effect in effects:
        rows = groups.setdefault((effect.label, effect.context, effect.setting), [])
        name = ", ".join(part for part in (effect.label, effect.context) if part)
        change, low, high = (_shown(effect, value, decimals) for value in _ends(effect.difference))
        known = not effect.untested
        rows.append(
            (
                Cell(name),
                Cell(f"{effect.baseline} → {effect.setting}"),
                Cell(f"{effect.column.title} {'↑' if effect.column.higher else '↓'}"),
                Cell(change, best=effect.status is Status.DISTINGUISHED),
                Cell(f"[{low}, {high}]" if known else effect.untested),
                Cell(_show_p(effect.p) if known else MISSING),
                Cell(_shown(effect, effect.visible, decimals).lstrip("+") if known else MISSING),
                Cell(str(effect.difference.n)),
            )
        )
    return Sheet(
        name=f"effect-{effects[0].axis}",
        caption=(
            f"The effect of {effects[0].axis}, all else equal, scores in percentage points: least "
            f"squares, {_describe_model(effects)}, over {_list_sources(effects)}; simultaneous "
            "95 % intervals by Dunnett, corrected by Bonferroni for columns and contexts, averages "
            f"apart from tasks. {_explain_logarithms(effects)}{_explain_statuses(effects)}"
        ),
        head=("Method", "Change", "Column", "Difference", "95 % interval", "p", "Visible", "Seeds"),
        groups=tuple(tuple(rows) for rows in groups.values()),
        left=3,
    )


def count_statuses(effects: Sequence[Effect]) -> str:
    """In a sentence, for where the table has no room."""
    counts = {status: sum(effect.status is status for effect in effects) for status in Status}
    listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"Effects of {effects[0].axis}: {listed}; report.md has them."


def _describe_model(effects: Sequence[Effect]) -> str:
    """Seeds are blocks where every setting was trained with them."""
    blocked = {effect.blocked for effect in effects if not effect.untested}
    if blocked == {False}:
        return "score ~ setting"
    return "score ~ setting + seed" + (", or without seed" if False in blocked else "")


def _explain_statuses(effects: Sequence[Effect]) -> str:
    """What is in bold, and what is not: only of what is there."""
    found = {effect.status for effect in effects}
    sentences = []
    if Status.DISTINGUISHED in found:
        sentences.append("In bold where the interval excludes zero (p < 0.05).")
    if Status.NOT_DISTINGUISHED in found:
        sentences.append("Not in bold: not distinguished, which does not say equal.")
    if found != {Status.UNTESTED}:
        sentences.append(
            "Visible: the smallest true difference that would be found with a probability of 80 %."
        )
    if Status.UNTESTED in found:
        sentences.append("Without an interval: untested, with the reason.")
    return " ".join(sentences)


def _explain_logarithms(effects: Sequence[Effect]) -> str:
    if not any(effect.column.title.startswith("ln ") for effect in effects):
        return ""
    return "Of perplexities, differences of their logarithms: of the mean loss, in nats. "


def _list_sources(effects: Sequence[Effect]) -> str:
    """What varies: seeds, items or both."""
    return " or over ".join(dict.fromkeys(e.over for e in effects if e.over)) or "seeds"


def _show_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _ends(difference: Interval) -> tuple[float, float, float]:
    return difference.mean, difference.low, difference.high


def _shown(effect: Effect, value: float, decimals: int) -> str:
    """With its sign; a difference of scores in points."""
    percent = effect.column.percent
    return format_difference(100 * value if percent else value, decimals if percent else 3)
