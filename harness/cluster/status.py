"""How far a grid is, as the store and the queue have it: `bitgrid status`.

Read from manifests, claims, progress files and one `squeue`; works on any machine that sees the
store, whether or not the process that launched the grid is still there. A stage that was launched,
left no value and no record, and whose job is gone, is `lost`: its job was cancelled, killed or ran
out of time. Imports no torch. Not here: the store (`store`), launches' records (`launches`).
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.cluster import launches, scheduler
from harness.cluster.ends import End, explain_end
from harness.cluster.launches import Launch, Placed
from harness.cluster.scheduler import Queued
from harness.core.errors import ClusterError
from harness.core.store import Store
from harness.run import states
from harness.run.plan import Plan

FULL = 2**25  # bytes that are left of a disk
WATCH_S = 15.0  # between two questions to the queue, of one that watches
STATES = ("done", "stale", "running", "failed", "lost", "blocked", "queued", "to do")


@dataclass(frozen=True)
class StageStatus:
    """A kept stage: its state, a word of `STATES`, why or how far, and the wave of its job."""

    key: str
    state: str
    words: str
    wave: int | None
    lacks: str = ""  # of one that was lost: see `ends.End`


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
    """The state of every kept stage of a plan, whoever launched it."""
    stored = plan.stored()
    past_launches, broken = launches.of_keys(store, stored)
    placed: dict[str, tuple[Launch, Placed]] = {}
    for launch in past_launches:
        for job in launch.jobs:
            placed |= dict.fromkeys(job.keys, (launch, job))
    live, trouble = _read_queue(store, past_launches)
    hidden = _list_hidden(past_launches)
    running = {launch.id: runner for launch in past_launches if (runner := launch.runner)}
    known = states.find_states(plan, store)
    failed = {
        key: (store.failure(key) or {}).get("when", 0.0)
        for key, state in known.items()
        if state == "failed"
    }
    bad: set[str] = set()  # kept stages that no job will compute
    stages: dict[str, StageStatus] = {}
    for key in stored:
        state, words, entry = known[key], "", live.get(key)
        if state == "running":
            words = _progress(store, key) + (entry.describe_end() if entry else "")
        elif state not in ("done", "stale"):
            # A job runs again what failed before its launch, and not what it has failed itself.
            since = entry.since if entry else 0.0
            above = plan.upstream(key)[:-1]
            if failed.get(key, -1.0) >= since:
                state = "failed"
            elif any(up in bad or failed.get(up, -1.0) >= since for up in above):
                state = "blocked"
            elif entry:
                state, words = "queued", entry.describe()
            elif key in placed and (runner := running.get(placed[key][0].id)):
                state = "queued"
                words = f"waits in the run of {runner.get('host')}:{runner.get('pid')}"
            elif key not in placed or placed[key][0].cluster != "slurm":
                state = "to do"
            elif placed[key][0].id in hidden:
                state = "queued"
                words = f"launched by {placed[key][0].owner}, whose jobs SLURM does not show here"
            else:
                state = "queued" if trouble else "lost"
            if state in ("failed", "blocked", "lost"):
                bad.add(key)
        wave = placed[key][1].wave if key in placed else None
        stages[key] = StageStatus(key, state, words, wave)
    lost = {key: placed[key] for key, stage in stages.items() if stage.state == "lost"}
    stages |= _explain_lost(plan, store, stages, lost)
    told = [f"the queue is not known: {trouble}"] if trouble else []
    return View(plan, tuple(stages.values()), (*told, *broken))


def _read_queue(
    store: Store, past_launches: Iterable[Launch]
) -> tuple[dict[str, Queued], str | None]:
    """Stages that jobs in the queue will compute, by key; and why the queue is not known."""
    names = {name for launch in past_launches if launch.cluster == "slurm" for name in launch.names}
    try:
        return launches.live(store, scheduler.queue(names=names), strict=False), None
    except ClusterError as error:
        return {}, str(error)


def _list_hidden(past_launches: Iterable[Launch]) -> set[str]:
    """Ids of launches of others whose jobs may be in the queue although SLURM does not show it."""
    others = {one.id for one in past_launches if one.cluster == "slurm" and not one.is_ours}
    return others if others and scheduler.hides_jobs() else set()


def _explain_lost(
    plan: Plan,
    store: Store,
    stages: Mapping[str, StageStatus],
    lost: Mapping[str, tuple[Launch, Placed]],
) -> dict[str, StageStatus]:
    """The same of stages whose job is gone, with the reason."""
    ids = {launch.submitted.get(job.array) for launch, job in lost.values()}
    accounts = scheduler.read_accounts({id for id in ids if id is not None})
    explained = {}
    for key, (launch, job) in lost.items():
        log = launch.log(job)
        account = accounts.get((launch.submitted.get(job.array, ""), job.task))
        try:
            end = explain_end(log, account, job.memory_gib, job.hours)
        except OSError as error:
            end = End(f"its log {log} cannot be read: {error.strerror}")
        words = end.words
        if log is None and job.array not in launch.submitted:
            words = "it was never submitted: the launch was cut off"
        words += _tell_more(plan.nodes[key].kind, end, store.progress(key))
        explained[key] = replace(stages[key], words=words, lacks=end.lacks)
    return explained


def _tell_more(kind: str, end: End, progress: Mapping[str, Any] | None) -> str:
    """How far a stage was, and what to set."""
    told = ""
    if progress is not None and "met by" not in end.words:
        told = f", at step {progress['done']}/{progress['total']}"
    if end.words.startswith("time limit of") and "met by" not in end.words:
        return f"{told}; launch goes on from its last checkpoint, or give {kind} more hours"
    if end.lacks == "memory_gib":
        return f"{told}; launch asks for `large`, or give {kind} more memory_gib"
    return told


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
    """A line for each stage that runs, was lost or failed, and for each reason of waiting and of
    staleness."""
    plan, lines = view.plan, []
    owners = store.owners() if view.count("running") else {}
    for stage in view.stages:
        named = f"{plan.nodes[stage.key].kind} {plan.nodes[stage.key].title}"
        if stage.state == "running":
            owner = owners.get(stage.key, {}).get("host", "?")
            lines.append(f"running: {named} on {owner}{stage.words and ': ' + stage.words}")
        elif stage.state == "lost":
            lines.append(f"lost: {named}: {stage.words}")
    if view.count("lost") and (free := shutil.disk_usage(store.root).free) < FULL:
        lines.append(
            f"disk: {store.root} has {free / 2**20:.0f} MiB left, so jobs may not have kept why "
            "they ended: free space there, then launch"
        )
    waiting = Counter(stage.words for stage in view.of("queued") if stage.words)
    lines += [f"queued: {number} stages: {words}" for words, number in waiting.items()]
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
