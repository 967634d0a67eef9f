"""What a launch takes of a grid: what is missing, a retry's share, and what is done about memory.

Imports no torch. Not here: how stages are cut into jobs (`waves`), why a job ended (`ends`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from harness.cluster import launches
from harness.cluster.launches import Placed
from harness.cluster.status import View
from harness.cluster.waves import Job
from harness.core.store import Store
from harness.run import states
from harness.run.plan import Plan
from harness.run.renewal import list_open

DEVICE_MEMORY = ("OutOfMemoryError",)
# Of failures that are on record: Python's, numpy's and torch's, a process's that the kernel killed.
HOST_MEMORY = ("MemoryError", "_ArrayMemoryError")
HOST_MEMORY_WORDS = "DefaultCPUAllocator|Cannot allocate memory|where memory runs out"


def choose_stages(
    view: View, store: Store, retry: str | None = None, cells: Collection[str] | None = None
) -> tuple[list[str], int]:
    """Kept stages to submit, also what was taken out to be computed again; and how many are left
    out since they or an input failed.

    retry: `failed`, which takes what was lost too, or `lost`; and then nothing else but what waits
    for it. cells: ids, to do less (all).
    """
    plan = view.plan
    failed = {
        key
        for key, node in plan.nodes.items()
        if not store.has(key) and states.standing_failure(node, key, store)
    }
    lost = {stage.key for stage in view.of("lost")}
    roots = [key for cell in plan.cells if cells is None or cell.id in cells for key in cell.roots]
    roots += list_open(plan, store, roots)
    missing = [key for key in states.needed(plan, store, roots) if plan.nodes[key].stored]
    failed_for_good = {key for key in failed if plan.nodes[key].stored}  # others are tried again
    left_out = {key for key in missing if failed_for_good & set(plan.upstream(key))}
    if retry is None:
        return [key for key in missing if key not in left_out], len(left_out)
    taken = lost if retry == "lost" else failed | lost
    waiting = [key for key in missing if taken & set(plan.upstream(key))]
    if retry == "lost":
        waiting = [key for key in waiting if key not in left_out]
    again = set(states.needed(plan, store, waiting))
    return [key for key in missing if key in again], len(left_out) if retry == "lost" else 0


def meet_memory(
    plan: Plan, store: Store, view: View, keys: Iterable[str], halve: bool
) -> tuple[dict[str, int], list[str]]:
    """What is done about stages that ran out of memory: halvings of their micro-batch, by stage, or
    the stages that get the profile's larger request."""
    earlier: Counter[str] = Counter()
    larger: set[str] = set()
    for launch in launches.of_keys(store, plan.stored())[0]:
        larger |= set(launch.large)
        for key, times in launch.halvings.items():
            earlier[key] = max(earlier[key], times)
    over = {stage.key for stage in view.of("lost") if stage.lacks == "memory_gib"}
    halvings, large = {}, []
    for key in keys:
        record = states.standing_failure(plan.nodes[key], key, store) or {}
        error, message = record.get("exception"), str(record.get("message"))
        host_full = error in HOST_MEMORY or re.search(HOST_MEMORY_WORDS, message) is not None
        full = error in DEVICE_MEMORY or host_full
        if earlier[key] or (full and halve):
            halvings[key] = earlier[key] + (full and halve)
        if key in larger or (full and not halve) or key in over:
            large.append(key)
    return halvings, large


def find_hopeless(view: View, store: Store, jobs: Iterable[Job]) -> dict[str, str]:
    """Lost stages whose job would ask for no more than when it ended for lack of it; and why."""
    lost = {stage.key: stage for stage in view.of("lost") if stage.lacks}
    before: dict[str, Placed] = {}
    for launch in launches.of_keys(store, lost)[0] if lost else []:
        for placed in launch.jobs:
            before |= dict.fromkeys(placed.keys, placed)
    hopeless = {}
    for job in jobs:
        for key in job.keys:
            if key in lost:
                lacks = lost[key].lacks
                had, asks = getattr(before[key], lacks), getattr(job.request, lacks) or 0.0
                if had and asks <= had:
                    kind = view.plan.nodes[key].kind
                    unit = "h" if lacks == "hours" else "GiB"
                    hopeless[key] = f"{kind}: {lost[key].words}; it would get {asks:.3g} {unit}"
    return hopeless


def leave_out(plan: Plan, keys: Iterable[str], hopeless: Mapping[str, str]) -> list[str]:
    """The stages that need none of these."""
    return [key for key in keys if hopeless.keys().isdisjoint(plan.upstream(key))]
