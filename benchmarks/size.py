"""What verbs cost of many rows and stages: each as a whole process, its time and peak memory.

    python -m benchmarks.size --out benchmarks/size.csv

Rows are made up: as many methods as fill them, at five seeds, with eight tasks of 50 items each,
perplexities among them; the table is printed, `--html` draws the plots too. Stages are values with
manifests of the usual size and one file, three to two rows, in a kept plan of one grid. `status` is
timed as it is first called on a store and then again; `gc` lists what it would remove: a tenth.
Seconds of processors tell less of what else the machine does. Their slopes over size, from the
smallest to the largest, are printed last: 1 is linear.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import hashlib
import json
import math
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from harness.core.files import digest_json, write_json
from harness.core.provenance import find_versions
from harness.core.records import ItemScores, Precision, Score
from harness.core.store import Store
from harness.run.plan import CellInfo
from harness.run.remembering import remember
from tests.support.plans import plan_of
from tests.support.synthetic_grids import measured, write

SIZES = (1_000, 3_000, 10_000)
SEEDS, TASKS, ITEMS = 5, 8, 50
REPORT = {"rows": ["group_size", "lr"]}
LIMIT_S = 120.0
_STAGES = 12  # of a cell
_TIMED = """
import os, resource, signal, sys, time
began = time.perf_counter()
null = os.open(os.devnull, os.O_WRONLY)
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ,
                       file_actions=[(os.POSIX_SPAWN_DUP2, null, 1)])
signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
signal.setitimer(signal.ITIMER_REAL, float(sys.argv[1]))
_, status, usage = os.wait4(child, 0)
took = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
print(*took, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""
FORMATS = {
    "markdown": ["--format", "markdown"],
    "latex": ["--format", "latex"],
    "csv": ["--format", "csv"],
    "html": ["--html"],
}


def make_rows(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """That many rows, and the line of items of each."""
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
    return rows, items


def make_grid(folder: Path, count: int) -> Path:
    """An exported grid of `count` rows."""
    rows, items = make_rows(count)
    return write(folder, rows, items=items, report=REPORT)


def make_store(folder: Path, rows: int) -> Path:
    """A store with three values to two rows, all of a grid's kept plan, and a tenth more that no
    grid needs. The rows are those of `make_grid`."""
    store, grid = Store(folder / "store"), folder / "grid.yaml"
    folder.mkdir(parents=True)
    grid.write_text("# Which stages are done?\n")
    count = rows * 3 // 2
    plan, scores = plan_of(grid, range(1, count + 1)), list(zip(*make_rows(rows), strict=True))
    keys, cells = list(plan.nodes), []
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for first in range(0, rows, TASKS):
        own = keys[first * 3 // 2 : first * 3 // 2 + _STAGES]
        found |= zip(own[-TASKS:], scores[first : first + TASKS], strict=True)
        row = scores[first][0]
        told = {name: row[name] for name in ("method", "label", "seed")}
        cells.append(
            CellInfo(
                **told,
                id=row["cell"],
                axes=row["settings"],
                source=row["model"],
                model=own[-TASKS - 1],
                scores=tuple(own[-TASKS:]),
            )
        )
    remember(replace(plan, cells=tuple(cells), report=REPORT), store)
    for number in range(1, count + count // 10 + 1):
        _write_value(store.path(f"k{number}"), found.get(f"k{number}"))
    return grid


def _write_value(place: Path, score: tuple[dict[str, Any], dict[str, Any]] | None) -> None:
    """A value with a file of eight bytes, or one with a row and its items."""
    value, name, data = {}, "weights", b"8 bytes."
    if score is not None:
        row, items = score
        value = {"model": _pick(Precision, row), "rows": [_pick(Score, row)]}
        line = json.dumps(_pick(ItemScores, items)) + "\n"
        name, data = "items.jsonl.gz", gzip.compress(line.encode(), mtime=0)
    place.mkdir(parents=True)
    (place / name).write_bytes(data)
    manifest = {
        "schema": 1,
        "code": "c",
        "host": "node",
        "packages": find_versions(),
        "stage": {"kind": "toy", "version": 1, "text": "x" * 500},
        "files": {name: len(data)},
        "sha256": {name: hashlib.sha256(data).hexdigest()},
        "key": place.name,
        "value": value,
    }
    write_json(place / "manifest.json", {**manifest, "digest": digest_json(manifest)})


def _pick(kind: type, line: dict[str, Any]) -> dict[str, Any]:
    """What a line has of a record."""
    return {each.name: line[each.name] for each in fields(kind) if each.name in line}


def measure(command: list[str], folder: Path) -> tuple[float, float, float, str]:
    """Seconds, those of processors, peak MiB and exit status of a process, or that it did not end
    in time."""
    # By a process of its own: the peak of one that starts another counts as the other's.
    done = subprocess.run(
        [sys.executable, "-S", "-c", _TIMED, str(LIMIT_S), *command],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    seconds, busy, peak, status = done.stdout.split()
    said = f"no end in {LIMIT_S:.0f} s" if float(seconds) >= LIMIT_S else status
    return float(seconds), float(busy), int(peak) / 1024, said


def list_commands(
    folder: Path, rows: int, formats: list[str]
) -> Iterator[tuple[str, int, list[str]]]:
    """Each command with its name and size, and what it works on made before it."""
    bitgrid = [sys.executable, "-m", "harness.cli"]
    grid = make_grid(folder / f"rows-{rows}", rows)
    for each in formats:
        yield f"report {each}", rows, [*bitgrid, "report", str(grid), *FORMATS[each]]
    stages = rows * 3 // 2
    path = make_store(folder / f"stages-{stages}", rows)
    store = ["--store", str(path.parent / "store")]
    for verb in ("status, first", "status", "gc"):
        words = ["gc"] if verb == "gc" else ["status", str(path)]
        yield verb, stages, [*bitgrid, *words, *store]
    out = ["--out", str(path.parent / "out")]  # rows and report, and the table on the screen
    yield "report GRID", rows, [*bitgrid, "report", str(path), *out, *store]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", nargs="+", type=int, default=SIZES)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    options = parser.parse_args()
    took: dict[str, list[tuple[int, float]]] = {}
    with tempfile.TemporaryDirectory() as name, options.out.open("w") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["command", "size", "seconds", "cpu_seconds", "peak_mib", "status"])
        for rows in options.rows:
            for command, size, words in list_commands(Path(name), rows, options.formats):
                seconds, busy, peak, status = measure(words, Path(name))
                line = [command, size, f"{seconds:.2f}", f"{busy:.2f}", f"{peak:.0f}", status]
                print(*line, flush=True)
                table.writerow(line)
                took.setdefault(command, []).append((size, busy))
    for command, points in took.items():
        (small, first), (large, last) = points[0], points[-1]
        if large > small:
            print(f"{command}: slope {math.log(last / first) / math.log(large / small):.2f}")


if __name__ == "__main__":
    main()
