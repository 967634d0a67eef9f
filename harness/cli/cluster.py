"""The verbs of a grid's jobs on a cluster: launch, cancel, logs.

Not here: how jobs are cut and submitted (`harness.cluster`), how far they are (`looking`).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.terminal import print_line, print_table
from harness.cli.verb import (
    Verb,
    add_computing_arguments,
    add_grid_argument,
    count_cells,
    describe_trials,
    find_plan,
    load_grid,
    open_store,
)
from harness.cluster import launches
from harness.cluster import status as watch
from harness.cluster.launches import Launch
from harness.core.errors import ClusterError, GridError, nearest
from harness.core.store import Store
from harness.run import plan as plans
from harness.run import remembering, states
from harness.run.plan import CellInfo, Plan

if TYPE_CHECKING:
    from harness.cluster.profile import Profile
    from harness.cluster.submit import Prepared

OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")


def _add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    add_computing_arguments(parser)
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
    if arguments.halve_micro_batch and not arguments.retry:
        raise ClusterError("--halve-micro-batch is for what failed: give --retry failed too")
    store = open_store(arguments)
    store.check()
    # First: what is imported after it reads what it says of the hub.
    grid = load_grid(arguments.grid, arguments.allow_code_execution, store=store)
    from harness.cluster import profile as profiles
    from harness.cluster import submit
    from harness.core.stage import kinds

    plan = plans.build(grid)
    profile = profiles.load(arguments.cluster, kinds())
    plan = remembering.remember(plan, store, required=True)
    with launches.alone(store):
        view = watch.look(plan, store)
        for line in view.trouble:
            print_line(f"bitgrid: {line}", file=sys.stderr)
        keys, left_out = choose_stages(view, store, arguments.retry == "failed")
        halvings, large = meet_memory(plan, store, view, keys, arguments.halve_micro_batch)
        given_up = {stage.key for stage in view.of("failed", "blocked")}
        prepared = submit.prepare(plan, store, profile, keys, large, given_up)
        summary = _summarise(plan, store, prepared, profile)
        if left_out and not arguments.retry:
            why = "stages failed before, or need one that did: --retry failed runs them again"
            summary.append(("left out", f"{left_out} {why}"))
        print_line(f"{plan.name}: {plan.question}")
        print_table(summary, words=2, indent=2)
        if arguments.dry:
            for number, text in enumerate(submit.dry(prepared, grid, store, profile)):
                print(f"\n# array {number}\n{text}", end="")
            return 0
        if not prepared.arrays:
            print("nothing to submit")
            return 0
        launch = submit.launch(prepared, grid, plan, store, profile, halvings, large)
    ids = [launch.submitted[number] for number in range(len(prepared.arrays))]
    print(f"launched {launch.id}: {len(prepared.jobs)} jobs as {', '.join(ids)}")
    print(f"  bitgrid status {arguments.grid} --watch")
    if plan.awaiting:
        print(f"  bitgrid launch {arguments.grid}  # once its trials have ended: the other cells")
    return 0


LAUNCH = Verb(
    "launch",
    "submit what a grid still needs to a SLURM cluster",
    "bitgrid launch experiments/paper-general-llama2-7b.yaml --dry",
    _launch,
    _add_launch_arguments,
)


def _cancel(arguments: argparse.Namespace) -> int:
    count = launches.cancel(_find_launches(open_store(arguments), arguments.grid))
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
    paths = [
        path
        for launch in _find_launches(store, arguments.grid)
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


def _find_launches(store: Store, path: Path) -> list[Launch]:
    """All launches of a grid file; says which launches cannot be read."""
    found, broken = launches.of_grid(store, path)
    for line in broken:
        print_line(f"bitgrid: {line}", file=sys.stderr)
    return found


def choose_stages(view: watch.View, store: Store, retry: bool) -> tuple[list[str], int]:
    """Kept stages to submit, and how many are left out since they or an input failed."""
    plan = view.plan
    failed = {
        key
        for key, node in plan.nodes.items()
        if not store.has(key) and states.standing_failure(node, key, store)
    }
    lost = {stage.key for stage in view.of("lost")}
    missing = [key for key in states.needed(plan, store) if plan.nodes[key].stored]
    failed_for_good = {key for key in failed if plan.nodes[key].stored}  # others are tried again
    left_out = [key for key in missing if failed_for_good & set(plan.upstream(key))]
    if not retry:
        return [key for key in missing if key not in set(left_out)], len(left_out)
    roots = [key for key in missing if (failed | lost) & set(plan.upstream(key))]
    again = set(states.needed(plan, store, roots))
    return [key for key in missing if key in again], 0


def meet_memory(
    plan: Plan, store: Store, view: watch.View, keys: Iterable[str], halve: bool
) -> tuple[dict[str, int], list[str]]:
    """What is done about stages that ran out of memory: halvings of their micro-batch, by stage, or
    the stages that get the profile's larger request."""
    earlier: Counter[str] = Counter()
    larger: set[str] = set()
    for launch in launches.of_grid(store, Path(plan.path))[0]:
        larger |= set(launch.large)
        for key, times in launch.halvings.items():
            earlier[key] = max(earlier[key], times)
    ends = {stage.key: stage.words for stage in view.of("lost")}
    halvings, large = {}, []
    for key in keys:
        record = states.standing_failure(plan.nodes[key], key, store) or {}
        device_full = record.get("exception") in OUT_OF_MEMORY
        if earlier[key] or (device_full and halve):
            halvings[key] = earlier[key] + (device_full and halve)
        host_full = "out of memory" in ends.get(key, "")
        if key in larger or (device_full and not halve) or host_full:
            large.append(key)
    return halvings, large


def _summarise(
    plan: Plan, store: Store, prepared: Prepared, profile: Profile
) -> list[tuple[str, str]]:
    """What will be submitted: names of facts, and the facts."""
    stored = plan.stored()
    done = sum(store.has(key) for key in stored)
    queued = sum(key in prepared.queued for key in stored)
    limit = sum(job.gpus * (job.request.hours or 0.0) for job in prepared.jobs)
    expected = _expected(plan, store, prepared)
    facts = [
        ("cells", f"{count_cells(plan)}{describe_trials(plan)}"),
        ("distinct models", str(len({cell.model for cell in plan.cells}))),
        ("stages", f"{len(stored)}, done already: {done}, queued by another launch: {queued}"),
        (
            "jobs",
            f"{len(prepared.jobs)} in {len(prepared.arrays)} arrays, {prepared.waves} waves",
        ),
        ("GPU-hours", f"at most {limit:.1f}, by the jobs' time limits{expected}"),
    ]
    for number, array in enumerate(prepared.arrays):
        kinds = Counter(
            plan.nodes[key].kind for index in array.jobs for key in prepared.jobs[index].keys
        )
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        after = f" after {', '.join(map(str, sorted(array.after)))}" if array.after else ""
        request = array.request
        size = f"{array.gpus} GPU, " if array.gpus and profile.gpu != "none" else ""
        size += f"{request.memory_gib:g} GiB, {request.hours:g} h"
        jobs = f"wave {array.wave}, {len(array.jobs)} jobs ({size}): {counts}{after}"
        facts.append((f"array {number}", jobs))
    return facts


def _expected(plan: Plan, store: Store, prepared: Prepared) -> str:
    """GPU-hours by what stages of the same kinds took, where all kinds were seen."""
    took: dict[str, list[float]] = {}
    for key in plan.stored():
        if store.has(key):
            seconds = float(store.manifest(key).get("wall_s", 0.0))
            took.setdefault(plan.nodes[key].kind, []).append(seconds)
    total = 0.0
    for job in prepared.jobs:
        for key in job.keys:
            seen = took.get(plan.nodes[key].kind)
            if not seen:
                return ""
            total += job.gpus * sum(seen) / len(seen) / 3600
    return f"; {total:.1f} by what such stages took so far"


def find_cell(plan: Plan, named: str) -> CellInfo:
    """The cell with that id, or the only one whose id has those words in it."""
    exact = [cell for cell in plan.cells if cell.id == named]
    parts = named.lower().split()
    partial = [cell for cell in plan.cells if all(word in cell.id.lower() for word in parts)]
    matches = exact or partial
    if len(matches) == 1:
        return matches[0]
    ids = [cell.id for cell in (matches or plan.cells)]
    if matches:
        raise GridError(f"cell {named!r} fits {len(matches)} cells: {'; '.join(ids[:5])}")
    raise GridError(f"{plan.name} has no cell {named!r}; {nearest(named, ids)}")
