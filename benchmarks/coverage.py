"""How often stated intervals hold what they are intervals of, and how often tests err, simulated.

    python -m benchmarks.coverage --runs 4000 --out benchmarks/coverage.csv

Every run draws scores of known expectation, takes the interval or the test of `reports.numbers`,
and looks whether what it says is true. Scores have ties (right or wrong), three seeds, and items
that all methods share. The table that was computed is beside this file.

Not here: what is drawn (`simulations`).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.simulations import CASES, Case


class Result(NamedTuple):
    """How often what is stated was so."""

    what: str  # coverage, level, power or beyond
    case: str
    stated: str  # in percent
    found: float  # in percent
    error: float  # its standard error, in percent
    runs: int


def simulate(case: Case, runs: int, seed: int = 0) -> Result:
    """The share of runs in which what the case looks for was so."""
    generator = np.random.default_rng([seed, *case.name.encode()])
    share = sum(case.run(generator) for _ in range(runs)) / runs
    error = 100 * np.sqrt(max(share * (1 - share), 1 / runs) / runs)
    return Result(case.what, case.name, case.stated, 100 * share, float(error), runs)


def simulate_all(runs: int, cores: int, named: str = "") -> Iterator[Result]:
    """Of each case whose name has `named` in it, in their order."""
    chosen = [case for case in CASES if named in case.name]
    with ProcessPoolExecutor(cores) as pool:
        yield from pool.map(_simulate, [(case.name, runs) for case in chosen])


def _simulate(task: tuple[str, int]) -> Result:
    name, runs = task
    (case,) = [each for each in CASES if each.name == name]
    return simulate(case, runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    for result in simulate_all(options.runs, options.cores, options.case):
        results.append(result)
        print(f"{result.what:8} {result.found:6.2f} ± {result.error:.2f} %", end="  ")
        print(f"(stated: {result.stated})  {result.case}", flush=True)
        if options.out:
            write(options.out, results)
    if not results:
        sys.exit(f"no case has {options.case!r} in its name")


def write(path: Path, results: Sequence[Result]) -> None:
    """As CSV, shares with two decimals."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Result._fields)
        for each in results:
            writer.writerow([*each[:3], f"{each.found:.2f}", f"{each.error:.2f}", each.runs])


if __name__ == "__main__":
    main()
