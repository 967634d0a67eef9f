"""The verbs of a grid's jobs on a cluster: launch, cancel, logs.

Not here: how jobs are cut and submitted (`harness.cluster`), how far they are (`looking`).
"""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.terminal import print_line, print_table
from harness.cli.verb import (
    Verb,
    add_computing_arguments,
    add_grid_argument,
    count_cells,
    describe_trials,
    find_cell,
    find_plan,
    load_grid,
    open_store,
    parse_count,
    select_cells,
    without_collection,
)
from harness.cluster import launches
from harness.cluster import status as watch
from harness.cluster.choice import choose_stages, find_hopeless, leave_out, meet_memory
from harness.cluster.cost import estimate_cost
from harness.core.errors import BitgridError, ClusterError
from harness.core.store import Store
from harness.run import plan as plans
from harness.run import remembering, renewal
from harness.run.plan import CellInfo, Plan

if TYPE_CHECKING:
    from harness.cluster.profile import Profile
    from harness.cluster.submit import Prepared


def _add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    add_computing_arguments(parser, retry=("failed", "lost", "stale"))
    parser.add_argument(
        "--waves", type=parse_count, metavar="N", help="only the first waves; the rest later"
    )
    parser.add_argument(
        "--cluster",
        type=Path,
        metavar="FILE",
        help="the cluster's profile (default: ~/.config/bitgrid/cluster.yaml)",
    )
    parser.add_argument("--dry", action="store_true", help="print the sbatch files, submit nothing")
    parser.add_argument(
        "--halve-micro-batch",
        action="store_true",
        help="with --retry failed: where a GPU's memory ran out (the global batch stays)",
    )


def _launch(arguments: argparse.Namespace) -> int:
    """Submit what a grid still needs, or with --dry show what would be submitted."""
    if arguments.halve_micro_batch and arguments.retry != "failed":
        raise ClusterError("--halve-micro-batch is for what failed: give --retry failed too")
    if arguments.dry and arguments.retry == "stale":
        raise ClusterError("--retry stale takes values out, and --dry changes nothing: give one")
    store = open_store(arguments)
    store.check()
    from harness.cluster import profile as profiles
    from harness.cluster import submit

    profiles.load(arguments.cluster)  # first: it is read at once
    plan = _plan(arguments, store)
    profile = profiles.load(arguments.cluster, plan.kinds)
    selected = select_cells(plan, arguments.only) if arguments.only else plan.cells
    cells = {cell.id for cell in selected}
    with launches.alone(store):
        if not arguments.dry:
            _renew(plan, store, selected if arguments.retry == "stale" else ())
        view = watch.look(plan, store)
        for line in view.trouble:
            print_line(f"bitgrid: {line}", file=sys.stderr)
        retry = None if arguments.retry == "stale" else arguments.retry
        keys, left_out = choose_stages(view, store, retry, cells)
        halvings, large = meet_memory(plan, store, view, keys, arguments.halve_micro_batch)
        given_up = {stage.key for stage in view.of("failed", "blocked")}
        gres = _choose_gpus(arguments, store, profile, keys)
        asked = (profile, keys, large, given_up, arguments.waves, gres)
        prepared = submit.prepare(plan, store, *asked)
        hopeless = {} if arguments.retry == "lost" else find_hopeless(view, store, prepared.jobs)
        if hopeless:
            keys = leave_out(plan, keys, hopeless)
            prepared = submit.prepare(plan, store, profile, keys, *asked[2:])
        summary = _summarise(plan, store, prepared, profile)
        if left_out and arguments.retry != "failed":
            why = "stages failed before, or need one that did: --retry failed runs them again"
            summary.append(("left out", f"{left_out} {why}"))
        summary += [
            ("left out", f"{why}: --retry lost submits it all the same")
            for why in dict.fromkeys(hopeless.values())
        ]
        print_line(f"{plan.name}: {plan.question}")
        print_table(summary, words=2, indent=2)
        if arguments.dry:
            for number, text in enumerate(submit.dry(prepared, plan, store, profile)):
                print(f"\n# array {number}\n{text}", end="")
            return 0
        if not prepared.arrays:
            print("nothing to submit")
            return 0
        launch = submit.launch(prepared, plan, store, profile, halvings, large)
    _tell_launched(arguments.grid, plan, store, prepared, launch)
    return 0


def _tell_launched(
    grid: Path, plan: Plan, store: Store, prepared: Prepared, launch: launches.Launch
) -> None:
    """What was submitted, and what to type next."""
    print(
        f"launched {launch.id}: {len(prepared.jobs)} jobs as {', '.join(launch.submitted.values())}"
    )
    if refused := len(prepared.arrays) - len(launch.submitted):
        print(f"  {refused} arrays met a limit on jobs: launch again once others have ended")
    print(f"  bitgrid status {grid} --watch")
    if plan.awaiting:
        print(f"  bitgrid launch {grid}  # once its trials have ended: the other cells")
    elif renewal.list_open(plan, store):
        print(f"  bitgrid launch {grid}  # once these have ended: compares with before")


def _renew(plan: Plan, store: Store, cells: Sequence[CellInfo]) -> None:
    """Compare what has been computed again, and take out what is stale of `cells`."""
    for line in renewal.settle(plan, store).tell(plan):
        print_line(line, file=sys.stderr)
    renewal.begin(plan, store, [key for cell in cells for key in cell.roots])


LAUNCH = Verb(
    "launch",
    "submit what a grid still needs to a SLURM cluster",
    "bitgrid launch experiments/paper-general-llama2-7b.yaml --dry",
    _launch,
    _add_launch_arguments,
)


def _cancel(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    keys: list[str] = []
    with contextlib.suppress(BitgridError):  # a grid that cannot be read has its path
        keys = find_plan(arguments, store).stored()
    found, broken = launches.of_grid(store, arguments.grid, keys)
    _show_broken(broken)
    count = launches.cancel(found)
    for launch in found:
        if runner := launch.runner:
            launch.ask_to_end()
            print(f"asked the run of {runner.get('host')}:{runner.get('pid')} to end")
    print(f"cancelled {count} jobs; what is finished is kept")
    return 0


CANCEL = Verb(
    "cancel",
    "take a grid's jobs out of the queue; what is finished is kept",
    "bitgrid cancel experiments/paper-general-llama2-7b.yaml",
    _cancel,
    add_grid_argument,
)


def _add_logs_arguments(parser: argparse.ArgumentParser) -> None:
    add_grid_argument(parser)
    parser.add_argument("cell", metavar="CELL", help="a cell's id, or words that only it has")
    parser.add_argument("--follow", action="store_true", help="go on while the cell has jobs left")


def _logs(arguments: argparse.Namespace) -> int:
    store = open_store(arguments)
    plan = find_plan(arguments, store)
    cell = find_cell(plan, arguments.cell)
    keys = {key for root in cell.roots for key in plan.upstream(root)}
    found, broken = launches.of_keys(store, keys)
    _show_broken(broken)
    paths = [
        path
        for launch in found
        for job in launch.jobs
        if keys & set(job.keys) and (path := launch.log(job))
    ]
    if not paths:
        print(f"{cell.id}: no job of it has started", file=sys.stderr)
        return 1
    for path in paths[:-1]:
        print(f"also: {path}", file=sys.stderr)
    print(f"{paths[-1]}:", file=sys.stderr)
    asked = -math.inf
    with paths[-1].open(errors="replace") as file:
        while True:
            sys.stdout.write(file.read())
            sys.stdout.flush()
            if not arguments.follow:
                return 0
            if time.monotonic() - asked > watch.WATCH_S:  # the file is read more often
                asked = time.monotonic()
                left = watch.look(plan, store).of("running", "queued")
                if not any(stage.key in keys for stage in left):
                    sys.stdout.write(file.read())
                    return 0
            time.sleep(1.0)


LOGS = Verb(
    "logs",
    "the log of the last job that worked on a cell",
    "bitgrid logs experiments/quickstart.yaml 'bitdistiller bits=2' --follow",
    _logs,
    _add_logs_arguments,
)


def _show_broken(broken: Iterable[str]) -> None:
    """Say which launches cannot be read."""
    for line in broken:
        print_line(f"bitgrid: {line}", file=sys.stderr)


@without_collection()
def _plan(arguments: argparse.Namespace, store: Store) -> Plan:
    """The plan of a grid, as kept where nothing has changed, which imports no torch."""
    plan = remembering.remembered(arguments.grid, store)
    if plan is not None and (arguments.allow_code_execution or not plan.runs_code):
        return plan
    # First: what is imported after it reads what it says of the hub.
    grid = load_grid(arguments.grid, arguments.allow_code_execution, store=store)
    return remembering.remember(plans.build(grid), store, required=True)


def _choose_gpus(
    arguments: argparse.Namespace, store: Store, profile: Profile, keys: Iterable[str]
) -> dict[str, str]:
    """The gres of the smallest GPU that holds each stage, or the largest where none does."""
    types = profile.gpu_types
    if not types:
        return {}
    grid = load_grid(arguments.grid, store=store)
    import harness.evaluation.memory  # noqa: F401  it registers estimates
    from harness.core.stage import closure
    from harness.run.memory import choose_sizes

    wanted = set(keys)
    stages = closure([stage for cell in grid.cells for stage in cell.roots])
    sizes = choose_sizes([s for s in stages if s.key in wanted], [gpu.gib for gpu in types])
    gres = {gpu.gib: gpu.gres for gpu in types}
    for key, size in sizes.items():
        if size is None:
            print_line(f"bitgrid: {key[:8]} fits no GPU of the profile: the largest", sys.stderr)
    return {key: gres[size or types[-1].gib] for key, size in sizes.items()}


def _summarise(
    plan: Plan, store: Store, prepared: Prepared, profile: Profile
) -> list[tuple[str, str]]:
    """What will be submitted: names of facts, and the facts."""
    stored = plan.stored()
    done = sum(store.has(key) for key in stored)
    queued = sum(key in prepared.queued for key in stored)
    limit = sum(job.gpus * (job.request.hours or 0.0) for job in prepared.jobs)
    facts = [
        ("cells", f"{count_cells(plan)}{describe_trials(plan)}"),
        ("distinct models", str(len({cell.model for cell in plan.cells}))),
        ("stages", f"{len(stored)}, done already: {done}, queued by another launch: {queued}"),
        (
            "jobs",
            f"{len(prepared.jobs)} in {len(prepared.arrays)} arrays, {prepared.waves} waves",
        ),
        ("GPU-hours", str(estimate_cost(plan, store, prepared.jobs))),
        ("asked for", f"{limit:.1f} GPU-hours, by the jobs' time limits"),
    ]
    if prepared.left:
        later = f"{prepared.left} jobs more than may be queued: launch again once others have ended"
        facts.append(("later", later))
    for number, array in enumerate(prepared.arrays):
        kinds = Counter(
            plan.nodes[key].kind for index in array.jobs for key in prepared.jobs[index].keys
        )
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        after = f" after {', '.join(map(str, sorted(array.after)))}" if array.after else ""
        request = array.request
        gres = f" ({request.gpu})" if request.gpu else ""
        size = f"{array.gpus} GPU{gres}, " if array.gpus and request.gpu != "none" else ""
        size += f"{array.nodes} nodes, " if array.nodes > 1 else ""
        size += f"{request.memory_gib:g} GiB, {request.hours:g} h"
        jobs = f"wave {array.wave}, {len(array.jobs)} jobs ({size}): {counts}{after}"
        facts.append((f"array {number}", jobs))
    return facts
