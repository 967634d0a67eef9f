"""What reports cost of many rows: `bitgrid report` as a whole process, its time and peak memory.

    python -m benchmarks.size --rows 1000 3000 --formats markdown csv --out benchmarks/size.csv

Rows are made up: as many methods as fill them, at five seeds, with eight tasks of 50 items each,
perplexities among them. Plots are drawn apart from the table: `--html` draws them.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.support.synthetic_grids import measured, write

SIZES = (1_000, 3_000, 10_000)
SEEDS, TASKS, ITEMS = 5, 8, 50
FORMATS = {
    "markdown": ["--format", "markdown"],
    "latex": ["--format", "latex"],
    "csv": ["--format", "csv"],
    "html": ["--html"],
}


def make_grid(folder: Path, count: int) -> Path:
    """An exported grid of `count` rows."""
    chance = random.Random(count)
    rows: list[dict[str, Any]] = []
    items: list[dict[str, Any]] = []
    for number in range(count // (SEEDS * TASKS)):
        quality = chance.uniform(0.3, 0.9)
        for seed in range(SEEDS):
            settings = {"group_size": 2 ** (number % 8), "lr": number // 8}
            for task in range(TASKS):
                scores = [float(chance.random() < quality) for _ in range(ITEMS)]
                row, line = measured(
                    scores, label="Method", settings=settings, seed=seed, task=f"task_{task}"
                )
                rows.append(row)
                items.append(line)
    report = {"rows": ["group_size", "lr"]}
    return write(folder, rows, items=items, report=report)


def measure(command: list[str]) -> tuple[float, float, int]:
    """Seconds, peak MiB and exit status of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # what it complains of is seen
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    return seconds, usage.ru_maxrss / 1024, os.waitstatus_to_exitcode(status)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", type=int, default=SIZES)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, options.out.open("w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["command", "rows", "seconds", "peak_mib", "status"])
        for count in options.rows:
            folder = make_grid(Path(name) / str(count), count)
            for each in options.formats:
                command = [sys.executable, "-m", "harness.cli", "report", str(folder)]
                seconds, peak, status = measure([*command, *FORMATS[each]])
                line = [f"report {each}", count, f"{seconds:.2f}", f"{peak:.0f}", status]
                print(*line, flush=True)
                table.writerow(line)


if __name__ == "__main__":
    main()
