"""What does the engine itself cost: planning many cells, looking at a kept plan, a finished grid?

    python -m benchmarks.engine [--cells 100 300 1000] [--repetitions 3] [--write]

Each verb is a process of its own, as for a user, on one thread, with a store and a cache of its
own. Forms take turns. Seconds are of CPU, which a busy machine disturbs less than the clock. A grid
of many cells has a training for each seed, or one for each of its settings and five seeds; the
finished one has five models, the testbed's smallest, and two tasks. The baseline is a process that
imports torch and transformers' models, as whoever plans anew does. Not here: launches, and SLURM's
calls (`thousand_cells`).
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.record import Record
from benchmarks.thousand_cells import GRID

MIXED = """# What do many settings cost to plan?
model: testbed-small
dtype: float32
method: {{name: bitdistiller, init: none, data: ground-truth}}
vary:
  train.lr: {rates}
  format.bits: [2, 3, 4, 8]
  objective: [ce, kl, reverse-kl, cakld, jsd]
  seed: [0, 1, 2, 3, 4]
defaults: {{format.group_size: 128, data.text: testbed, data.sequences: 16, data.length: 64,
           train.steps: 2, train.batch_size: 8}}
evaluate: [{{testbed-ppl: {{limit: 4}}}}, {{testbed_story: {{limit: 4}}}}]
"""
FINISHED = """# What does a finished grid cost?
model: testbed-small
dtype: float32
method: {name: rtn, format.group_size: 128}
vary: {format.bits: [2, 3, 4, 8]}
compare: [bf16]
evaluate: [{testbed-ppl: {limit: 4}}, {testbed_story: {limit: 4}}]
"""
IMPORTS = "import torch; from transformers import PreTrainedModel"


class Verbs:
    """Runs processes in a folder, and keeps what each took."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self.record = folder, record
        self.environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.took: dict[tuple[str, str], list[float]] = {}
        self.sizes: dict[tuple[str, str], dict[str, float]] = {}

    def time(self, case: str, form: str, *command: str, at: Path, **sizes: float) -> None:
        before = _measure_cpu()
        run = [sys.executable, *command]
        done = subprocess.run(run, env=self.environment, cwd=at, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}: {done.stderr}")
        self.took.setdefault((case, form), []).append(_measure_cpu() - before)
        self.sizes[case, form] = sizes

    def add(self) -> None:
        for (case, form), took in self.took.items():
            self.record.add(case, form, "CPU s", took, **self.sizes[case, form])


def main() -> None:
    parser = argparse.ArgumentParser(description="what the engine costs")
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 300, 1000])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    record = Record("engine", baseline="imports")
    with tempfile.TemporaryDirectory() as folder:
        verbs = Verbs(Path(folder), record)
        _finish(verbs)
        for repetition in range(given.repetitions):
            _plan(verbs, repetition, given.cells)
            _list(verbs, repetition)
            _run_again(verbs, repetition)
        verbs.add()
    record.finish(write=given.write)


def _plan(verbs: Verbs, repetition: int, cells: list[int]) -> None:
    """Anew, with a cache that is empty and then not; as kept, and as kept of a copy elsewhere."""
    rates = [round(1e-4 * (1 + number), 6) for number in range(max(cells) // 100)]
    texts: dict[str, Callable[[int], str]] = {
        "seeds": lambda number: GRID.format(seeds=list(range(number))),
        "settings": lambda number: MIXED.format(rates=rates[: number // 100]),
    }
    for kind, write in texts.items():
        for number in cells:
            here = verbs.folder / f"plan-{kind}-{number}-{repetition}"
            copy = here / "copy"
            copy.mkdir(parents=True)
            (here / "many.yaml").write_text(write(number))
            shutil.copy(here / "many.yaml", copy / "many.yaml")
            verbs.environment["BITGRID_CACHE"] = str(here / "cache")
            first = _verb("plan", "many.yaml", "--store", str(here / "first"))
            plan = _verb("plan", "many.yaml", "--store", str(here / "store"))
            case = f"plan of {number} cells, {kind}"
            verbs.time(case, "imports", "-c", IMPORTS, at=here)
            verbs.time(case, "anew, with an empty cache", *first, at=here, cells=number)
            verbs.time(case, "anew", *plan, at=here, cells=number)
            verbs.time(case, "kept", *plan, at=here, cells=number)
            verbs.time(case, "kept, of a copy elsewhere", *plan, at=copy, cells=number)
            del verbs.environment["BITGRID_CACHE"]


def _list(verbs: Verbs, repetition: int) -> None:
    """The methods, read and remembered."""
    verbs.environment["BITGRID_CACHE"] = str(verbs.folder / f"cache-{repetition}")
    for form in ("read", "remembered"):
        verbs.time("methods", form, *_verb("methods"), at=verbs.folder)
    del verbs.environment["BITGRID_CACHE"]
    verbs.time("methods", "imports", "-c", IMPORTS, at=verbs.folder)


def _finish(verbs: Verbs) -> None:
    here = verbs.folder / "first"
    here.mkdir()
    (here / "small.yaml").write_text(FINISHED)
    verbs.time("a grid of 10 values", "computed", *_run_small(verbs), at=here)


def _run_again(verbs: Verbs, repetition: int) -> None:
    """A finished grid, whose report is written anew where it has none."""
    here = verbs.folder / f"again-{repetition}"
    here.mkdir()
    shutil.copy(verbs.folder / "first" / "small.yaml", here)
    for form in ("finished, at a new place", "finished, there again"):
        verbs.time("a grid of 10 values", form, *_run_small(verbs), at=here)
    verbs.time("a grid of 10 values", "imports", "-c", IMPORTS, at=here)


def _run_small(verbs: Verbs) -> list[str]:
    return _verb("run", "small.yaml", "--store", str(verbs.folder / "store"))


def _verb(*words: str) -> list[str]:
    return ["-P", "-m", "harness.cli", *words]


def _measure_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
