"""The table of faults as a page, from the CSV that `python -m benchmarks.faults` wrote.

    python -m benchmarks.faults.table       # benchmarks/faults.csv -> docs/fault-table.md

Not here: how faults are inflicted and judged.
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CSV = ROOT / "benchmarks" / "faults.csv"
PAGE = ROOT / "docs" / "fault-table.md"
FAMILIES = {
    "values": "A value is not what was written; verbs look, then a run",
    "records": "What lies beside the values is broken",
    "verify": "`bitgrid verify` alone",
    "purge": "Scratch that is purged by age",
    "copies": "A copy that breaks off",
    "users": "Folders and files that may not be read or written",
    "disks": "A disk that fills up, then has space again",
    "dead": "What dead owners left",
    "clocks": "Clocks that are wrong",
    "late": "A network file system that is late",
    "checkpoints": "Checkpoints of a training that was killed",
    "unrecorded": "A failure cannot be recorded",
    "pauses": "An owner is paused, another takes over, and the first goes on",
    "kills": "`kill -9`, then a run",
    "errors": "A system call fails, then a run",
    "jobs": "Jobs on a real SLURM; then `launch` again",
    "memory": "Jobs on a real SLURM that run out of the host's memory; then `launch` again",
    "filling": "A disk that fills under a job, on a real SLURM",
    "colleagues": "Two users of one store, on a real SLURM",
}
HEAD = """\
# The table of faults

Made by `python -m benchmarks.faults.table` from
[benchmarks/faults.csv](../benchmarks/faults.csv), which
`python -m benchmarks.faults --out benchmarks/faults.csv` writes. What the faults are, and which
tests hold them: [faults](faults.md).

Every case is a store of two trainings and four scores, six values. The outcome is the worst of all
cases. *Healed*: in the end all values are bit for bit those of an undisturbed run. *Found*:
`bitgrid verify` names what is wrong; a run does not compute a model again that no score lacks.
*Refused*: the last run ended in one line. *Destroyed* counts what the fault itself damaged, *lost*
what is not there or not right in the end, *again* what was computed again, summed over the cases.
*Said* is what an undisturbed run does not say; names that differ from run to run stand as "…".
Of jobs on SLURM each case is a grid of its own, of five stages or more, and *said* is what
`bitgrid status` says.
"""
COLUMNS = ("fault", "cases", "outcome", "destroyed", "lost", "again", "said")


def write_page(path: Path = CSV) -> str:
    """The page. Raises KeyError for a family that has no title."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    parts = [HEAD]
    for family in dict.fromkeys(row["family"] for row in rows):
        parts.append(f"\n## {FAMILIES[family]}\n\n")
        parts.append(f"| {' | '.join(COLUMNS)} |\n| --- | --: | --- | --: | --: | --: | --- |\n")
        for row in rows:
            if row["family"] == family:
                facts = (row[name] for name in ("cases", "outcome", "hit", "lost", "again"))
                said = row["said"].replace("`", "'")
                cells = [row["fault"], *facts, f"`{said}`" if said else "–"]
                parts.append(f"| {' | '.join(map(_escape, cells))} |\n")
    return "".join(parts)


def _escape(cell: str) -> str:
    return re.sub(r"\s+", " ", cell.replace("|", "\\|"))


if __name__ == "__main__":
    PAGE.write_text(write_page())
