"""`match:` of a grid: every method that trains gets the same budget, by its optimizer steps.

    match: tokens             # those of the grid's own method; or flops
    match: {tokens: 1e6}      # so many, of the grid's own method too

Counted are the tokens that a model is trained on and those that a model writes to train on, or the
FLOPs of both and of the teacher (`harness.models.passes`): each method pays for all that it needs,
also where cells share it. Calibration text is not counted, and a row says how much it has. Steps
are a setting like others, so that cells of the same steps share their stages, matched or not. Not
here: saying so in a report (`reports.numbers.budgets`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from harness.config.document import Document
from harness.config.settings import configure
from harness.core.errors import GridError, ModelError, SettingError
from harness.core.records import Match
from harness.core.stage import Stage, closure
from harness.data import Documents, Packed, count_asked
from harness.grid.points import Point
from harness.grid.schema import GridFile
from harness.method import list_budget_settings
from harness.models import Model, Pass, list_passes
from harness.models.passes import count_flops, count_tokens

Make: TypeAlias = Callable[[Point], Stage[Model]]
Unit: TypeAlias = Literal["tokens", "flops"]
_HOURS = "hours are of a machine, and known once everything has run: no settings follow from them"


def match_budgets(
    document: Document, file: GridFile, points: Sequence[Point], make: Make
) -> list[Point]:
    """The points, where the grid says `match` with the steps that follow from it.

    The budget is what the grid's own method needs at the first value of each axis, and at its own
    value of an axis that says how long it trains. `make`: the model of a point. Raises GridError.
    """
    if file.match is None:
        return list(points)
    unit, amount = _read_budget(document, file.match)
    own = next(point for point in points if point.contender.main)
    lengths = list_budget_settings(own.method)
    _check_settings(document, file, points, amount)
    if amount is None and not lengths:
        message = f"match: {own.contender.label} is not trained: 'match: {{{unit}: …}}' says a sum"
        raise document.error(("match",), message)
    matcher = _Matcher(document, unit, make)
    budgets: dict[str, float] = {}
    for point in points if amount is None else ():
        place = _find_place(point, lengths)
        if point.contender.main and place not in budgets:
            budgets[place] = matcher.count(point)
    first = amount or budgets[_find_place(own, lengths)]
    return [matcher.match(p, budgets.get(_find_place(p, lengths), first)) for p in points]


def _find_place(point: Point, lengths: Sequence[str]) -> str:
    """What points have in common that have one budget: the model, and how long they train."""
    return json.dumps([point.source, {p: point.axes[p] for p in lengths if p in point.axes}])


def _read_budget(document: Document, match: Any) -> tuple[Unit, float | None]:
    unit, amount = next(iter(match.items())) if isinstance(match, dict) else (match, None)
    if unit == "hours":
        raise document.error(("match",), f"match: {_HOURS}; match: flops")
    return unit, amount


def _check_settings(
    document: Document, file: GridFile, points: Sequence[Point], amount: float | None
) -> None:
    """Raise GridError where steps are said elsewhere too, or where no method has any."""
    known = {path for point in points for path in list_budget_settings(point.method)}
    if not known:
        raise document.error(("match",), "match: no method here trains; leave it out")
    for section in ("tune", "vary"):
        axes = (file.tune.axes if file.tune else {}) if section == "tune" else file.vary
        for path in axes:
            if path in known and (section == "tune" or amount is not None):
                message = f"match: sets how long methods train, and {path!r} is an axis already"
                raise document.error((section, path), f"{message}: leave one out")
    for contender in {id(p.contender): p.contender for p in points}.values():
        said = sorted(contender.said & known)
        if said and (amount is not None or not contender.main):
            message = f"match: sets how long {contender.label} trains, and {said[0]!r} says it too"
            raise document.error(contender.where, f"{message}: leave one out")


class _Matcher:
    """The steps of each method that fill a budget, each found once for all seeds."""

    def __init__(self, document: Document, unit: Unit, make: Make) -> None:
        self.document, self.unit, self.make = document, unit, make
        self._known: dict[Any, Point] = {}

    def match(self, point: Point, budget: float) -> Point:
        where = point.source, point.method, budget
        if where not in self._known:
            self._known[where] = self._fill(point, budget)
        found = self._known[where]
        return replace(point, method=found.method, match=found.match)

    def count(self, point: Point) -> float:
        """What a point needs of the unit with the settings that it has."""
        return self._count(point, self._list_passes(point))

    def _fill(self, point: Point, budget: float) -> Point:
        lengths = list_budget_settings(point.method)
        calibration = _count_calibration(self.make(point))
        unmatched = Match(unit=self.unit, budget=budget, calibration=calibration)
        if not lengths:
            fitted = f"fitted to {calibration:,} tokens of calibration text"
            why = fitted if calibration else "nothing is trained"
            return replace(point, match=replace(unmatched, why=why))
        one, two = (self.count(_set(point, lengths[0], steps)) for steps in (1, 2))
        if two <= one:
            why = "how many tokens it trains on is not known before they are made"
            return replace(point, match=replace(unmatched, why=why))
        before, each = 2 * one - two, two - one
        if (steps := round((budget - before) / each)) < 1:
            least = f"{before + each:,.0f} {self.unit}"
            first = f", {before:,.0f} of them for what it trains on," if before else ""
            raise self._refuse(
                point,
                f"it needs {least}{first} for one step, and the budget is {budget:,.0f}; "
                f"a larger one{', or a smaller data.sequences' if before else ''}",
            )
        try:
            filled = _set(point, lengths[0], steps)
        except SettingError as error:
            raise self._refuse(point, str(error)) from None
        passes = self._list_passes(filled)
        match = replace(
            unmatched,
            spent=self._count(point, passes),
            steps=steps,
            trained=sum(each.tokens for each in passes if each.use == "trained"),
            written=sum(each.tokens for each in passes if each.use == "written"),
        )
        return replace(filled, match=match)

    def _list_passes(self, point: Point) -> list[Pass]:
        return [each for stage in closure([self.make(point)]) for each in list_passes(stage)]

    def _count(self, point: Point, passes: Sequence[Pass]) -> float:
        try:
            return count_tokens(passes) if self.unit == "tokens" else count_flops(passes)
        except ModelError as error:
            raise self._refuse(point, f"{error}; match: tokens") from None

    def _refuse(self, point: Point, why: str) -> GridError:
        return self.document.error(("match",), f"match: {point.contender.label}: {why}")


def _set(point: Point, path: str, steps: int) -> Point:
    return replace(point, method=configure(point.method, {path: steps}))


def _count_calibration(model: Stage[Model]) -> int:
    """Tokens of calibration text that inits and roundings of a model read, as asked for."""
    total = 0
    for stage in closure([model]):
        if isinstance(stage, Packed) and isinstance(stage.documents, Documents):
            count, length = count_asked(stage) or (0, 0)
            total += count * length if stage.documents.split == "calibration" else 0
    return total
