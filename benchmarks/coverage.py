"""How often the stated 95 % intervals hold what they are intervals of, in a simulation.

    python -m benchmarks.coverage --runs 4000

Every run draws items (or seeds) from a known distribution, takes the interval of
`reports.numbers.stats` and looks whether the known value is in it. Not here: intervals of real
scores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np

from reports.numbers import stats
from reports.reading.items import Items

Simulation = Callable[[np.random.Generator], tuple[stats.Interval, float]]
RESAMPLES = 1999  # of a bootstrap: enough for its ends, and quick


def share(items: int) -> Simulation:
    """Right or wrong, at a rate that is itself drawn, since one rate has a coverage of its own."""

    def run(generator: np.random.Generator) -> tuple[stats.Interval, float]:
        rate = generator.uniform(0.2, 0.95)
        return stats.task_interval((generator.random(items) < rate).astype(float)), rate

    return run


def windows(items: int) -> Simulation:
    """Mean NLLs of windows: skewed, as documents of different difficulty are."""

    def run(generator: np.random.Generator) -> tuple[stats.Interval, float]:
        return stats.task_interval(generator.gamma(16, 2 / 16, items)), 2.0

    return run


def seeds(count: int) -> Simulation:
    """Scores over seeds, or differences between two methods paired by seed."""

    def run(generator: np.random.Generator) -> tuple[stats.Interval, float]:
        return stats.t_interval(generator.normal(0.6, 0.02, count)), 0.6

    return run


def paired(items: int, tasks: int = 1) -> Simulation:
    """The difference of two methods on the same items, whose difficulty both share."""

    def run(generator: np.random.Generator) -> tuple[stats.Interval, float]:
        blocks, truth = [], 0.0
        for _ in range(tasks):
            gap = generator.uniform(0, 0.15)
            hard = generator.random(
                items
            )  # one method is right where it is below 0.6, but for luck
            ours = np.where(generator.random(items) < 0.8, hard, generator.random(items)) < 0.6
            theirs = (
                np.where(generator.random(items) < 0.8, hard, generator.random(items)) < 0.6 + gap
            )
            blocks.append(_block(ours.astype(float) - theirs, 1 / tasks))
            truth -= gap / tasks
        return stats.bootstrap(blocks, RESAMPLES, _seed(generator)), truth

    return run


def average(items: int, tasks: int) -> Simulation:
    """The average over tasks, or over a task's subjects, of right or wrong."""

    def run(generator: np.random.Generator) -> tuple[stats.Interval, float]:
        rates = generator.uniform(0.25, 0.9, tasks)
        blocks = [_block(generator.random(items) < rate, 1 / tasks) for rate in rates]
        return stats.bootstrap(blocks, RESAMPLES, _seed(generator)), float(rates.mean())

    return run


KINDS: dict[str, Simulation] = {
    "task, 100 items right or wrong (Wilson)": share(100),
    "task, 1000 items right or wrong (Wilson)": share(1000),
    "perplexity, 60 windows (t)": windows(60),
    "3 seeds, or 3 pairs of seeds (t)": seeds(3),
    "5 seeds, or 5 pairs of seeds (t)": seeds(5),
    "difference on the same 100 items (bootstrap)": paired(100),
    "difference on the same 1000 items (bootstrap)": paired(1000),
    "difference of averages, 5 tasks of 100 items (bootstrap)": paired(100, 5),
    "average of 5 tasks of 100 items (bootstrap)": average(100, 5),
    "mean of 57 subjects of 2 items (bootstrap)": average(2, 57),
}


def coverage(runs: int, seed: int = 0) -> Iterator[tuple[str, float]]:
    """Each kind of interval with the share of runs in which it held the known value."""
    for number, (name, simulate) in enumerate(KINDS.items()):
        generator = np.random.default_rng([seed, number])
        held = 0
        for _ in range(runs):
            found, truth = simulate(generator)
            held += found.low <= truth <= found.high
        yield name, held / runs


def _block(scores: np.ndarray, weight: float) -> Items:
    return Items("task", np.arange(len(scores)), scores.astype(float), weight)


def _seed(generator: np.random.Generator) -> int:
    return int(generator.integers(2**31))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000)
    runs = parser.parse_args().runs
    error = 100 * np.sqrt(0.95 * 0.05 / runs)
    print(f"{runs} runs of each; a share of 95 % has a standard error of {error:.2f} points")
    for name, held in coverage(runs):
        print(f"{100 * held:6.2f} %  {name}", flush=True)


if __name__ == "__main__":
    main()
