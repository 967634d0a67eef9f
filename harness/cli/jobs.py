"""The verbs of a grid on a cluster: launch, status, cancel, logs. Each returns an exit status.

Not here: the arguments (`cli`), how jobs are cut and submitted (`waves`, `launch`), states (`watch`).
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

from harness.cli.verbs import plan_of, store_of
from harness.cluster import launches
from harness.cluster import status as watch
from harness.core.errors import ClusterError, GridError, nearest
from harness.core.store import Store
from harness.run import plan as plans
from harness.run.plan import CellInfo, Plan

if TYPE_CHECKING:
    from harness.cluster.profile import Profile
    from harness.cluster.submit import Prepared

WATCH_S = 15.0
OUT_OF_MEMORY = ("OutOfMemoryError", "MemoryError")


def launch(given: argparse.Namespace) -> int:
    """Submit what a grid still needs, or with --dry show what would be submitted."""
    from harness.cluster import profile as cluster
    from harness.cluster import submit as launching
    from harness.core.stage import kinds
    from harness.grid import expand as grids

    if given.halve_micro_batch and not given.retry:
        raise ClusterError("--halve-micro-batch is for what failed: give --retry failed too")
    store = store_of(given)
    store.check()
    grid = grids.load(given.grid, given.allow_code_execution)
    plan = plans.build(grid)
    profile = cluster.load(given.cluster, kinds())
    plans.remember(plan, store)
    with launches.alone(store):
        view = watch.look(plan, store)
        keys, failed = _chosen(view, store, given.retry == "failed")
        halvings, large = _leaner(plan, store, view, keys, given.halve_micro_batch)
        given_up = {found.key for found in view.of("failed", "blocked")}
        prepared = launching.prepare(plan, store, profile, keys, large, given_up)
        print("\n".join(_summary(plan, store, prepared, profile)))
        if failed and not given.retry:
            words = "stages failed before, or need one that did: --retry failed runs them again"
            print(f"  left out            {failed} {words}")
        if given.dry:
            for number, text in enumerate(launching.dry(prepared, grid, store, profile)):
                print(f"\n# array {number}\n{text}", end="")
            return 0
        if not prepared.arrays:
            print("nothing to submit")
            return 0
        made = launching.launch(
            prepared, grid, store, profile, given.allow_code_execution, halvings, large
        )
    ids = [made.submitted[number] for number in range(len(prepared.arrays))]
    print(f"launched {made.id}: {len(prepared.jobs)} jobs as {', '.join(ids)}")
    print(f"  bitgrid status {given.grid} --watch")
    return 0


def status(given: argparse.Namespace) -> int:
    store = store_of(given)
    while True:
        plan = plan_of(given, store)
        view = watch.look(plan, store)
        if given.watch and sys.stdout.isatty():
            print("\033[2J\033[H", end="")
        models = len({cell.model for cell in plan.cells})
        print(f"{plan.name}: {len(plan.cells)} cells, {models} models")
        print("\n".join([*watch.table(view), *watch.details(view, store)]))
        if view.trouble:
            print(f"bitgrid: the queue is not known: {view.trouble}", file=sys.stderr)
        if not given.watch or not view.count("running", "queued"):
            return 0
        sys.stdout.flush()
        time.sleep(WATCH_S)


def cancel(given: argparse.Namespace) -> int:
    count = launches.cancel(launches.of_grid(store_of(given), given.grid))
    print(f"cancelled {count} jobs; what is finished is kept")
    return 0


def logs(given: argparse.Namespace) -> int:
    """The log of the last job that worked on a cell."""
    store = store_of(given)
    plan = plan_of(given, store)
    cell = _cell(plan, given.cell)
    keys = {key for root in cell.roots for key in plan.upstream(root)}
    found = [
        path
        for launch in launches.of_grid(store, given.grid)
        for job in launch.jobs
        if keys & set(job.keys) and (path := launch.log(job))
    ]
    if not found:
        print(f"{cell.id}: no job of it has started", file=sys.stderr)
        return 1
    for path in found[:-1]:
        print(f"also: {path}", file=sys.stderr)
    print(f"{found[-1]}:", file=sys.stderr)
    looked = -math.inf
    with found[-1].open(errors="replace") as file:
        while True:
            sys.stdout.write(file.read())
            sys.stdout.flush()
            if not given.follow:
                return 0
            if time.monotonic() - looked > WATCH_S:  # the queue is asked less often than the file
                looked = time.monotonic()
                left = watch.look(plan, store).of("running", "queued")
                if not any(stage.key in keys for stage in left):
                    sys.stdout.write(file.read())
                    return 0
            time.sleep(1.0)


def _chosen(view: watch.View, store: Store, retry: bool) -> tuple[list[str], int]:
    """Kept stages to submit, and how many are left out since they or an input failed."""
    plan = view.plan
    failed = {
        key
        for key, node in plan.nodes.items()
        if not store.has(key) and plans.standing_failure(node, key, store)
    }
    lost = {found.key for found in view.of("lost")}
    missing = [key for key in plans.needed(plan, store) if plan.nodes[key].stored]
    stands = {key for key in failed if plan.nodes[key].stored}  # others are free to be tried again
    spoilt = [key for key in missing if stands & set(plan.upstream(key))]
    if not retry:
        return [key for key in missing if key not in set(spoilt)], len(spoilt)
    roots = [key for key in missing if (failed | lost) & set(plan.upstream(key))]
    again = set(plans.needed(plan, store, roots))
    return [key for key in missing if key in again], 0


def _leaner(
    plan: Plan, store: Store, view: watch.View, keys: Iterable[str], halve: bool
) -> tuple[dict[str, int], list[str]]:
    """What is done about stages that ran out of memory: halvings of their micro-batch, by stage, or
    the stages that get the profile's larger request."""
    earlier: Counter[str] = Counter()
    larger: set[str] = set()
    for launch in launches.of_grid(store, Path(plan.path)):
        larger |= set(launch.large)
        for key, times in launch.halvings.items():
            earlier[key] = max(earlier[key], times)
    lost = {found.key: found.words for found in view.of("lost")}
    halvings, large = {}, []
    for key in keys:
        record = plans.standing_failure(plan.nodes[key], key, store) or {}
        device = record.get("exception") in OUT_OF_MEMORY
        if earlier[key] or (device and halve):
            halvings[key] = earlier[key] + (device and halve)
        if key in larger or (device and not halve) or "out of memory" in lost.get(key, ""):
            large.append(key)
    return halvings, large


def _summary(plan: Plan, store: Store, prepared: Prepared, profile: Profile) -> list[str]:
    stored = plan.stored()
    done = sum(store.has(key) for key in stored)
    asked = sum(job.gpus * (job.request.hours or 0.0) for job in prepared.jobs)
    lines = [
        f"{plan.name}: {plan.question}",
        f"  cells               {len(plan.cells)}",
        f"  distinct models     {len({cell.model for cell in plan.cells})}",
        f"  stages              {len(stored)}, done already: {done}, "
        f"queued by another launch: {sum(key in prepared.queued for key in stored)}",
        f"  jobs                {len(prepared.jobs)} in {len(prepared.arrays)} arrays, "
        f"{prepared.waves} waves",
        f"  GPU-hours           at most {asked:.1f}, by the jobs' time limits"
        + _expected(plan, store, prepared),
    ]
    for number, array in enumerate(prepared.arrays):
        kinds = Counter(
            plan.nodes[key].kind for index in array.jobs for key in prepared.jobs[index].keys
        )
        words = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        after = f" after {', '.join(map(str, sorted(array.after)))}" if array.after else ""
        request = array.request
        size = f"{array.gpus} GPU, " if array.gpus and profile.gpu != "none" else ""
        size += f"{request.memory_gib:g} GiB, {request.hours:g} h"
        lines.append(
            f"  array {number:<4}wave {array.wave}  {len(array.jobs)} jobs ({size}): {words}{after}"
        )
    return lines


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


def _cell(plan: Plan, named: str) -> CellInfo:
    """The cell with that id, or the only one whose id has those words in it."""
    exact = [cell for cell in plan.cells if cell.id == named]
    words = named.lower().split()
    part = [cell for cell in plan.cells if all(word in cell.id.lower() for word in words)]
    found = exact or part
    if len(found) == 1:
        return found[0]
    ids = [cell.id for cell in (found or plan.cells)]
    if found:
        raise GridError(f"cell {named!r} fits {len(found)} cells: {'; '.join(ids[:5])}")
    raise GridError(f"{plan.name} has no cell {named!r}; {nearest(named, ids)}")
