"""How much a mean over seeds and items would vary with other seeds and other items.

Scores of one item by models of several seeds are a table: seeds × items, crossed. The variance of
its mean is that of seeds, of items, and of the two together; each is an analysis of variance's, so
no resample is drawn, no p has a floor, and three seeds are worth the degrees of freedom that they
have. (Resampling both ways overstates the last part, and with three seeds the first is badly
understated: Owen, 2007.)

Not here: which differences are taken (`effects`, `ranking`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reports.reading.items import Floats, Items

Models = Mapping[int, tuple[Items, ...]]
"""Seed (or any number of a model) -> the items of its score, by task, in one order."""


@dataclass(frozen=True)
class ItemVariance:
    """Covariance (L, L) of the means of L groups of models that share their items."""

    total: Floats  # over items: seeds and items together are in it
    shared: Floats  # that part, which the variance over seeds has, too
    df: Floats  # (L, L) of `total` of the difference of two


def have_same_items(groups: Sequence[Models]) -> bool:
    """Whether all models of all groups have items, and the same ones."""
    models = [items for group in groups for items in group.values()]
    first = models[0] if models else ()
    return bool(first) and all(
        len(items) == len(first) and all(map(Items.alike, items, first)) for items in models
    )


def average_models(models: Models) -> tuple[Items, ...]:
    """Each item's mean over models, which have the same items; none of no models."""
    return average_groups([models])[0]


def average_groups(groups: Sequence[Models]) -> list[tuple[Items, ...]]:
    """`average_models` of each of many, tasks of as many models and items computed together."""
    tasks = [list(zip(*models.values(), strict=True)) for models in groups]
    alike: dict[tuple[int, int], list[tuple[Items, ...]]] = {}
    for same in (same for group in tasks for same in group):
        alike.setdefault((len(same), len(same[0].scores)), []).append(same)
    means = {
        shape: iter(np.array([[i.scores for i in same] for same in known]).mean(axis=1))
        for shape, known in alike.items()
    }
    return [
        tuple(
            replace(same[0], scores=next(means[len(same), len(same[0].scores)])) for same in group
        )
        for group in tasks
    ]


def compute_item_variance(groups: Sequence[Models], paired: bool) -> ItemVariance:
    """Of groups (L,) with `have_same_items`.

    `paired`: an equal seed is the same order of data, so that what a seed does to an item may be
    alike in two groups.
    """
    size = len(groups)
    total, shared = np.zeros((size, size)), np.zeros((size, size))
    squares = np.zeros((size, size))  # Σ variance² / df, by Satterthwaite
    blocks = len(next(iter(groups[0].values())))
    for index in range(blocks):
        weight = next(iter(groups[0].values()))[index].weight
        scores = [{seed: items[index].scores for seed, items in group.items()} for group in groups]
        means = np.array([np.mean(list(each.values()), axis=0) for each in scores])
        count = means.shape[1]
        # One item says nothing of its variance; its square is an upper bound.
        centred = means - means.mean(axis=1, keepdims=True) if count > 1 else means
        part = weight**2 * (centred @ centred.T) / (count * max(count - 1, 1))
        total += part
        variances = np.diag(part)[:, None] + np.diag(part)[None, :] - 2 * part
        squares += variances**2 / max(count - 1, 1)
        shared += weight**2 * _compute_interaction(scores, paired)
    variances = np.diag(total)[:, None] + np.diag(total)[None, :] - 2 * total
    with np.errstate(divide="ignore", invalid="ignore"):
        df = np.where(squares > 0, variances**2 / squares, math.inf)
    return ItemVariance(total, shared, df)


def _compute_interaction(scores: Sequence[Mapping[int, Floats]], paired: bool) -> Floats:
    """Seeds with items: what is left of each group's table without its margins, as covariance."""
    size = len(scores)
    found = np.zeros((size, size))
    rest = []
    for each in scores:
        table = np.array(list(each.values()))
        table = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        rest.append(dict(zip(each, table, strict=True)))
    for i in range(size):
        for j in range(size if paired else i + 1):
            seeds = [seed for seed in rest[i] if seed in rest[j]] if paired or i == j else []
            if len(seeds) < 2 or (not paired and i != j):
                continue
            left, right = (np.array([rest[g][seed] for seed in seeds]) for g in (i, j))
            count = left.shape[1]
            square = float((left * right).sum()) / ((len(seeds) - 1) * max(count - 1, 1))
            found[i, j] = square * len(seeds) / (len(rest[i]) * len(rest[j]) * count)
    return found


@dataclass(frozen=True)
class Combined:
    """The variance of a difference, and its degrees of freedom."""

    variance: float
    df: float

    @property
    def error(self) -> float:
        return math.sqrt(self.variance)


def combine_seeds(first: float, first_df: float, second: float, second_df: float) -> Combined:
    """Of the difference of two means over their own seeds: variances and their degrees of freedom,
    which weigh as `combine` says; a mean that no seed varies has variance 0."""
    total = first + second
    parts = ((first, first_df), (second, second_df))
    spent = sum(variance / df for variance, df in parts if variance > 0)
    return Combined(total, total / spent if spent else 0.0)


def combine(items: float, item_df: float, shared: float, seeds: float, seed_df: float) -> Combined:
    """Of a difference: V(items) - V(shared) + V(seeds); never below V(items).

    `items` includes `shared`, as `seeds` does. What is not known is 0 with no degree of freedom.
    Degrees of freedom weigh by the parts' shares of the variance, where Satterthwaite has squares
    of shares: with the two degrees of three seeds those are too many (8 % of errors for 5).
    """
    rest = max(items - shared, 0.0)
    if rest + seeds <= items or seeds == 0:
        return Combined(items, item_df)
    total = rest + seeds
    return Combined(total, total / (rest / item_df + seeds / seed_df))
