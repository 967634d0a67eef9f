"""What do 1,000 tiny cells cost to plan, to submit and to look at?

    python -m benchmarks.thousand_cells [--cells 1000] [--lab]

Launches a grid of that many trainings of the testbed's small model, two tasks each, with commands
of SLURM that answer as the real ones and count their calls; then looks at the grid with all jobs
queued and with everything done. With --lab SLURM is real, on this host (see
`tests/support/slurm/lab.py`), with a partition that is down so that jobs stay queued, and its
controller counts the calls. Every verb is a process of its own, as for a user; times are in
seconds, by the clock and of CPU, which on a busy machine is the better one.

Not here: jobs that run, so the values of the last look are manifests with nothing beside them. Real
jobs on a real SLURM are in `tests/slurm`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from harness.core.files import write_json
from harness.core.store import Store
from harness.run import remembering
from tests.support.slurm.lab import Lab

GRID = """# What do many cells cost to plan and to submit?
model: testbed-small
dtype: float32
method: {{name: bitdistiller, init: none, objective: ce, data: ground-truth}}
vary: {{seed: {seeds}}}
defaults: {{format.group_size: 128, data.text: testbed, data.sequences: 16, data.length: 64,
           train.steps: 2, train.batch_size: 8}}
evaluate: [{{testbed-ppl: {{limit: 4}}}}, {{testbed_story: {{limit: 4}}}}]
"""
COMMANDS = {
    "sbatch": """eval "file=\\${$#}"; n=$(grep -c . calls)
name=$(sed -n 's/^#SBATCH --job-name=//p' "$file")
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$file")
for task in $(seq 0 ${last:-0}); do echo "$n|$task|PENDING|Priority|$name" >> queue; done
echo "Submitted batch job $n\"""",
    "squeue": "cat queue",
    "scontrol": 'echo "MaxArraySize            = 1001"',
    "sacctmgr": "true",
    "srun": "false",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="what many cells cost to plan and to submit")
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--lab", action="store_true", help="with a real SLURM on this host")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        slurm: Slurm = Scripts(Path(folder) / "slurm")
        if given.lab:
            lab = stack.enter_context(Lab(Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))))
            slurm = Controller(lab)
        for words, number in measured(Path(folder), given.cells, slurm).items():
            print(f"{words:44}{number:10.2f}", flush=True)


class Slurm(Protocol):
    """A SLURM to launch on: how to reach it, and how often it was called, by what."""

    environment: Mapping[str, str]

    def calls(self) -> Mapping[str, int]: ...


class Scripts:
    """A folder of scripts in the commands' place, which write down each call."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        for name in ("calls", "queue"):
            (folder / name).touch()
        for name, text in COMMANDS.items():
            script = folder / name
            script.write_text(f"#!/bin/sh\ncd {folder}\necho {name} >> calls\n{text}\n")
            script.chmod(0o755)
        self.folder = folder
        self.environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}

    def calls(self) -> Mapping[str, int]:
        return Counter((self.folder / "calls").read_text().split())


class Controller:
    """A real one, whose jobs stay queued."""

    def __init__(self, lab: Lab) -> None:
        lab.run("scontrol", "update", "PartitionName=main", "State=DOWN")
        lab.run("sdiag", "--reset")
        self.lab, self.environment = lab, {**os.environ, **lab.environment}

    def calls(self) -> Mapping[str, int]:
        said = self.lab.run("sdiag").partition("by message type")[2].partition("by user")[0]
        found = re.findall(r"([A-Z_]+) *\( *\d+\) count:(\d+)", said)
        return {name: int(count) for name, count in found if not name.startswith("MESSAGE_")}


def measured(folder: Path, cells: int, slurm: Slurm) -> dict[str, float]:
    """Times, calls and files, by what they are."""
    grid, profile, store = folder / "many.yaml", folder / "cluster.yaml", Store(folder / "store")
    grid.write_text(GRID.format(seeds=list(range(cells))))
    profile.write_text("gpu: none\nmemory_gib: 1\n")
    found: dict[str, float] = {}

    def timed(words: str, *command: str) -> None:
        before, clock = _cpu(), time.perf_counter()
        verb = [sys.executable, "-m", "harness.cli", *command, str(grid), "--store"]
        subprocess.run(
            [*verb, str(store.root)], env=slurm.environment, check=True, stdout=sys.stderr
        )
        found[f"{words}: clock"] = time.perf_counter() - clock
        found[f"{words}: CPU"] = _cpu() - before

    timed("plan", "plan")
    timed("plan, again", "plan")
    timed("launch", "launch", "--cluster", str(profile))
    found |= {f"calls of {name}": count for name, count in sorted(slurm.calls().items())}
    (launched,) = (store.root / "launches").iterdir()
    files = sum(path.is_file() for path in launched.rglob("*"))
    found["files of the launch, a cell"] = files / cells
    timed("status, all queued", "status")
    plan = remembering.remembered(grid, store)
    assert plan is not None and len({cell.model for cell in plan.cells}) == cells
    for key in plan.stored():
        (store.root / "values" / key).mkdir(parents=True)
        facts = {"schema": 1, "key": key, "code": plan.nodes[key].code, "wall_s": 1.0}
        write_json(store.path(key) / "manifest.json", facts)
    timed("status, all done", "status")
    found["plan, MiB"] = sum(p.stat().st_size for p in (store.root / "plans").iterdir()) / 2**20
    return found


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
