"""Cuts a plan into jobs, and jobs into arrays: what is submitted, and what waits for what.

Stages that only one model needs are fused into its job, so that a model is loaded once; a stage
that several models share is a job of its own. Where the profile says that there are more GPUs than
models keep busy, a model's evaluations are several jobs. Jobs that ask for the same and wait for
the same form an array, so that forty cells are a handful of submissions. An array waits for exactly
those arrays that compute its inputs, not for everything before it. Longest chain of work first.
`benchmarks/makespan.py` measures what these rules are worth.

Pure: reads a plan and a profile, touches nothing. Not here: submission (`launch`), times measured.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from harness.cluster.profile import Profile, Request
from harness.run.plan import Plan

ENOUGH = 32  # arrays of a launch
JOBS_A_GPU = 4  # of evaluation; more of them balance better, and load the model more often


@dataclass(frozen=True)
class Job:
    """Stages that one job computes in order, and the jobs (by index) whose values it needs."""

    keys: tuple[str, ...]
    gpus: int
    nodes: int
    request: Request
    needs: frozenset[int]
    outside: frozenset[str]  # jobs of other launches that it must wait for, by SLURM id
    wave: int
    tail_h: float  # hours asked for from its start to the end of the grid


@dataclass(frozen=True)
class Array:
    """Jobs (by index) that are submitted together, and the arrays (by index) that come before."""

    jobs: tuple[int, ...]
    after: frozenset[int]
    outside: frozenset[str]
    wave: int
    gpus: int
    nodes: int
    request: Request
    parallel: int | None = None  # jobs of it at once, where the launch has a throttle


def stored_inputs(plan: Plan) -> dict[str, set[str]]:
    """The kept stages that each stage loads, seeing through those that are rebuilt in memory."""
    inputs_of: dict[str, set[str]] = {}
    for key, node in plan.nodes.items():
        inputs_of[key] = set()
        for above in node.inputs:
            inputs_of[key] |= {above} if plan.nodes[above].stored else inputs_of[above]
    return inputs_of


def jobs(
    plan: Plan,
    keys: Collection[str],
    profile: Profile,
    elsewhere: Mapping[str, str] | None = None,
    large: Collection[str] = (),
    gres: Mapping[str, str] | None = None,
) -> list[Job]:
    """The jobs that compute the kept stages `keys`, inputs before users.

    elsewhere: stages that jobs of other launches will compute, and those jobs' SLURM ids; large:
    stages that get the profile's `large` request; gres: of GPUs that hold stages, where the
    profile has several types.
    """
    homes, requests = _homes(plan, keys, profile, large, gres or {})
    inputs = stored_inputs(plan)
    members: dict[str, list[str]] = {}
    for key in plan.nodes:
        if key in homes:
            members.setdefault(homes[key], []).append(key)
    needs = {
        home: {
            homes[above] for key in own for above in inputs[key] if homes.get(above, home) != home
        }
        for home, own in members.items()
    }
    order = _levels(needs)
    index = {home: number for number, home in enumerate(order)}
    asked = {home: _together([requests[key] for key in own]) for home, own in members.items()}
    tails = _tails(order, needs, {home: _hours(request) for home, request in asked.items()})
    others = elsewhere or {}
    return [
        Job(
            keys=tuple(members[home]),
            gpus=max(plan.nodes[key].gpus for key in members[home]),
            nodes=max(plan.nodes[key].nodes for key in members[home]),
            request=asked[home],
            needs=frozenset(index[above] for above in needs[home]),
            outside=frozenset(
                others[above] for key in members[home] for above in inputs[key] if above in others
            ),
            wave=wave,
            tail_h=tails[home],
        )
        for home, wave in order.items()
    ]


def arrays(unplaced: list[Job], size: int) -> list[Array]:
    """Arrays of at most `size` jobs, in the order in which they are to be submitted.

    An array is waited for as a whole, so jobs that others wait for are spread over several arrays,
    as long as there are not more than `ENOUGH`: first those with the longest chain behind them are
    arrays of their own, then the others share what is left.
    """
    alone = math.inf
    waited = {above for job in unplaced for above in job.needs}
    for tail_h in sorted({unplaced[number].tail_h for number in waited}, reverse=True):
        if len(_cut(unplaced, size, 1, tail_h)) > ENOUGH:
            break
        alone = tail_h
    parts = ENOUGH
    while len(cut := _cut(unplaced, size, parts, alone)) > ENOUGH and parts > 1:
        parts = parts * 3 // 4
    place: dict[int, int] = {}
    left = sorted(range(len(cut)), key=lambda number: -unplaced[cut[number].jobs[0]].tail_h)
    while left:
        ready = next(number for number in left if cut[number].after <= place.keys())
        place[ready] = len(place)
        left.remove(ready)
    return [
        replace(cut[number], after=frozenset(place[above] for above in cut[number].after))
        for number in place
    ]


def _cut(unplaced: list[Job], size: int, parts: int, alone: float) -> list[Array]:
    """Arrays, inputs before users: of jobs that are alike and waited for, one each where so many
    hours or more are behind them, and up to `parts` of the others."""
    waited = {above for job in unplaced for above in job.needs}
    place: dict[int, int] = {}
    cut: list[Array] = []
    for wave in sorted({job.wave for job in unplaced}):
        for alike in _alike(unplaced, wave, place):
            alike.sort(key=lambda number: (-unplaced[number].tail_h, number))
            early = [number for number in alike if number in waited]
            longest = [number for number in early if unplaced[number].tail_h >= alone]
            rest = early[len(longest) :]
            late = [number for number in alike if number not in waited]
            for group, most in ((longest, 1), (rest, math.ceil(len(rest) / parts)), (late, size)):
                step = max(1, min(size, most))
                for start in range(0, len(group), step):
                    part = tuple(group[start : start + step])
                    first = unplaced[part[0]]
                    after = frozenset(place[above] for above in first.needs)
                    place |= dict.fromkeys(part, len(cut))
                    asked = (first.gpus, first.nodes, first.request)
                    cut.append(Array(part, after, first.outside, wave, *asked))
    return cut


def packed(unfused: list[Job], models: int) -> list[Job]:
    """Jobs that do the work of up to `models` jobs that ask for the same and wait for the same."""
    if models <= 1:
        return unfused
    place: dict[int, int] = {}
    fused: list[Job] = []
    for wave in sorted({job.wave for job in unfused}):
        for group in _alike(unfused, wave, place):
            for start in range(0, len(group), models):
                several = [unfused[number] for number in group[start : start + models]]
                first, hours = several[0], sum(_hours(job.request) for job in several)
                behind = max(job.tail_h - _hours(job.request) for job in several)
                job = Job(
                    keys=tuple(key for job in several for key in job.keys),
                    gpus=first.gpus,
                    nodes=first.nodes,
                    request=_together([job.request for job in several]),
                    needs=frozenset(place[above] for above in first.needs),
                    outside=first.outside,
                    wave=wave,
                    tail_h=hours + behind,
                )
                place |= dict.fromkeys(group[start : start + models], len(fused))
                fused.append(job)
    return fused


def _alike(unplaced: list[Job], wave: int, place: Mapping[int, int]) -> list[list[int]]:
    """Jobs of a wave that ask and wait for the same, by where their inputs come from (`place`)."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for number, job in enumerate(unplaced):
        if job.wave == wave:
            after = frozenset(place[above] for above in job.needs)
            alike = (job.gpus, job.nodes, job.request.model_dump_json(), after, job.outside)
            groups.setdefault(alike, []).append(number)
    return list(groups.values())


def _homes(
    plan: Plan,
    keys: Collection[str],
    profile: Profile,
    large: Collection[str],
    gres: Mapping[str, str],
) -> tuple[dict[str, str], dict[str, Request]]:
    """The job of each stage, by a name for it; and what the stage asks for.

    A stage joins the job of its users where they all are in one: so no job waits for itself.
    """
    wanted, inputs = set(keys), stored_inputs(plan)
    requests = {
        key: profile.request(plan.nodes[key].kind, plan.nodes[key], key in large, gres.get(key))
        for key in wanted
    }
    shares = _shares(plan, requests, profile.hoped_gpus)
    users: dict[str, set[str]] = {}
    for key in wanted:
        for above in inputs[key]:
            users.setdefault(above, set()).add(key)
    homes: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for key in reversed(plan.nodes):
        if key not in wanted:
            continue
        node = plan.nodes[key]
        kind = f"{max(node.gpus, 1)} {node.nodes} {_site(requests[key])}"
        theirs = {homes[user] for user in users.get(key, ())}
        if key in shares:
            theirs.add(f"{shares[key]} {kind}")
        home = theirs.pop() if len(theirs) == 1 else key
        if kinds.get(home, kind) != kind:  # what asks for eight GPUs is not fused with one
            home = key
        homes[key] = home
        kinds[home] = kind
    return homes, requests


def _shares(plan: Plan, requests: Mapping[str, Request], gpus: int | None) -> dict[str, str]:
    """A name for what is asked of a model and shares a job: all, or, with many GPUs, some of it."""
    asked: dict[str, dict[str, None]] = {}
    for cell in plan.cells:
        if own := dict.fromkeys(key for key in cell.roots if key in requests):
            asked.setdefault(cell.model, {}).update(own)
    parts = max(1, math.ceil(JOBS_A_GPU * (gpus or 0) / max(1, len(asked))))
    shares = {}
    for model, keys in asked.items():
        hours = [0.0] * parts
        for key in sorted(keys, key=lambda key: -_hours(requests[key])):
            part = hours.index(min(hours))
            hours[part] += _hours(requests[key])
            shares[key] = f"part {part} of {model}"
    return shares


def _site(request: Request) -> str:
    """What of a request cannot differ within a job."""
    return request.model_dump_json(exclude={"hours", "memory_gib", "cpus"})


def _together(requests: Iterable[Request]) -> Request:
    """What a job asks for that does the work of several, one after the other."""
    several = list(requests)
    cpus = [request.cpus for request in several if request.cpus]
    return several[0].model_copy(
        update={
            "hours": sum(_hours(request) for request in several),
            "memory_gib": max(request.memory_gib or 0.0 for request in several),
            "cpus": max(cpus) if cpus else None,
        }
    )


def _hours(request: Request) -> float:
    return request.hours or 0.0


def _levels(needs: Mapping[str, set[str]]) -> dict[str, int]:
    """Wave of each job, in order of waves: one more than the last wave that it needs."""
    levels: dict[str, int] = {}

    def level(home: str) -> int:
        if home not in levels:
            levels[home] = 1 + max((level(above) for above in needs[home]), default=0)
        return levels[home]

    for home in needs:
        level(home)
    return dict(sorted(levels.items(), key=lambda item: item[1]))


def _tails(
    order: Iterable[str], needs: Mapping[str, set[str]], hours: Mapping[str, float]
) -> dict[str, float]:
    """Hours from each job's start to the end of the longest chain behind it."""
    tails = dict(hours)
    for home in reversed(list(order)):
        for above in needs[home]:
            tails[above] = max(tails[above], hours[above] + tails[home])
    return tails
