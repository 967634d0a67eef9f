"""How much sooner does a grid of untrained cells end with two processes on two cores?

    python -m benchmarks.workers [--repeats 3]

Runs nine untrained cells of the testbed's model (RTN, AWQ-clip and GPTQ at 2, 3 and 4 bits, two
perplexities each) into an empty store, in turn: in one process of one thread, in one of as many
threads as cores, as `bitgrid run` is, and with `--workers 2`, which share the cores. Writes every
repetition to benchmarks/workers.csv, in seconds by the clock and of CPU. Nothing else should run.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GRID = """# How much sooner does a grid end with two processes?
model: testbed
dtype: float32
method: rtn
vary: {format.bits: [2, 3, 4]}
compare: [awq-clip, gptq]
defaults: {format.group_size: 128, init.text: testbed, init.sequences: 32, init.length: 128,
           rounding.text: testbed, rounding.sequences: 32, rounding.length: 128}
evaluate: [{testbed-ppl: {limit: 60}}, {testbed-ppl-stories: {limit: 30}}]
"""
COLUMNS = ("repeat", "workers", "threads", "seconds", "cpu_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description="a grid in one process and in two")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/workers.csv"))
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    ways = (1, 1), (1, cores), (2, max(1, cores // 2))
    rows = [(repeat, *way, *_measure(*way)) for repeat in range(options.repeats) for way in ways]
    with options.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *rows])
    for way in ways:
        best = min(row[3] for row in rows if row[1:3] == way)
        print(f"{way[0]} process(es) of {way[1]} thread(s): {best:.1f} s")


def _measure(workers: int, threads: int) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "nine.yaml").write_text(GRID)
        words = ["run", "nine.yaml", *(["--workers", str(workers)] if workers > 1 else [])]
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "PYTHONPATH": root, "BITGRID_STORE": f"{folder}/store"}
        environment["OMP_NUM_THREADS"] = str(threads)
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "harness.cli", *words]
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return round(time.perf_counter() - began, 2), round(cpu, 2)


if __name__ == "__main__":
    main()
