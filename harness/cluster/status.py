"""How far a grid is, as the store and the queue have it: `bitgrid status`.

Read from manifests, claims, progress files and one `squeue`; works on any machine that sees the
store, whether or not the process that launched the grid is still there. A stage that was launched,
left no value and no record, and whose job is gone, is `lost`: its job was cancelled, killed or ran
out of time. Imports no torch. Not here: the store (`store`), launches' records (`launches`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.cluster import launches
from harness.cluster.launches import Launch, Placed, Queued
from harness.core.errors import ClusterError
from harness.core.store import Store
from harness.run import states
from harness.run.plan import Plan

WATCH_S = 15.0  # between two questions to the queue, of one that watches
STATES = ("done", "stale", "running", "failed", "lost", "blocked", "queued", "to do")


@dataclass(frozen=True)
class StageStatus:
    """A kept stage: its state, a word of `STATES`, why or how far, and the wave of its job."""

    key: str
    state: str
    words: str
    wave: int | None


@dataclass(frozen=True)
class View:
    """All kept stages of a plan, inputs first."""

    plan: Plan
    stages: tuple[StageStatus, ...]
    trouble: tuple[str, ...]  # why the queue is not known, launches that cannot be read

    def count(self, *states: str) -> int:
        return sum(stage.state in states for stage in self.stages)

    def of(self, *states: str) -> Iterator[StageStatus]:
        return (stage for stage in self.stages if stage.state in states)


def look(plan: Plan, store: Store) -> View:
    """The state of every kept stage of a plan."""
    past_launches, broken = launches.of_grid(store, Path(plan.path))
    placed: dict[str, tuple[Launch, Placed]] = {}
    for launch in past_launches:
        for job in launch.jobs:
            placed |= dict.fromkeys(job.keys, (launch, job))
    live, trouble = _read_queue(store, past_launches)
    known = states.find_states(plan, store)
    failed = {
        key: (store.failure(key) or {}).get("when", 0.0)
        for key, state in known.items()
        if state == "failed"
    }
    bad: set[str] = set()  # kept stages that no job will compute
    stages = []
    for key in plan.stored():
        state, words, entry = known[key], "", live.get(key)
        if state == "running":
            words = _progress(store, key)
        elif state not in ("done", "stale"):
            # A job runs again what failed before its launch, and not what it has failed itself.
            since = entry.since if entry else 0.0
            above = plan.upstream(key)[:-1]
            if failed.get(key, -1.0) >= since:
                state = "failed"
            elif any(up in bad or failed.get(up, -1.0) >= since for up in above):
                state = "blocked"
            elif entry:
                state, words = "queued", "its job is running" if entry.running else entry.reason
            elif key not in placed or placed[key][0].cluster != "slurm":
                state = "to do"
            elif trouble is None:
                state, words = "lost", _end(*placed[key])
            else:
                state = "queued"
            if state in ("failed", "blocked", "lost"):
                bad.add(key)
        wave = placed[key][1].wave if key in placed else None
        stages.append(StageStatus(key, state, words, wave))
    told = [f"the queue is not known: {trouble}"] if trouble else []
    return View(plan, tuple(stages), (*told, *broken))


def _read_queue(
    store: Store, past_launches: Iterable[Launch]
) -> tuple[dict[str, Queued], str | None]:
    """Stages that jobs in the queue will compute, by key; and why the queue is not known."""
    if not any(launch.cluster == "slurm" for launch in past_launches):
        return {}, None
    try:
        return launches.live(store, launches.queue(), strict=False), None
    except ClusterError as error:
        return {}, str(error)


def count_states(view: View) -> tuple[list[str], list[list[str]]]:
    """Stages by wave (where jobs were launched), kind and state: titles, and a line each."""
    counts: dict[tuple[int, str], Counter[str]] = {}
    for stage in view.stages:
        kind = view.plan.nodes[stage.key].kind
        counts.setdefault((stage.wave or 0, kind), Counter())[stage.state] += 1
    shown = [state for state in STATES if view.count(state)]
    launched = any(stage.wave for stage in view.stages)
    head = ["wave"] if launched else []
    rows = []
    for (wave, kind), of_state in sorted(counts.items(), key=lambda line: line[0][0]):
        first = [str(wave or "·")] if launched else []
        rows.append([*first, kind, *(str(of_state[state] or "·") for state in shown)])
    return [*head, "", *shown], rows


def details(view: View, store: Store) -> list[str]:
    """A line for each stage that runs, was lost or failed, and for each reason of staleness."""
    plan, lines = view.plan, []
    owners = store.owners() if view.count("running") else {}
    for stage in view.stages:
        named = f"{plan.nodes[stage.key].kind} {plan.nodes[stage.key].title}"
        if stage.state == "running":
            owner = owners.get(stage.key, {}).get("host", "?")
            lines.append(f"running: {named} on {owner}{stage.words and ': ' + stage.words}")
        elif stage.state == "lost":
            lines.append(f"lost: {named}: {stage.words}")
    if view.count("stale"):
        lines += [f"stale: {reason}" for reason in states.list_stale(plan, store)]
    whole = {stage.key for stage in view.of("done", "stale")}
    lines += [
        f"damaged, to be computed again: {fault}"
        for fault in states.list_damaged(plan, store, whole)
    ]
    return lines + failures(plan, store)


def failures(plan: Plan, store: Store) -> list[str]:
    """A line for each failure on record."""
    lines, failed = [], store.failed()
    for key, node in plan.nodes.items():
        record = states.standing_failure(node, key, store) if key in failed else None
        if record and not store.has(key):
            hint = f" ({record['hint']})" if record.get("hint") else ""
            lines.append(f"failed: {node.kind} {node.title}: {record['message']}{hint}")
    return lines


def _end(launch: Launch, job: Placed) -> str:
    """Why a job is gone that left no value and no record."""
    log = launch.log(job)
    if log is None and job.array not in launch.submitted:
        return "it was never submitted: the launch was cut off"
    return launches.end_of(log)


def _progress(store: Store, key: str) -> str:
    """Step, metrics and time left of a running stage, as it last said."""
    progress = store.progress(key)
    if progress is None:
        return ""
    done, total = progress["done"], progress["total"]
    numbers = "".join(f" {name} {number:.4g}" for name, number in progress["metrics"].items())
    first, since = progress["first"]
    left = ""
    if done > first and progress["when"] > since:
        gone = time.time() - progress["when"]
        rest = (progress["when"] - since) / (done - first) * (total - done) - gone
        minutes, seconds = divmod(max(0, int(rest)), 60)
        left = f", {minutes}:{seconds:02d} left"
    return f"step {done}/{total}{numbers}{left}"
