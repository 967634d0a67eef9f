"""What `coverage` draws, and what must hold of it.

Right or wrong: a method is right on an item where ability + item + method with item + seed + seed
with item, all normal, is above zero. Its expected score over items and seeds is then known, and
items, seeds and both together vary as they do in reality.

Not here: how often it holds (`coverage`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from reports.numbers import stats
from reports.numbers.blocks import Level
from reports.numbers.columns import Column
from reports.numbers.effects import Effect, Status, estimate_effects
from reports.numbers.entries import Entry, Notes, Row
from reports.numbers.levels import Comparison
from reports.numbers.ranking import Ranked, rank
from reports.reading.items import Items

Run = Callable[[np.random.Generator], bool]
Floats = np.ndarray


@dataclass(frozen=True)
class Case:
    """One line of the table; `run` says of one draw whether what is counted is so."""

    # coverage: the interval holds the truth; level: a false statement; power: it is found;
    # beyond: a false statement where what the test takes for granted is not so
    what: str
    name: str
    run: Run
    stated: str = "95"


@dataclass(frozen=True)
class World:
    """Standard deviations, in units of that of items' difficulty."""

    seeds: float = 0.0
    seeds_items: float = 0.5
    methods_items: float = 0.5

    def draw(
        self,
        generator: np.random.Generator,
        abilities: Floats,
        models: int,
        items: int,
        fixed: Sequence[bool] = (),
    ) -> Floats:
        """Right or wrong (methods, models, items); what a fixed method has no seeds for, it has
        in its items, so that expected scores stay equal.
        """
        shape = (len(abilities), models, items)
        by_seed = 1.0 - np.array(fixed or [False] * shape[0], float)[:, None, None]
        own = np.sqrt(self.methods_items**2 + (1 - by_seed) * (self.seeds**2 + self.seeds_items**2))
        latent = (
            abilities[:, None, None]
            + generator.normal(0, 1, items)
            + own * generator.normal(0, 1, (shape[0], 1, items))
            + by_seed * self.seeds * generator.normal(0, 1, (*shape[:2], 1))
            + by_seed * self.seeds_items * generator.normal(0, 1, shape)
        )
        return (latent > 0).astype(float)

    def expect(self, abilities: Floats) -> Floats:
        """Scores (methods,) that are expected over items and seeds."""
        spread = 1 + self.seeds**2 + self.seeds_items**2 + self.methods_items**2
        return np.asarray(norm.cdf(abilities / math.sqrt(spread)))


def _block(scores: Floats, weight: float = 1.0, task: str = "task") -> Items:
    return Items(task, np.arange(len(scores)), scores.astype(float), weight)


# Intervals of one number


def share(items: int, low: float = 0.2, high: float = 0.95) -> Run:
    """Right or wrong, at a rate that is itself drawn, since one rate has a coverage of its own."""

    def run(generator: np.random.Generator) -> bool:
        rate = generator.uniform(low, high)
        found = stats.task_interval((generator.random(items) < rate).astype(float))
        return found.low <= rate <= found.high

    return run


def windows(items: int) -> Run:
    """Mean losses of windows: skewed, as documents of different difficulty are."""

    def run(generator: np.random.Generator) -> bool:
        found = stats.task_interval(generator.gamma(16, 2 / 16, items))
        return found.low <= 2.0 <= found.high

    return run


def seeds(count: int) -> Run:
    """Scores over seeds."""

    def run(generator: np.random.Generator) -> bool:
        found = stats.t_interval(generator.normal(0.6, 0.02, count))
        return found.low <= 0.6 <= found.high

    return run


def average(items: int, tasks: int, low: float = 0.25, high: float = 0.9) -> Run:
    """The average over tasks, or over a task's subjects, of right or wrong."""

    def run(generator: np.random.Generator) -> bool:
        rates = generator.uniform(low, high, tasks)
        blocks = [_block(generator.random(items) < rate, 1 / tasks) for rate in rates]
        found = stats.average_interval(blocks)
        return bool(found.low <= rates.mean() <= found.high)

    return run


# Effects of an axis


def _compare(scores: Sequence[Floats], with_items: bool = True) -> list[Comparison]:
    """One comparison a task: scores (settings, seeds, items) of each."""
    comparisons = []
    for number, table in enumerate(scores):
        levels = tuple(
            Level(
                setting=str(setting),
                values={s: float(model.mean()) for s, model in enumerate(models)},
                keys={s: f"{setting}-{s}" for s in range(len(models))},
                items={s: (_block(m),) for s, m in enumerate(models)} if with_items else {},
            )
            for setting, models in enumerate(table)
        )
        column = Column(f"task{number}", "acc", f"task{number}", True)
        comparisons.append(Comparison("method", "", 2.0, column, levels, {}))
    return comparisons


def _hold(effects: Sequence[Effect], truth: Floats) -> bool:
    """Whether the intervals of all hold their truths (effects,)."""
    return all(
        effect.difference.low <= true <= effect.difference.high
        for effect, true in zip(effects, truth, strict=True)
    )


def effects_of_seeds(
    settings: int,
    count: int,
    tasks: int,
    missing: bool = False,
    spread: float = 0.03,
    times: Sequence[float] = (),
) -> Run:
    """Scores whose items are not known: setting + seed + what is left, all normal; what is left
    varies so many `times` as much in each setting."""

    def run(generator: np.random.Generator) -> bool:
        truth = spread * generator.normal(0, 1, (tasks, settings, 1))
        block = generator.normal(0, 0.05, (tasks, 1, count))
        own = 0.02 * np.array(times or [1.0] * settings)[:, None]
        scores = truth + block + generator.normal(0, 1, (tasks, settings, count)) * own
        comparisons = _compare(scores[..., None], with_items=False)
        if missing:  # one seed of the reference, another of a setting
            for comparison in comparisons:
                del comparison.levels[0].values[0], comparison.levels[1].values[count - 1]
        effects = estimate_effects("axis", comparisons)
        return _hold(effects, (truth[:, 1:, 0] - truth[:, :1, 0]).ravel())

    return run


def effects_of_items(
    settings: int, count: int, items: int, world: World, tasks: int = 1, spread: float = 0.3
) -> Run:
    """Right or wrong, of new items and new seeds."""

    def run(generator: np.random.Generator) -> bool:
        abilities = (
            0.7 + generator.normal(0, spread, settings) if spread else np.full(settings, 0.7)
        )
        scores = [world.draw(generator, abilities, count, items) for _ in range(tasks)]
        effects = estimate_effects("axis", _compare(scores))
        truth = world.expect(abilities)
        return _hold(effects, np.tile(truth[1:] - truth[0], tasks))

    return run


def _err(holds: Run) -> Run:
    """Where nothing differs an interval that leaves out the truth is a false finding."""
    return lambda generator: not holds(generator)


def visible(settings: int, count: int) -> Run:
    """A true difference of what is said to be visible at the true standard error is found."""

    def run(generator: np.random.Generator) -> bool:
        spread = 0.02
        scores = generator.normal(0, spread, (settings, count))
        scores[1] += _visible_difference(settings, count, spread)
        effect, *_ = estimate_effects("axis", _compare([scores[..., None]], with_items=False))
        return effect.status is Status.DISTINGUISHED

    return run


def _visible_difference(settings: int, count: int, spread: float) -> float:
    """As an effect says it, at the true spread in place of the one that is estimated."""
    from reports.numbers.simultaneous import compute_critical_t, compute_visible_difference

    df = (settings - 1) * (count - 1)
    correlation = (np.eye(settings - 1) + 1) / 2
    critical = compute_critical_t(0.05, df, correlation)
    return compute_visible_difference(critical, df, spread * math.sqrt(2 / count))


# Tables


def _rank(scores: Floats, fixed: Sequence[bool] = ()) -> Ranked:
    """Of scores (tasks, methods, models, items); `fixed`: methods of one model."""
    columns = [Column(f"task{t}", "acc", f"task{t}", True) for t in range(len(scores))]
    rows = []
    for method in range(scores.shape[1]):
        one = bool(fixed) and fixed[method]
        entries = []
        for models in scores[:, method]:
            kept = models[:1] if one else models
            items = {s: (_block(model),) for s, model in enumerate(kept)}
            entries.append(Entry(float(kept.mean()), n=len(kept), fixed=one, items=items))
        rows.append(Row(str(method), str(method), 2.0, None, scores.shape[2], tuple(entries)))
    return rank(rows, columns, 1, Notes())


def _pair_is_told(ranked: Ranked) -> bool:
    return any(
        entry.rank != (1, len(ranked.rows)) for r in ranked.rows for entry in r.entries if entry
    )


def told(
    methods: int,
    models: int,
    items: int,
    world: World,
    tasks: int = 1,
    fixed: Sequence[bool] = (),
) -> Run:
    """Methods of equal expected scores, of which any two are told apart: an error."""

    def run(generator: np.random.Generator) -> bool:
        abilities = np.full(methods, generator.uniform(-0.5, 1.5))
        scores = [world.draw(generator, abilities, models, items, fixed) for _ in range(tasks)]
        return _pair_is_told(_rank(np.array(scores), fixed))

    return run


def told_of_unequal(spreads: Sequence[float], models: int, items: int = 60) -> Run:
    """Methods of equal expected losses whose seeds spread as given, of which two are told apart."""

    def run(generator: np.random.Generator) -> bool:
        shape = (len(spreads), models, items)
        by_seed = np.array(spreads)[:, None, None] * generator.normal(0, 1, (*shape[:2], 1))
        losses = generator.normal(2, 0.5, items) + by_seed + generator.normal(0, 0.05, shape)
        return _pair_is_told(_rank(losses[None]))

    return run


def ranks(methods: int, models: int, items: int, world: World, best_alone: bool = False) -> Run:
    """All true ranks lie in their intervals; or the truly best is among those marked best."""

    def run(generator: np.random.Generator) -> bool:
        abilities = generator.normal(0.7, 0.25, methods)
        scores = world.draw(generator, abilities, models, items)[None]
        ranked = _rank(scores)
        true = 1 + np.argsort(np.argsort(-abilities))
        found = [row.entries[0] for row in ranked.rows]
        held = [e is not None and e.rank is not None and e.rank[0] <= t <= e.rank[1]
                for e, t in zip(found, true, strict=True)]  # fmt: skip
        return held[int(np.argmax(abilities))] if best_alone else all(held)

    return run


CALM, SEEDED, WILD = World(), World(seeds=0.1), World(seeds=0.4)

CASES: tuple[Case, ...] = (
    Case("coverage", "task, 100 items right or wrong (Wilson)", share(100)),
    Case("coverage", "task, 1000 items right or wrong (Wilson)", share(1000)),
    Case("coverage", "task, 100 items, nearly all right (Wilson)", share(100, 0.95, 0.999)),
    Case("coverage", "perplexity, 60 windows (t)", windows(60)),
    Case("coverage", "3 seeds (t)", seeds(3)),
    Case("coverage", "5 seeds (t)", seeds(5)),
    Case("coverage", "average, 5 tasks of 100 items", average(100, 5)),
    Case("coverage", "average, 5 tasks nearly all right", average(100, 5, 0.93, 0.999)),
    Case("coverage", "average, 57 subjects of 2 items (bootstrap)", average(2, 57)),
    Case("coverage", "effects, 3 seeds, 4 settings", effects_of_seeds(4, 3, 1)),
    Case(
        "coverage", "effects, 3 seeds, 4 settings, missing scores", effects_of_seeds(4, 3, 1, True)
    ),
    Case("coverage", "effects, 3 seeds, 3 settings × 8 tasks", effects_of_seeds(3, 3, 8)),
    Case("coverage", "effects, 3 seeds, 100 items, calm", effects_of_items(3, 3, 100, CALM)),
    Case("coverage", "effects, 3 seeds, 100 items, varied", effects_of_items(3, 3, 100, SEEDED)),
    Case("coverage", "effects, 3 seeds, 100 items, wild", effects_of_items(3, 3, 100, WILD)),
    Case("coverage", "effects, two settings, wild", effects_of_items(2, 3, 100, WILD)),
    Case("coverage", "ranks, 5 methods, 100 items", ranks(5, 1, 100, CALM), "≥ 95"),
    Case("coverage", "ranks, 5 methods, 3 seeds", ranks(5, 3, 100, SEEDED), "≥ 95"),
    Case("coverage", "ranks, the best is marked", ranks(5, 3, 100, SEEDED, True), "≥ 95"),
    Case(
        "level",
        "effects, 3 seeds, 100 items, equal",
        _err(effects_of_items(3, 3, 100, SEEDED, 1, 0.0)),
        "≤ 5",
    ),
    Case(
        "level",
        "effects, 3 seeds, 3 settings × 8 tasks, equal",
        _err(effects_of_seeds(3, 3, 8, spread=0.0)),
        "≤ 5",
    ),
    Case(
        "beyond",
        "effects, 3 seeds, 3 settings, one varies 10 times as much",
        _err(effects_of_seeds(3, 3, 1, spread=0.0, times=(1, 1, 10))),
        "≤ 5",
    ),
    *(
        Case("level", f"table, 3 seeds, {what}", told_of_unequal(spreads, 3), "≤ 5")
        for what, spreads in (
            ("2 methods, one varies 10 times as much", (0.1, 1)),
            ("3 methods, one varies 10 times as much", (0.1, 0.1, 1)),
            ("6 methods, one varies 10 times as much", (*[0.1] * 5, 1)),
            ("6 methods, half vary 5 times as much", (0.1, 0.1, 0.1, 0.5, 0.5, 0.5)),
            ("12 methods, one varies 10 times as much", (*[0.1] * 11, 1)),
            ("12 methods, all vary alike", (0.1,) * 12),
        )
    ),
    Case("level", "table, 2 methods, 100 items (McNemar)", told(2, 1, 100, CALM), "≤ 5"),
    Case("level", "table, 2 methods, 3 seeds, calm", told(2, 3, 100, CALM), "≤ 5"),
    Case("level", "table, 2 methods, 3 seeds, varied", told(2, 3, 100, SEEDED), "≤ 5"),
    Case("level", "table, 2 methods, 3 seeds, wild", told(2, 3, 100, WILD), "≤ 5"),
    Case("level", "table, 2 methods, 3 seeds, 1000 items", told(2, 3, 1000, SEEDED), "≤ 5"),
    Case(
        "level",
        "table, deterministic beside 3 seeds",
        told(2, 3, 100, SEEDED, 1, (True, False)),
        "≤ 5",
    ),
    Case(
        "level",
        "table, deterministic beside 3 wild seeds",
        told(2, 3, 100, WILD, 1, (True, False)),
        "≤ 5",
    ),
    Case(
        "level", "table, 4 methods × 8 tasks, 3 seeds, any error", told(4, 3, 100, SEEDED, 8), "≤ 5"
    ),
    Case("level", "table, 300 comparisons, any error", told(5, 1, 100, CALM, 30), "≤ 5"),
    Case("level", "table, 300 comparisons, 3 seeds, any error", told(5, 3, 50, SEEDED, 30), "≤ 5"),
    Case("power", "effects, 3 seeds, what is said to be visible", visible(4, 3), "80"),
)
