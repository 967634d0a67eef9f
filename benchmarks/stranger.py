"""How long a stranger's path takes: from an empty folder to a table with a method of one's own.

    OMP_NUM_THREADS=1 python -m benchmarks.stranger --out benchmarks/stranger.csv

Each step is a process of its own in an empty folder, with an empty cache and store; two files are
written between the first step and the second, as docs/methods.md and docs/grids.md show them. The
grid has the new method, RTN and the model in 16 bits, on the small testbed. A step that fails ends
it. Not measured: what a person thinks and types.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = """\
[project]
name = "mine"
version = "0.1.0"

[project.entry-points."bitgrid.methods"]
mine = "mine"

[tool.setuptools]
py-modules = ["mine"]
"""
GRID = """\
# Is my method better than round-to-nearest?
model: testbed-small
method: mine
compare: [bf16, rtn]
defaults: {bits: 3, group_size: 64, format.bits: 3, format.group_size: 64}
evaluate: [{testbed-ppl: {limit: 2}}]
"""
INSTALL = "pip install --no-deps --no-build-isolation --no-index --quiet --target packages ."
STEPS = (
    "bitgrid new-method mine",
    INSTALL,
    "bitgrid check mine",
    "bitgrid methods mine",  # the first: methods are imported
    "bitgrid methods mine",  # as remembered
    "bitgrid plan grid.yaml",
    "bitgrid run grid.yaml",
    "bitgrid report grid.yaml",
)


@dataclass(frozen=True)
class Step:
    """One command: what it took, in seconds of the clock and of processors."""

    command: str
    seconds: str
    cpu_seconds: str
    commit: str


def walk(folder: Path, commit: str) -> list[Step]:
    """Every step in an empty folder. Raises SystemExit with the output of one that fails."""
    (folder / "pyproject.toml").write_text(PACKAGE)
    (folder / "grid.yaml").write_text(GRID)
    paths = os.pathsep.join(map(str, (folder / "packages", ROOT)))
    environment = os.environ | {
        "PYTHONPATH": paths,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "BITGRID_STORE": str(folder / "store"),
    }
    programs = {"bitgrid": ["-P", "-m", "harness.cli"], "pip": ["-m", "pip"]}
    steps = []
    for command in STEPS:
        program, *words = command.split()
        began, output = time.perf_counter(), folder / "output"
        with output.open("w") as file:
            line = [sys.executable, *programs[program], *words]
            child = subprocess.Popen(line, cwd=folder, env=environment, stdout=file, stderr=file)
            _, status, usage = os.wait4(child.pid, 0)
        took = time.perf_counter() - began
        if os.waitstatus_to_exitcode(status):
            raise SystemExit(f"{command}\n{output.read_text()}")
        spent = usage.ru_utime + usage.ru_stime
        steps.append(Step(command, f"{took:.2f}", f"{spent:.2f}", commit))
        print(f"{took:6.2f} s  {spent:6.2f} s of processors  {command}", flush=True)
    print(output.read_text())
    return steps


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    if chosen.out is not None and commit.endswith("-dirty"):
        raise SystemExit("commit first: what is measured should be what is committed")
    with tempfile.TemporaryDirectory() as folder:
        steps = walk(Path(folder), commit)
    if chosen.out is not None:
        with chosen.out.open("w", newline="") as file:
            names = [each.name for each in fields(Step)]
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, steps))


if __name__ == "__main__":
    main()
