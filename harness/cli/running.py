"""The verbs that compute on this machine, and fetch what that needs: run, prefetch.

Not here: how a plan is run (`harness.run`), jobs on a cluster (`cluster`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.reporting import show_report
from harness.cli.terminal import print_line
from harness.cli.verb import (
    RUNS,
    Verb,
    add_computing_arguments,
    add_grid_argument,
    go_offline,
    load_grid,
    open_store,
    select_cells,
    without_collection,
)
from harness.cluster import status as watch
from harness.core.errors import ReportError
from harness.core.store import Store
from harness.run import plan as plans
from harness.run import remembering, renewal, states
from harness.run.plan import Plan
from harness.run.renewal import list_open
from harness.run.trials import are_due

if TYPE_CHECKING:
    from harness.cluster.workers import Crew
    from harness.run.runner import Outcome


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    add_computing_arguments(parser, retry=("failed", "stale"))
    parser.add_argument("--out", type=Path, help="where rows and report go (default: runs/<grid>)")
    several = parser.add_mutually_exclusive_group()
    several.add_argument(
        "--workers",
        metavar="N",
        help="processes that share the work; auto: one for each GPU, or each core without one",
    )
    several.add_argument("--gpus", metavar="LIST", help="as --workers, on these GPUs: 0,1,3")


def _run(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    plan = remembering.remembered(arguments.grid, store)
    if plan is not None:
        states.check_scores(plan, store)
    failed = 0
    again = arguments.retry == "stale"
    if plan is None or again or states.needed(plan, store) or list_open(plan, store):
        plan, failed = compute(
            store,
            arguments.grid,
            allow_code_execution=arguments.allow_code_execution,
            retry=arguments.retry,
            out=arguments.out,
            workers=arguments.workers,
            gpus=arguments.gpus,
            only=arguments.only or (),
        )
    else:
        print(f"all {len(plan.stored())} stages were done already", file=sys.stderr)
    stale = states.list_stale(plan, store)
    for line in stale:
        print_line(f"stale: {line}", file=sys.stderr)
    if stale:
        print("--retry stale computes them again, and compares", file=sys.stderr)
    folder = arguments.out or RUNS / plan.name
    from harness.run import export

    export.export(plan, store, folder)
    try:
        show_report(folder)
    except ReportError as error:
        if not failed:
            raise
        print_line(f"bitgrid: {error}", file=sys.stderr)  # as where every cell failed
    if failed:
        print(f"bitgrid: {failed} stages failed or lack an input:", file=sys.stderr)
        for line in watch.failures(plan, store):
            print_line(line, file=sys.stderr)
    return 1 if failed else 0


def compute(
    store: Store,
    grid: Path,
    *,
    allow_code_execution: bool = False,
    retry: str | None = None,
    out: Path | None = None,
    workers: str | None = None,
    gpus: str | None = None,
    only: Sequence[str] = (),
) -> tuple[Plan, int]:
    """Run what is missing of a grid; the plan, and how many stages failed or lack an input.

    Where trials choose settings, first the trials, then what was chosen by them. `retry`: `failed`
    or `stale` stages too; `workers`, `gpus`: several processes (`harness.cluster.workers`); `only`:
    cells, by words of their ids (all).
    """
    retry_before = time.time() if retry == "failed" else 0.0
    computed, bad = set[str](), dict[str, None]()
    go_offline(grid)  # the processes too
    with _find_crew(store, retry_before, workers, gpus) as crew:
        while True:
            plan = _plan_anew(store, grid, allow_code_execution, out)
            cells = select_cells(plan, only) if only else plan.cells
            roots = [key for cell in cells for key in cell.roots]
            if retry == "stale":
                renewal.begin(plan, store, roots)
                retry = None  # once: what is found to be other is computed again without it
            missing = states.needed(plan, store, [*roots, *list_open(plan, store, roots)])
            outcome = _compute_planned(plan, store, missing, retry_before, crew)
            computed |= set(outcome.computed)
            bad |= dict.fromkeys((*outcome.failed, *outcome.blocked))
            renewed = renewal.settle(plan, store)
            for line in renewed.tell(plan):
                print_line(line, file=sys.stderr)
            if not renewed.taken_out and not are_due(plan, store):
                break
    if computed:
        print(f"computed {len(computed)} stages of {len(plan.stored())}", file=sys.stderr)
    return plan, len(bad)


def _find_crew(
    store: Store, retry_before: float, workers: str | None, gpus: str | None
) -> AbstractContextManager[Crew | None]:
    """Several processes, which import what they need while the plan is made; or none."""
    if workers is None and gpus is None:
        return nullcontext()
    from harness.cluster import workers as pools

    return pools.Crew(store, pools.find_devices(workers, gpus), retry_before)


@without_collection()
def _plan_anew(store: Store, path: Path, allow_code_execution: bool, out: Path | None) -> Plan:
    """The grid's plan as it can be made now; the folders are tried before anything is computed."""
    # First: what is imported after it reads what it says of the hub.
    grid = load_grid(path, allow_code_execution, store=store)
    from harness.run import export

    plan = plans.build(grid)
    states.check_scores(plan, store)
    computes = bool(states.needed(plan, store))
    if computes:  # a finished store need only be read
        store.check()
    plan = remembering.remember(plan, store, required=computes)
    export.check(out or RUNS / plan.name)
    return plan


def _compute_planned(
    plan: Plan, store: Store, keys: Sequence[str], retry_before: float, crew: Crew | None
) -> Outcome:
    """Run what is missing of a plan, `keys`, in this process or in those of a crew."""
    from harness import models
    from harness.cluster import workers as pools
    from harness.run.progress import Bar
    from harness.run.runner import Outcome, Share, run

    if crew is None:
        models.device()
    missing = [key for key in keys if plan.nodes[key].stored]
    if not missing:
        return Outcome()
    with Bar(plan, missing, store) as bar:
        if crew is not None:
            return pools.run(plan, store, missing, bar, crew)
        return run(plan, store, bar.add_lane(), retry_before, Share(tuple(missing)))


RUN = Verb(
    "run",
    "compute what a grid still needs, then report",
    "bitgrid run experiments/quickstart.yaml",
    _run,
    _add_run_arguments,
)


def _add_prefetch_arguments(parser: argparse.ArgumentParser) -> None:
    add_grid_argument(parser)
    parser.add_argument(
        "--mirror",
        type=Path,
        help="where data sets go (default: BITGRID_MIRROR, the grid's, ./mirror)",
    )


def _prefetch(arguments: argparse.Namespace) -> int:
    if arguments.mirror:
        os.environ["BITGRID_MIRROR"] = str(arguments.mirror.absolute())
    from harness.grid import expand as grids
    from harness.run.prefetch import find_obstacles, prefetch

    fill = open_store(arguments).root.parent / "mirror"
    grid = grids.load(arguments.grid, allow_code_execution=True, fill=fill)
    for line in prefetch(grid):
        print(line, flush=True)
    for obstacle in find_obstacles(grid):
        print_line(f"bitgrid: {obstacle}", file=sys.stderr)
    print(f"mirror: {grid.access.folder}")
    if not (os.environ.get("BITGRID_MIRROR") or grid.file.mirror):
        print("to read it: BITGRID_MIRROR, or 'mirror:' in the grid")
    return 0


PREFETCH = Verb(
    "prefetch",
    "fetch a grid's models and data sets, for machines without a network",
    "bitgrid prefetch experiments/paper-general-llama2-7b.yaml --mirror /shared/mirror",
    _prefetch,
    _add_prefetch_arguments,
)
