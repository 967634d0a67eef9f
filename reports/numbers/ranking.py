"""What stands out among the numbers of a group: the best, the second, and who ties with the best.

Best and second are decided on the digits shown, within a group of at least two numbers (three for
a second); equal digits share. A number measured otherwise than its column does not compete.

Whoever is not best is tested against the best on the same items, and is *tied* where p, corrected
by Holm for all comparisons of the table, is not below 0.05. Seeds are held fixed: an item's score
is its mean over a method's models. What differs between seeds is for ± and `effects`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.numbers import stats
from reports.numbers.columns import Column, format_number
from reports.numbers.entries import Entry, Notes, Row
from reports.reading.items import Items

ALPHA = 0.05
MCNEMAR = "McNemar's exact test"
BOOTSTRAP = f"paired bootstrap over items ({stats.RESAMPLES:,} resamples)"


@dataclass(frozen=True)
class Ranked:
    rows: tuple[Row, ...]
    comparisons: int  # with a best number, those whose p was corrected together
    tests: tuple[str, ...]  # that were used


def rank(table: Sequence[Row], columns: Sequence[Column], decimals: int, notes: Notes) -> Ranked:
    """The same rows, with best, second, p and tied filled in."""
    entries = {(r, c): entry for r, row in enumerate(table) for c, entry in enumerate(row.entries)}
    tested: dict[tuple[int, int], tuple[float, str]] = {}
    for index, column in enumerate(columns):
        for bits in dict.fromkeys(row.bits for row in table):
            group = {
                (r, index): entry
                for r, row in enumerate(table)
                if row.bits == bits and (entry := row.entries[index]) and _competes(entry, notes)
            }
            entries |= (group := dict(_placed(group, column, decimals)))
            tested |= dict(_tested(group, column))
    corrected = stats.holm([p for p, _ in tested.values()])
    for place, p in zip(tested, corrected, strict=True):
        entry = entries[place]
        assert entry is not None
        entries[place] = replace(entry, p=p, tied=p >= ALPHA)
    return Ranked(
        rows=tuple(
            replace(row, entries=tuple(entries[r, c] for c in range(len(columns))))
            for r, row in enumerate(table)
        ),
        comparisons=len(tested),
        tests=tuple(t for t in (MCNEMAR, BOOTSTRAP) if t in {test for _, test in tested.values()}),
    )


_Group = dict[tuple[int, int], Entry]


def _placed(
    group: _Group, column: Column, decimals: int
) -> Iterator[tuple[tuple[int, int], Entry]]:
    shown = {
        place: float(format_number(entry.mean, column, decimals)) for place, entry in group.items()
    }
    order = sorted(set(shown.values()), reverse=column.higher)
    alone = list(shown.values()).count(order[0]) == 1 if order else False
    for place, entry in group.items():
        best = len(group) > 1 and shown[place] == order[0]
        second = len(group) > 2 and alone and shown[place] == order[1]
        yield place, replace(entry, best=best, second=second)


def _tested(group: _Group, column: Column) -> Iterator[tuple[tuple[int, int], tuple[float, str]]]:
    """(p, test) of every number that is not best and has the best one's items."""
    best = [entry for entry in group.values() if entry.best]
    if not best:
        return
    winner = (max if column.higher else min)(best, key=lambda entry: entry.mean)
    for place, entry in group.items():
        same = len(entry.items) == len(winner.items) > 0
        if not entry.best and same and all(map(Items.alike, entry.items, winner.items)):
            yield place, _test(entry.items, winner.items)


def _test(ours: Sequence[Items], theirs: Sequence[Items]) -> tuple[float, str]:
    if len(ours) == 1 and all(np.isin(i.scores, (0, 1)).all() for i in (*ours, *theirs)):
        return stats.mcnemar(ours[0].scores, theirs[0].scores), MCNEMAR
    differences = [
        replace(mine, scores=mine.scores - other.scores)
        for mine, other in zip(ours, theirs, strict=True)
    ]
    return stats.bootstrap(differences).p, BOOTSTRAP


def _competes(entry: Entry, notes: Notes) -> bool:
    return math.isfinite(entry.mean) and not notes.unlike.intersection(entry.marks)
