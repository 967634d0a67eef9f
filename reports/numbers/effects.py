"""The effect of one axis, everything else equal: each setting against the first one of the grid.

For one method, the other settings as they are and one column, scores are a linear model of setting
and seed. A seed is a block: it fixes the order of the data. The residual variance is pooled over
the settings and over the contexts of one method at one width; not over widths, since scores at
two bits vary more. Where the items are known their variance is added: the effect is then one over
other seeds *and* other items.

Settings are compared with the first by Dunnett, and these sets of comparisons (one a context and
column) among each other by Bonferroni, so that an interval excludes zero exactly where its p is
below 0.05. All tasks are one family; the averages over tasks, which follow from them, are another.
What could not be tested has a reason in place of an interval.

Not here: the linear model (`blocks`), what is read from rows (`levels`), the variance over items
(`variance`), drawing (`reports.plots`), and which methods of a table are told apart (`ranking`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from reports.numbers.blocks import Level, Model, fit
from reports.numbers.columns import Column, make_columns, select_columns
from reports.numbers.levels import Comparison, find_axis, make_comparisons
from reports.numbers.simultaneous import (
    compute_critical_t,
    compute_largest_p,
    compute_visible_difference,
)
from reports.numbers.stats import LEVEL, Interval
from reports.numbers.variance import Combined, combine, compute_item_variance, have_same_items
from reports.numbers.wording import Wording
from reports.reading.export import Export
from reports.reading.items import Floats

NO_SPREAD = "no spread over seeds"
ONE_SEED = "one seed: how much seeds change is not known"
ONE_MODEL = "one model for all seeds, and its items are not known"


class Status(StrEnum):
    """What a comparison says."""

    DISTINGUISHED = "distinguished"
    NOT_DISTINGUISHED = "not distinguished"
    UNTESTED = "untested"


@dataclass(frozen=True)
class Effect:
    """What a setting of an axis changes in one column, against the first setting."""

    axis: str
    label: str  # of the method
    context: str  # settings of the other axes; empty where there are none
    bits: float | None  # None where the two settings differ in it
    baseline: str
    setting: str
    column: Column
    difference: Interval  # setting - baseline, in the rows' units; simultaneous; n pairs of seeds
    visible: float = math.nan  # the smallest true difference found with a probability of 80 %
    over: str = ""  # what varies: "seeds and items", "seeds" or "items"
    untested: str = ""  # why there is no interval
    comparisons: int = 0  # of its family that were tested
    blocked: bool = True  # seeds are blocks
    error: float = math.nan  # standard error of the difference
    df: float = math.nan

    @property
    def p(self) -> float:
        """Two-sided, corrected for the comparisons of its family; NaN where untested."""
        return self.difference.p

    @property
    def status(self) -> Status:
        """Of the interval alone, so that marks, colours and intervals agree."""
        if self.untested:
            return Status.UNTESTED
        told = self.difference.low > 0 or self.difference.high < 0
        return Status.DISTINGUISHED if told else Status.NOT_DISTINGUISHED

    @property
    def better(self) -> bool:
        return (self.difference.mean > 0) == self.column.higher and self.difference.mean != 0


def compute_effects(export: Export) -> tuple[Effect, ...]:
    """The effects of `report.effect`, or of the axis that alone varies over two seeds or more.

    Empty where there is no such axis. Raises ReportError for an axis that the grid has not.
    """
    shown = export.rows[export.rows["primary"]]
    axis = find_axis(export, shown)
    if axis is None:
        return ()
    columns = make_columns(shown, export)
    chosen = [columns[i] for i in select_columns(columns, export.grid.report)]
    wording = Wording(export.grid.report.names)
    comparisons = list(make_comparisons(shown, axis, chosen, export.items, wording))
    return estimate_effects(wording.name_axis(axis), comparisons)


def estimate_effects(axis: str, comparisons: Sequence[Comparison]) -> tuple[Effect, ...]:
    """The effects of all of them, which are corrected together."""
    sets = [_estimate(comparison) for comparison in comparisons]
    variances = _pool(comparisons, sets)
    effects: dict[int, list[Effect]] = {}
    for is_average in (False, True):
        family = [
            place
            for place, comparison in enumerate(comparisons)
            if (comparison.column.task is None) == is_average
        ]
        tested = {
            place: _compare(comparisons[place], sets[place], *variances[place]) for place in family
        }
        effects |= _make_effects(axis, comparisons, tested)
    return tuple(effect for place in sorted(effects) for effect in effects[place])


@dataclass(frozen=True)
class _Fitted:
    """The linear model of one comparison, and the levels in it; None where there are not two."""

    model: Model | None
    levels: tuple[Level, ...]


def _estimate(comparison: Comparison) -> _Fitted:
    levels = [level for level in comparison.levels if level.setting not in comparison.missing]
    reference = comparison.levels[0].setting
    if reference in comparison.missing or len(levels) < 2:
        return _Fitted(None, ())
    return _Fitted(fit(levels), tuple(levels))


def _pool(
    comparisons: Sequence[Comparison], sets: Sequence[_Fitted]
) -> dict[int, tuple[float, int]]:
    """Residual variance and its degrees of freedom: of one method, width and column together."""
    pools: dict[tuple[object, ...], list[Model]] = {}
    keys = []
    for place, (comparison, fitted) in enumerate(zip(comparisons, sets, strict=True)):
        width = place if comparison.bits is None else comparison.bits
        keys.append((comparison.label, comparison.bits is None, width, comparison.column))
        pools.setdefault(keys[-1], []).extend([fitted.model] if fitted.model else [])
    pooled = {}
    for key, models in pools.items():
        df = sum(model.df for model in models)
        pooled[key] = (sum(m.squares for m in models) / df if df else math.nan, df)
    return {place: pooled[key] for place, key in enumerate(keys)}


@dataclass(frozen=True)
class _Tested:
    """The differences of one comparison that could be tested, with what varies together."""

    means: dict[str, float]
    found: dict[str, Combined]
    correlation: Floats  # of `found`, in its order
    reasons: dict[str, str]
    over: str
    blocked: bool = True


def _compare(comparison: Comparison, fitted: _Fitted, variance: float, df: int) -> _Tested:
    """The differences from the reference, and the variance of each over seeds and items."""
    reference = comparison.levels[0].setting
    reasons = {s: why for s, why in comparison.missing.items() if s != reference}
    if fitted.model is None:
        why = f"{reference}: {comparison.missing.get(reference, '')}"
        others = [level.setting for level in comparison.levels[1:]]
        return _Tested({}, {}, np.eye(0), {s: reasons.get(s, why) for s in others}, "")
    model, levels = fitted.model, fitted.levels
    with_items = have_same_items([level.items for level in levels])
    contrasts = np.eye(len(levels))[1:] - np.eye(1, len(levels))
    none = np.zeros((len(levels), len(levels)))
    items = (
        compute_item_variance([level.items for level in levels], paired=model.blocked)
        if with_items
        else None
    )
    by_items, shared = (
        (contrasts @ part @ contrasts.T)
        for part in ((items.total, items.shared) if items else (none, none))
    )
    factor = contrasts @ model.covariance @ contrasts.T
    known = 0.0 if math.isnan(variance) else variance
    found, means, kept = {}, {}, []
    for index, level in enumerate(levels[1:]):
        means[level.setting] = float(model.means[index + 1] - model.means[0])
        fixed = level.fixed and levels[0].fixed
        if not model.estimable[index + 1]:
            reasons[level.setting] = f"no seed in common with {reference}"
        elif not fixed and math.isnan(variance):
            reasons[level.setting] = ONE_SEED
        elif not with_items and (fixed or known == 0):
            reasons[level.setting] = ONE_MODEL if fixed else NO_SPREAD
        else:
            combined = combine(
                items=float(by_items[index, index]),
                item_df=float(items.df[0, index + 1]) if items else math.inf,
                shared=float(shared[index, index]),
                seeds=known * float(factor[index, index]),
                seed_df=df,
            )
            if combined.variance == 0:
                reasons[level.setting] = "no item and no seed differs"
                continue
            found[level.setting] = combined
            kept.append(index)
    covariance = (by_items - shared + known * factor)[np.ix_(kept, kept)]
    over = "seeds and items" if with_items and known else "items" if with_items else "seeds"
    correlation = _correlate(covariance, list(found.values()))
    return _Tested(means, found, correlation, reasons, over, model.blocked)


def _correlate(covariance: Floats, found: Sequence[Combined]) -> Floats:
    """Correlation (K, K); of none where the parts do not make one, which is the safe side."""
    errors = np.array([each.error for each in found])
    correlation = covariance / np.outer(errors, errors) if found else np.eye(0)
    np.fill_diagonal(correlation, 1.0)
    sound = not found or float(np.linalg.eigvalsh(correlation).min()) > -1e-9
    return correlation if sound else np.eye(len(found))


def _make_effects(
    axis: str, comparisons: Sequence[Comparison], tested: Mapping[int, _Tested]
) -> dict[int, list[Effect]]:
    """Of one family: place of a comparison -> its effects."""
    sets = sum(bool(each.found) for each in tested.values())
    total = sum(len(each.found) for each in tested.values())
    effects: dict[int, list[Effect]] = {}
    for place, each in tested.items():
        comparison = comparisons[place]
        reference = comparison.levels[0]
        for level in comparison.levels[1:]:
            pairs = {
                (reference.keys[seed], key)
                for seed, key in level.keys.items()
                if seed in reference.keys
            }
            mean = each.means.get(level.setting, math.nan)
            bare = Effect(
                axis,
                comparison.label,
                comparison.context,
                comparison.bits,
                reference.setting,
                level.setting,
                comparison.column,
                Interval(mean, math.nan, math.nan, n=len(pairs)),
                untested=each.reasons.get(level.setting, ""),
                comparisons=total,
                blocked=each.blocked,
            )
            combined = each.found.get(level.setting)
            effects.setdefault(place, []).append(
                bare if combined is None else _decide(bare, combined, each, sets)
            )
    return effects


def _decide(bare: Effect, combined: Combined, tested: _Tested, sets: int) -> Effect:
    """With interval, p and visible difference, all by one critical value."""
    mean, error = bare.difference.mean, combined.error
    critical = compute_critical_t((1 - LEVEL) / sets, combined.df, tested.correlation)
    p = sets * compute_largest_p(mean / error, combined.df, tested.correlation)
    difference = replace(
        bare.difference, low=mean - critical * error, high=mean + critical * error, p=min(1.0, p)
    )
    return replace(
        bare,
        difference=difference,
        visible=compute_visible_difference(critical, combined.df, error),
        over=tested.over,
        error=error,
        df=combined.df,
    )
