"""What becomes of a store that is damaged, full, shared or killed.

    python -m benchmarks.faults [--only WORD] [--out benchmarks/faults.csv]

Each fault is inflicted on a copy of a small finished store, or on runs of it; verbs look at it and
a run mends it; then all values are compared bit for bit with those of an undisturbed run. A verb
has 90 s. The table is beside this package; families that are not run keep their rows in it.

Not here: the faults (a module for each kind).
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.faults import calls, checkpoints, colleagues, damage, jobs, owners, places
from benchmarks.faults.trial import Ground, Result, Skipped

FAMILIES: dict[str, Callable[[Ground], Iterator[Result]]] = {
    "values": damage.try_values,
    "records": damage.try_records,
    "verify": damage.try_verify,
    "purge": damage.try_purge,
    "copies": damage.try_copies,
    "users": places.try_users,
    "disks": places.try_full_disks,
    "dead": owners.try_dead,
    "clocks": owners.try_clocks,
    "late": owners.try_late,
    "checkpoints": checkpoints.try_checkpoints,
    "pauses": owners.try_pauses,
    "unrecorded": calls.try_unrecorded,
    "kills": calls.try_kills,
    "errors": calls.try_errors,
    "jobs": jobs.try_jobs,
    "memory": jobs.try_memory,
    "filling": jobs.try_full_disk,
    "colleagues": colleagues.try_colleagues,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="what becomes of a store after faults")
    parser.add_argument("--only", default="", help="a family of faults: " + ", ".join(FAMILIES))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = [name for name in FAMILIES if options.only in name]
    if not chosen:
        sys.exit(f"no family has {options.only!r} in its name; there are: {', '.join(FAMILIES)}")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        ground = Ground(Path(folder))
        for name in chosen:
            results: list[Result] = []
            try:
                for result in FAMILIES[name](ground):
                    results.append(result)
                    counts = f"{result.hit:4} {result.lost:4} {result.again:4}"
                    print(
                        f"{result.outcome:10} {counts}  {result.fault}: {result.said}", flush=True
                    )
            except Skipped as skipped:
                print(f"{name}: skipped: {skipped}", flush=True)
            if options.out and results:
                replace_rows(options.out, name, results)


def replace_rows(path: Path, family: str, results: Sequence[Result]) -> None:
    """Put a family's results into the table, in place of what it had of them."""
    rows: list[list[str]] = []
    if path.exists():
        with path.open(newline="") as file:
            rows = [row for row in list(csv.reader(file))[1:] if row[0] != family]
    rows += [[family, *map(str, result)] for result in results]
    order = list(FAMILIES)
    rows.sort(key=lambda row: order.index(row[0]))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("family", *Result._fields))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
