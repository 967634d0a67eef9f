"""What stands out among the numbers of a group: the best ones, and the ranks that each may have.

A group is the rows of one width in one column. Each two of its numbers with the same items are
tested for equal expected scores, and the p-values corrected by Holm: of all tasks of the table
together, and of the averages, which follow from them, together. From the tests follow

- a number's ranks: after all that are better, before all that are worse, so that all ranks of the
  table hold together with 95 %;
- the best: all numbers that may have rank 1, hence a set that has the truly best one in it with
  95 %, whichever was measured best. Where all may have it none is marked.

Seeds and items both vary (`variance`): a method's variance over seeds is its own, drawn towards
those of its group (`moderation`). Where no method has several seeds, they are held fixed, and
`Ranked` says so. Perplexities are compared by their logarithms, the mean losses.

Where nothing of a group could be tested, best and second are decided on the digits shown, within at
least two numbers (three for a second); equal digits share. A number measured otherwise than its
column does not compete.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import special

from reports.numbers import stats
from reports.numbers.columns import Column, format_number
from reports.numbers.entries import Entry, Notes, Row
from reports.numbers.moderation import moderate
from reports.numbers.variance import (
    Models,
    average_groups,
    combine,
    combine_seeds,
    compute_item_variance,
    have_same_items,
)
from reports.reading.items import Items

ALPHA = 0.05
MOST = 100  # numbers of a group that are tested against each other: with 4,950 tests a column
_PAIRS_AT_ONCE = 2000
MCNEMAR = "McNemar's exact test over items"
SIGN_FLIP = "a sign-flip test over items"
SEEDS = "a t-test over seeds and items"

_Place = tuple[int, int]  # row, column
_Group = dict[_Place, Entry]


@dataclass(frozen=True)
class Ranked:
    rows: tuple[Row, ...]
    comparisons: int  # of two numbers
    tests: tuple[str, ...]  # that were used
    seeds_fixed: bool  # whether some methods were compared as the one model that each has


@dataclass(frozen=True)
class _Test:
    """Of two numbers of a group."""

    better: _Place
    worse: _Place
    p: float
    name: str
    seeds_fixed: bool


def rank(table: Sequence[Row], columns: Sequence[Column], decimals: int, notes: Notes) -> Ranked:
    """The same rows, with best, second, rank, p and untested filled in."""
    entries = {(r, c): entry for r, row in enumerate(table) for c, entry in enumerate(row.entries)}
    groups: list[tuple[Column, _Group, list[_Test]]] = []
    for index, column in enumerate(columns):
        for each in dict.fromkeys(row.group for row in table):
            group = {
                (r, index): entry
                for r, row in enumerate(table)
                if row.group == each and (entry := row.entries[index])
            }
            rivals = {place: e for place, e in group.items() if _competes(e, notes)}
            for place in group.keys() - rivals.keys():
                entries[place] = replace(group[place], untested="measured otherwise")
            groups.append((column, rivals, list(_test_pairs(rivals, column))))
    corrected = _correct(groups)
    for column, group, tests in groups:
        known = {test: corrected[test] for test in tests}
        if tests:
            entries |= _place_by_tests(group, known)
        else:
            entries |= dict(_place_by_digits(group, column, decimals))
    names = {test.name for test in corrected}
    return Ranked(
        rows=tuple(
            replace(row, entries=tuple(entries[r, c] for c in range(len(columns))))
            for r, row in enumerate(table)
        ),
        comparisons=len(corrected),
        tests=tuple(name for name in (MCNEMAR, SIGN_FLIP, SEEDS) if name in names),
        seeds_fixed=any(test.seeds_fixed for test in corrected),
    )


def _correct(groups: Sequence[tuple[Column, _Group, list[_Test]]]) -> dict[_Test, float]:
    """Test -> its p by Holm, among tasks or among averages."""
    corrected: dict[_Test, float] = {}
    for is_average in (False, True):
        tests = [t for c, _, own in groups if (c.task is None) == is_average for t in own]
        corrected |= dict(zip(tests, stats.holm([test.p for test in tests]), strict=True))
    return corrected


def _place_by_tests(group: _Group, corrected: Mapping[_Test, float]) -> _Group:
    told = [test for test, p in corrected.items() if p < ALPHA]
    compared = {place for test in corrected for place in (test.better, test.worse)}
    lost, won = Counter(test.worse for test in told), Counter(test.better for test in told)
    ranks = {place: (1 + lost[place], len(group) - won[place]) for place in compared}
    selective = any(low > 1 for low, _ in ranks.values())
    smallest: dict[_Place, float] = {}
    for test, p in corrected.items():
        smallest[test.worse] = min(p, smallest.get(test.worse, p))
    placed = {}
    for place, entry in group.items():
        placed[place] = replace(
            entry,
            rank=ranks.get(place),
            best=selective and ranks.get(place, (0, 0))[0] == 1,
            p=smallest.get(place),
            untested="" if place in compared else _explain(entry),
        )
    return placed


def _place_by_digits(
    group: _Group, column: Column, decimals: int
) -> Iterator[tuple[_Place, Entry]]:
    shown = {
        place: float(format_number(entry.mean, column, decimals)) for place, entry in group.items()
    }
    order = sorted(set(shown.values()), reverse=column.higher)
    alone = list(shown.values()).count(order[0]) == 1 if order else False
    for place, entry in group.items():
        best = len(group) > 1 and shown[place] == order[0]
        second = len(group) > 2 and alone and shown[place] == order[1]
        why = _explain(entry) if len(group) > 1 else "alone in its group"
        if len(group) > MOST:
            why = f"more than {MOST} in its group"
        yield place, replace(entry, best=best, second=second, untested=why)


def _explain(entry: Entry) -> str:
    return "no other has its items" if entry.items else "its items are not known"


def _test_pairs(group: _Group, column: Column) -> Iterator[_Test]:
    """Each two numbers that have the same items; none where they are too many."""
    if len(group) > MOST:
        return
    means = {place: _compute_means(entry.items) for place, entry in group.items()}
    seeds = _find_seeds(group, means)
    for places in _split_by_items(group):
        pairs = np.array(list(combinations(range(len(places)), 2)))
        if not len(pairs):
            continue
        entries = [group[place] for place in places]
        scores = np.array([means[place].mean() for place in places])
        over_seeds = np.array([seeds[place] for place in places])
        for (left, right), (p, name) in zip(pairs, _test(entries, pairs, over_seeds), strict=True):
            is_first_better = (scores[left] - scores[right] > 0) == column.higher
            better, worse = (left, right) if is_first_better else (right, left)
            drawn = not (entries[left].fixed and entries[right].fixed)
            one_seed = drawn and not over_seeds[[left, right], 1].any()
            yield _Test(places[better], places[worse], p, name, one_seed)


def _find_seeds(
    group: Mapping[_Place, Entry], means: Mapping[_Place, np.ndarray]
) -> dict[_Place, tuple[float, float]]:
    """Of each mean with known items its variance over seeds, and that variance's df; 0 and 0 where
    there is one model whatever the seed."""
    drawn = [place for place, entry in group.items() if entry.items and not entry.fixed]
    own = np.array([float(means[p].var(ddof=1)) if len(means[p]) > 1 else 0.0 for p in drawn])
    df = np.array([len(means[place]) - 1.0 for place in drawn])
    found = zip(drawn, *moderate(own, df), strict=True)
    seeds = {place: (variance / len(means[place]), df) for place, variance, df in found}
    return {place: seeds.get(place, (0.0, 0.0)) for place in group}


def _split_by_items(group: _Group) -> list[list[_Place]]:
    """The numbers whose items are known, those with the same ones together."""
    parts: list[list[_Place]] = []
    for place, entry in group.items():
        if entry.items:
            for part in parts:
                if have_same_items([group[part[0]].items, entry.items]):
                    part.append(place)
                    break
            else:
                parts.append([place])
    return parts


def _test(
    entries: Sequence[Entry], pairs: np.ndarray, seeds: np.ndarray
) -> list[tuple[float, str]]:
    """p of equal expected scores of each of `pairs` (P, 2), and the name of the test.

    The entries (L,) have the same items. seeds: (L, 2) the variance of each over seeds, and its
    degrees of freedom; with it never below the p over items alone.
    """
    averages = average_groups([entry.items for entry in entries])
    scores = [np.array([each[b].scores for each in averages]) for b in range(len(averages[0]))]
    weighed = np.concatenate(
        [b.weight / len(b.scores) * s for b, s in zip(averages[0], scores, strict=True)], axis=1
    )
    binary = [len(each) == 1 and bool(np.isin(each[0].scores, (0, 1)).all()) for each in averages]
    items = compute_item_variance([entry.items for entry in entries], paired=False)
    tests = []
    for first in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = pairs[first : first + _PAIRS_AT_ONCE]
        differences = weighed[part[:, 0]] - weighed[part[:, 1]]
        over_items = stats.sign_flips(differences)
        for (i, j), p, difference in zip(part, over_items, differences.sum(1), strict=True):
            of_seeds = combine_seeds(*seeds[i], *seeds[j])
            if of_seeds.variance == 0:
                tests.append((float(p), MCNEMAR if binary[i] and binary[j] else SIGN_FLIP))
                continue
            combined = combine(
                items=float(items.total[i, i] + items.total[j, j] - 2 * items.total[i, j]),
                item_df=float(items.df[i, j]),
                shared=float(items.shared[i, i] + items.shared[j, j]),
                seeds=of_seeds.variance,
                seed_df=of_seeds.df,
            )
            over_both = 2 * float(special.stdtr(combined.df, -abs(difference) / combined.error))
            tests.append((max(float(p), over_both), SEEDS))
    return tests


def _compute_means(models: Models) -> np.ndarray:
    """The score of each model (S,), of perplexities the mean loss."""
    return np.array([_compute_mean(items) for items in models.values()])


def _compute_mean(items: Sequence[Items]) -> float:
    return math.fsum(each.weight * float(each.scores.mean()) for each in items)


def _competes(entry: Entry, notes: Notes) -> bool:
    return math.isfinite(entry.mean) and not notes.unlike.intersection(entry.marks)
