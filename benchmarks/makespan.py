"""How long does a grid take on a cluster, against the least that any order could take?

    python -m benchmarks.makespan experiments/paper-general-llama2-7b.yaml --gpus 8 32 64
    python -m benchmarks.makespan experiments/objective.yaml --preemptions 0.02 --checkpoint 0.5

Replays the arrays that `bitgrid launch` would submit on a virtual cluster, event by event: nodes of
eight GPUs; SLURM's order (arrays as submitted, `afterany` on whole arrays, later jobs started early
only where no node is held back for an earlier one); stages whose length is drawn around what they
take on a 7B model; jobs that are preempted, nodes that break, and what is lost since the last
checkpoint. The bound is the larger of the longest chain of stages and all work over all GPUs: no
order can do better, and one with whole nodes for training often cannot reach it.

Grids are planned with a stand-in: the testbed's model in place of the one on the hub, and data sets
that are named but never fetched. A plan's shape depends on neither.
Not here: time limits (a job that meets one is requeued as if preempted), queueing behind others.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from harness import models
from harness.cluster import waves
from harness.cluster.profile import Profile
from harness.data import hub
from harness.grid import expand as grids
from harness.models import sources
from harness.run import plan as plans
from harness.run.plan import Plan

# Hours on A100-80G, LLaMA-2-7B in the paper's setting; generation and training (8 GPUs, 4 epochs)
# of 8000 sequences of 1024 tokens. Not measured: from FLOPs at 40 % of the peak, rounded up. A
# task's name goes before its kind.
HOURS = {
    "generate": 3.0,
    "confidence": 0.1,
    "teacher-states": 0.3,
    "clip-search": 0.3,
    "scale-search": 0.2,
    "train": 1.2,
    "Apply": 0.5,
    "round-blocks": 0.5,
    "perplexity": 0.05,
    "mmlu": 1.2,
    "hellaswag": 0.4,
    "gsm8k": 1.5,
    "humaneval": 0.4,
    "humaneval_instruct": 0.4,
    "lm-eval": 0.1,
}
SAVING = {"train", "generate", "teacher-states"}  # kinds of stages that go on from a checkpoint
SEQUENCES = 8000
NODE = 8  # GPUs
TESTED = 500  # jobs that the scheduler looks at in one pass: SLURM's bf_max_job_test


@dataclass(frozen=True)
class Virtual:
    """A cluster. Rates are per GPU-hour, times in hours."""

    gpus: int
    failures: float = 0.0  # of nodes
    preemptions: float = 0.0  # of jobs
    repair: float = 1.0
    requeue: float = 0.05  # from the end of an attempt until the job may start again
    start: float = 0.03  # from a job's start to its first stage: imports, the plan, a model's load
    checkpoint: float = 0.5  # period
    save: float = 0.01  # that a checkpoint takes
    parallel: int = 10**6  # jobs of an array at once


@dataclass(frozen=True)
class Work:
    """A stage within a job: hours that it takes, and whether it goes on from a checkpoint."""

    hours: float
    saves: bool = False


@dataclass
class Task:
    """A job in the virtual queue. `done`: stages that are kept; `saved`: hours of the next one."""

    array: int
    gpus: int
    limit: float
    work: Sequence[Work]
    done: int = 0
    saved: float = 0.0
    started: float = 0.0
    node: int | None = None
    attempts: int = 0

    def left(self, cluster: Virtual) -> float:
        """Hours of an attempt that nothing interrupts."""
        rest = [self._rest(place, cluster) for place in range(self.done, len(self.work))]
        return cluster.start + sum(rest)

    def interrupt(self, spent: float, cluster: Virtual) -> float:
        """Keep what an attempt of `spent` hours finished or saved; hours of work that it gained."""
        gained, spent = 0.0, spent - cluster.start
        while self.done < len(self.work) and spent >= self._rest(self.done, cluster):
            spent -= self._rest(self.done, cluster)
            gained += self.work[self.done].hours - self.saved
            self.done, self.saved = self.done + 1, 0.0
        if spent > 0 and self.done < len(self.work) and self.work[self.done].saves:
            kept = math.floor(spent / (cluster.checkpoint + cluster.save)) * cluster.checkpoint
            self.saved, gained = self.saved + kept, gained + kept
        return gained

    def _rest(self, place: int, cluster: Virtual) -> float:
        stage = self.work[place]
        hours = stage.hours - (self.saved if place == self.done else 0.0)
        periods = max(0, math.ceil(hours / cluster.checkpoint) - 1) if stage.saves else 0
        return hours + periods * cluster.save


@dataclass
class Result:
    """What became of a replay: hours, GPU-hours."""

    makespan: float = 0.0
    busy: float = 0.0  # GPU-hours that jobs held
    useful: float = 0.0  # of them in work that was kept
    interruptions: int = 0
    lost: float = 0.0  # GPU-hours of interrupted attempts that were not kept
    ends: list[float] = field(default_factory=list)  # by task


def replay(
    tasks: Sequence[Task], after: Sequence[frozenset[int]], cluster: Virtual, seed: int = 0
) -> Result:
    """Run tasks, in the order of their priority, whose arrays wait for the arrays in `after`."""
    return _Replay(list(tasks), after, cluster, random.Random(seed)).run()


class _Replay:
    def __init__(
        self,
        tasks: list[Task],
        after: Sequence[frozenset[int]],
        cluster: Virtual,
        chance: random.Random,
    ) -> None:
        self.tasks, self.after, self.cluster, self.chance = tasks, after, cluster, chance
        self.now, self.result = 0.0, Result(ends=[0.0] * len(tasks))
        sizes = [NODE] * (cluster.gpus // NODE) + [cluster.gpus % NODE] * bool(cluster.gpus % NODE)
        if (most := max(task.gpus for task in tasks)) > max(sizes):
            raise ValueError(f"a job asks for {most} GPUs, and no node has so many")
        self.sizes, self.free = sizes, list(sizes)
        self.up = [True] * len(sizes)
        self.held: list[set[int]] = [set() for _ in sizes]  # tasks by node
        self.left = Counter(task.array for task in tasks)
        self.running: Counter[int] = Counter()
        self.queue: list[int] = []  # eligible tasks, by priority
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.count = itertools.count()

    def run(self) -> Result:
        for node in range(len(self.sizes)):
            self._break_later(node)
        self._release({array for array in self.left if not self.after[array]})
        self._schedule()
        while any(self.left.values()):
            self.now, _, act = heapq.heappop(self.events)
            act()
            while self.events and self.events[0][0] == self.now:
                heapq.heappop(self.events)[2]()
            self._schedule()
        self.result.makespan = max(self.result.ends)
        return self.result

    def _at(self, hours: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (self.now + hours, next(self.count), act))

    def _release(self, arrays: set[int]) -> None:
        """Let the tasks of arrays queue."""
        self.queue += [n for n, task in enumerate(self.tasks) if task.array in arrays]
        self.queue.sort()

    def _schedule(self) -> None:
        """Start what can start: in order, past a job that waits only if no node is kept for it."""
        kept: set[int] = set()
        started: set[int] = set()
        for number in self.queue[:TESTED]:
            task = self.tasks[number]
            if self.running[task.array] >= self.cluster.parallel:
                continue
            if task.gpus and not any(self.free):
                continue
            fit = (n for n, free in enumerate(self.free) if self.up[n] and free >= task.gpus)
            place = next((n for n in fit if n not in kept or not task.gpus), None)
            if place is not None:
                self._start(number, place)
                started.add(number)
            elif (soon := self._soonest(task.gpus, kept)) is not None:
                kept.add(soon)
        if started:
            self.queue = [number for number in self.queue if number not in started]

    def _soonest(self, gpus: int, kept: set[int]) -> int | None:
        """The node where, by time limits, so many GPUs are free first."""
        times: dict[int, float] = {}
        for node in range(len(self.sizes)):
            if node in kept or not self.up[node] or self.sizes[node] < gpus:
                continue
            free, times[node] = self.free[node], self.now
            ends = sorted((t.started + t.limit, t.gpus) for t in map(self._task, self.held[node]))
            while free < gpus:
                times[node], given = ends.pop(0)
                free += given
        return min(times, key=lambda node: times[node], default=None)

    def _task(self, number: int) -> Task:
        return self.tasks[number]

    def _start(self, number: int, node: int) -> None:
        task, cluster = self.tasks[number], self.cluster
        task.started, task.node, task.attempts = self.now, node, task.attempts + 1
        self.free[node] -= task.gpus
        self.held[node].add(number)
        self.running[task.array] += 1
        attempt, hours = task.attempts, task.left(cluster)
        rate = cluster.preemptions * task.gpus
        until = self.chance.expovariate(rate) if rate else math.inf
        if until < hours:
            self._at(until, lambda: self._interrupt(number, attempt))
        else:
            self._at(hours, lambda: self._end(number, attempt))

    def _stop(self, number: int) -> float:
        """Take a task off its node; the GPU-hours that it held."""
        task = self.tasks[number]
        assert task.node is not None
        self.free[task.node] += task.gpus
        self.held[task.node].discard(number)
        self.running[task.array] -= 1
        task.node = None
        held = (self.now - task.started) * task.gpus
        self.result.busy += held
        return held

    def _end(self, number: int, attempt: int) -> None:
        task = self.tasks[number]
        if task.node is None or task.attempts != attempt:
            return
        self._stop(number)
        rest = sum(stage.hours for stage in task.work[task.done :]) - task.saved
        self.result.useful += rest * task.gpus
        self.result.ends[number] = self.now
        self.left[task.array] -= 1
        if not self.left[task.array]:
            ready = {
                array
                for array, before in enumerate(self.after)
                if task.array in before and not any(self.left[one] for one in before)
            }
            self._release(ready)

    def _interrupt(self, number: int, attempt: int) -> None:
        task = self.tasks[number]
        if task.node is None or task.attempts != attempt:
            return
        held = self._stop(number)
        gained = task.interrupt(self.now - task.started, self.cluster) * task.gpus
        self.result.useful += gained
        self.result.lost += held - gained
        self.result.interruptions += 1
        self._at(self.cluster.requeue, lambda: self._requeue(number))

    def _requeue(self, number: int) -> None:
        self.queue.append(number)
        self.queue.sort()

    def _break_later(self, node: int) -> None:
        if rate := self.cluster.failures * self.sizes[node]:
            self._at(self.chance.expovariate(rate), lambda: self._break(node))

    def _break(self, node: int) -> None:
        for number in sorted(self.held[node]):
            self._interrupt(number, self.tasks[number].attempts)
        self.up[node] = False
        self._at(self.cluster.repair, lambda: self._mend(node))

    def _mend(self, node: int) -> None:
        self.up[node] = True
        self._break_later(node)


def stand_in(path: Path, changes: Mapping[str, object] | None = None) -> Plan:
    """The plan of a grid file, planned without its model and data sets; `changes` to its keys."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small"
        shutil.copytree(sources.find_source("testbed").folder(), small)
        config = json.loads((small / "config.json").read_text())
        config |= {"max_position_embeddings": 4096}
        (small / "config.json").write_text(json.dumps(config))
        place = Path(folder) / path.name
        said = {"base": str(path.resolve()), "model": str(small), **(changes or {})}
        place.write_text(json.dumps(said))
        teacher = mock.patch("methods.recipe.another", return_value=models.pretrained(str(small)))
        with mock.patch.object(hub, "_commit", lambda name: f"commit-of-{name}"), teacher:
            return plans.build(grids.load(place, allow_code_execution=True))


def usual(plan: Plan, key: str) -> float:
    """Hours that a stage takes on the whole: the longer, the more sequences."""
    stage, kind = plan.nodes[key].stage, plan.nodes[key].kind
    hours = HOURS.get(str(stage.get("task")), HOURS[kind])
    if kind == "generate":
        return hours * stage["count"] / SEQUENCES
    if kind == "train":
        steps, batch = stage["training"]["steps"], stage["training"]["batch_size"]
        sources = plan.upstream(stage["tokens"]["stage"])
        counts = sum(plan.nodes[source].stage.get("count", 0) for source in sources)
        seen = counts * stage["training"]["epochs"] if steps is None else steps * batch
        return hours * seen / (4 * SEQUENCES)
    return hours


def drawn(plan: Plan, spread: float, seed: int) -> dict[str, float]:
    """Hours of each kept stage: the usual ones times lognormal noise of mean 1."""
    chance = random.Random(seed)
    return {
        key: usual(plan, key) * chance.lognormvariate(-(spread**2) / 2, spread)
        for key in plan.stored()
    }


def bounds(plan: Plan, hours: Mapping[str, float], gpus: int) -> tuple[float, float]:
    """Hours below which no order can come.

    First the larger of the longest chain of stages and all GPU-hours over all GPUs. Then, closer:
    stages before each of which `head` hours of others lie, and behind each `tail`, take no less
    than head + tail + their GPU-hours over all GPUs; and of those that need a whole node, some node
    runs as many as there are stages a node, rounded up, and be it the shortest.
    """
    inputs, stored = waves.stored_inputs(plan), plan.stored()
    heads, tails = dict.fromkeys(stored, 0.0), dict.fromkeys(stored, 0.0)
    for key in stored:
        heads[key] = max((heads[up] + hours[up] for up in inputs[key]), default=0.0)
    for key in reversed(stored):
        for up in inputs[key]:
            tails[up] = max(tails[up], hours[key] + tails[key])
    chain = max(heads[key] + hours[key] for key in stored)
    work = {key: hours[key] * plan.nodes[key].gpus for key in stored}
    plain = max(chain, sum(work.values()) / gpus)
    close = plain
    corners = {(heads[key], tails[key]) for key in stored}
    corners |= {(head, 0.0) for head, _ in corners} | {(0.0, tail) for _, tail in corners}
    for head, tail in corners:
        inside = [key for key in stored if heads[key] >= head and tails[key] >= tail]
        close = max(close, head + tail + sum(work[key] for key in inside) / gpus)
        whole = sorted(hours[key] for key in inside if plan.nodes[key].gpus == NODE)
        rounds = math.ceil(len(whole) / max(1, gpus // NODE))
        close = max(close, head + tail + sum(whole[:rounds]))
    return plain, close


def queued(
    plan: Plan, profile: Profile, hours: Mapping[str, float]
) -> tuple[list[Task], list[frozenset[int]]]:
    """The tasks of a launch in the order of their priority, and what each array waits for."""
    found = waves.packed(waves.jobs(plan, plan.stored(), profile), profile.models_per_job)
    arrays = waves.arrays(found, 1000)
    tasks = [
        Task(
            number,
            found[job].gpus,
            found[job].request.hours or 0.0,
            [Work(hours[key], plan.nodes[key].kind in SAVING) for key in found[job].keys],
        )
        for number, array in enumerate(arrays)
        for job in array.jobs
    ]
    return tasks, [array.after for array in arrays]


def main() -> None:
    parser = argparse.ArgumentParser(description="makespan of grids on a virtual cluster")
    parser.add_argument("grids", type=Path, nargs="+")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 32, 64])
    parser.add_argument("--seeds", type=int, default=10, help="runs to average over")
    parser.add_argument("--spread", type=float, default=0.2, help="of stages' logarithmic lengths")
    for name in ("failures", "preemptions"):
        parser.add_argument(f"--{name}", type=float, default=0.0, help="per GPU-hour")
    parser.add_argument("--checkpoint", type=float, default=0.5, help="period, hours")
    given = parser.parse_args()
    print(
        f"{'grid':28}{'GPUs':>5}{'jobs':>6}{'arrays':>7}{'hours':>8}{'bound':>8}{'ratio':>7}"
        f"{'closer':>8}{'worst':>7}{'breaks':>8}{'lost GPU-h':>12}{'of all':>8}"
    )
    for path in given.grids:
        plan = stand_in(path)
        for gpus in given.gpus:
            cluster = Virtual(gpus, given.failures, given.preemptions, checkpoint=given.checkpoint)
            print(row(path.stem, plan, cluster, given.seeds, given.spread), flush=True)


def row(name: str, plan: Plan, cluster: Virtual, seeds: int, spread: float) -> str:
    """A line of the table: means over seeds, and the worst ratio."""
    profile = Profile(array_parallelism=10**6, gpus=cluster.gpus)
    results, least = [], []
    for seed in range(seeds):
        hours = drawn(plan, spread, seed)
        tasks, after = queued(plan, profile, hours)
        results.append(replay(tasks, after, cluster, seed))
        least.append(bounds(plan, hours, cluster.gpus))
    plain, close = (
        [result.makespan / low[which] for result, low in zip(results, least, strict=True)]
        for which in (0, 1)
    )
    mean = statistics.fmean
    lost, busy = mean(r.lost for r in results), mean(r.busy for r in results)
    interruptions = mean(r.interruptions for r in results)
    return (
        f"{name:28}{cluster.gpus:5}{len(tasks):6}{len(after):7}"
        f"{mean(r.makespan for r in results):8.2f}{mean(low[0] for low in least):8.2f}"
        f"{mean(plain):7.3f}{mean(close):8.3f}{max(close):7.3f}"
        f"{interruptions:8.1f}{lost:12.2f}{lost / busy:8.2%}"
    )


if __name__ == "__main__":
    main()
