"""What jobs will cost in GPU-hours, by what stages of the same kinds took, of this grid or another.

Kinds that the grid has seen itself are judged by that, since others have models of other sizes.
Imports no torch. Not here: the hours that jobs ask for (`harness.cluster.profile`).
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.cluster.waves import Job
from harness.core.errors import StoreError
from harness.core.store import Store
from harness.run.plan import Plan


@dataclass
class Cost:
    """GPU-hours of the stages whose kinds have run: by the least, the mean and the most that one of
    the kind took. `unknown`: how many stages have not, by kind; `elsewhere`: kinds that only other
    grids have run."""

    least: float = 0.0
    mean: float = 0.0
    most: float = 0.0
    known: int = 0  # stages whose kinds have run
    unknown: Counter[str] = field(default_factory=Counter)
    elsewhere: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        if not self.known:
            return "no stage of these kinds has run yet"
        least, mean, most = map(_show, (self.least, self.mean, self.most))
        text = f"{mean}, between {least} and {most}, by what stages of the same kinds took"
        if self.elsewhere:
            text += f" ({', '.join(sorted(self.elsewhere))}: in other grids)"
        if self.unknown:
            lacking = ", ".join(f"{count} {kind}" for kind, count in self.unknown.items())
            text += f"; and {lacking}, which have not run"
        return text


def _show(hours: float) -> str:
    """Two digits of what is small, whole hours of what is not."""
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}"


def estimate_cost(plan: Plan, store: Store, jobs: Iterable[Job]) -> Cost:
    """What the stages of the jobs will take."""
    missing = [(key, job.gpus) for job in jobs for key in job.keys]
    kinds = {plan.nodes[key].kind for key, _ in missing}
    took = _list_seconds(store, kinds, [key for key in plan.stored() if store.has(key)])
    cost, own = Cost(), set(took)
    if kinds - own:
        took |= _list_seconds(store, kinds - own, store.keys())
    for key, gpus in missing:
        kind = plan.nodes[key].kind
        seen = took.get(kind)
        if seen is None:
            cost.unknown[kind] += 1
            continue
        cost.known += 1
        cost.least += gpus * min(seen) / 3600
        cost.mean += gpus * sum(seen) / len(seen) / 3600
        cost.most += gpus * max(seen) / 3600
        cost.elsewhere |= {kind} - own
    return cost


def _list_seconds(store: Store, kinds: set[str], keys: Iterable[str]) -> dict[str, list[float]]:
    """What kept stages of some kinds took, by kind."""
    took: dict[str, list[float]] = {}
    for key in keys:
        with contextlib.suppress(StoreError, OSError):  # a value may be gone or damaged
            manifest = store.manifest(key)
            kind = manifest.get("stage", {}).get("kind")
            if kind in kinds and "wall_s" in manifest:
                took.setdefault(kind, []).append(float(manifest["wall_s"]))
    return took
