"""Waves: random plans are cut so that nothing is missing, doubled, too early or misplaced."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cluster import submit as launch
from harness.cluster import waves
from harness.cluster.profile import Profile, Request
from harness.cluster.waves import Array, Job
from harness.run.plan import CellInfo, Node, Plan

PROFILE = Profile(
    hours=0.5,
    stages={
        "Apply": Request(partition="big", hours=2),
        "train": Request(memory_gib=64, cpus=8, hours=12),
    },
    large=Request(constraint="a100-80g"),
)


def node(
    kind: str = "Score", inputs: tuple[str, ...] = (), stored: bool = True, gpus: int = 1
) -> Node:
    return Node(kind, kind, stored, inputs, "code", {}, gpus, 4.0, 1.0)


def plan_of(nodes: Mapping[str, Node], models: Mapping[str, tuple[str, ...]]) -> Plan:
    """models: by key, the keys of their scores."""
    cells = tuple(
        CellInfo(model, "toy", model, {}, 0, "toy", model, scores)
        for model, scores in models.items()
    )
    return Plan("toy", "/toy.yaml", "?", "toy", {}, None, cells, dict(nodes))


@dataclass(frozen=True)
class Case:
    plan: Plan
    keys: frozenset[str]
    elsewhere: dict[str, str]
    large: frozenset[str]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any graph of stages, some of them models with scores, some done, some queued elsewhere."""
    nodes: dict[str, Node] = {}
    models: dict[str, tuple[str, ...]] = {}

    def add(kind: str, *inputs: str, stored: bool = True) -> str:
        more = draw(st.sets(st.sampled_from(sorted(nodes)), max_size=2)) if nodes else set()
        key = f"{kind}{len(nodes)}"
        gpus = draw(st.sampled_from([0, 1, 1, 8]))
        nodes[key] = node(kind, tuple(dict.fromkeys([*inputs, *sorted(more)])), stored, gpus)
        return key

    for _ in range(draw(st.integers(1, 8))):
        key = add(draw(st.sampled_from(["Search", "Apply", "train"])), stored=draw(st.booleans()))
        if draw(st.booleans()):
            scores = [add("Score", key) for _ in range(draw(st.integers(1, 3)))]
            models[key] = tuple(scores)
    plan = plan_of(nodes, models)
    missing = set(draw(st.sets(st.sampled_from(sorted(nodes)), min_size=1)))
    missing = {key for key in plan.stored() if missing & set(plan.upstream(key))}
    away = {key for key in missing if draw(st.booleans()) and draw(st.booleans())}
    large = draw(st.sets(st.sampled_from(sorted(nodes)), max_size=2))
    return Case(
        plan, frozenset(missing - away), {key: f"job of {key}" for key in away}, frozenset(large)
    )


def cut(case: Case, gpus: int | None = None) -> list[Job]:
    profile = PROFILE.model_copy(update={"gpus": gpus})
    return waves.jobs(case.plan, case.keys, profile, case.elsewhere, case.large)


def loads(plan: Plan, key: str) -> set[str]:
    """The kept stages that one loads; by walking, unlike the code under test."""
    found, queue = set(), list(plan.nodes[key].inputs)
    while queue:
        above = queue.pop()
        if plan.nodes[above].stored:
            found.add(above)
        else:
            queue += plan.nodes[above].inputs
    return found


def check(case: Case, jobs: list[Job]) -> None:
    """What holds for the jobs of any plan, packed or not."""
    home = {key: number for number, job in enumerate(jobs) for key in job.keys}
    assert sorted(key for job in jobs for key in job.keys) == sorted(case.keys)
    for number, job in enumerate(jobs):
        for place, key in enumerate(job.keys):
            for above in loads(case.plan, key):
                if above in case.elsewhere:
                    assert case.elsewhere[above] in job.outside
                elif above in case.keys:
                    assert above in job.keys[:place] or home[above] in job.needs
        for above in job.needs:
            assert above < number and jobs[above].wave < job.wave  # so there is no cycle
        sizes = {max(case.plan.nodes[key].gpus, 1) for key in job.keys}
        assert len(sizes) == 1
        assert job.gpus == max(case.plan.nodes[key].gpus for key in job.keys)
        apply = {case.plan.nodes[key].kind == "Apply" for key in job.keys}
        assert len(apply) == 1 and (job.request.partition == "big") == apply.pop()
        assert (job.request.constraint == "a100-80g") == bool(case.large & set(job.keys))
        hours = {"Apply": 2, "train": 12}
        asked = sum(hours.get(case.plan.nodes[key].kind, 0.5) for key in job.keys)
        assert job.request.hours == pytest.approx(asked)


@settings(deadline=None, max_examples=60)
@given(cases(), st.sampled_from([None, 1, 64]))
def test_each_missing_stage_is_in_one_job_after_its_inputs(case: Case, gpus: int | None) -> None:
    check(case, cut(case, gpus))


@settings(deadline=None, max_examples=60)
@given(cases())
def test_stages_that_only_one_model_needs_are_in_its_job(case: Case) -> None:
    """Where all stages ask for the same. The others are jobs of their own."""
    plan = plan_of(
        {key: node("Score", n.inputs, n.stored) for key, n in case.plan.nodes.items()},
        {cell.model: cell.scores for cell in case.plan.cells},
    )
    jobs = waves.jobs(plan, case.keys, Profile())
    home = {key: number for number, job in enumerate(jobs) for key in job.keys}
    model_of = {score: cell.model for cell in plan.cells for score in cell.scores}
    below: dict[str, set[str]] = {key: {key} for key in case.keys}
    for key in case.keys:
        for above in set(plan.upstream(key)) & case.keys:
            # Through what is missing alone: a finished stage needs its inputs no more.
            if _reaches(plan, case.keys, key, above):
                below[above].add(key)
    for key in case.keys:
        ends = {user for user in below[key] if below[user] == {user}}
        needed_by = {model_of[user] for user in below[key] if user in model_of}
        if len(needed_by) == 1 and ends <= set(model_of):
            assert {home[key]} == {home[end] for end in ends}


def _reaches(plan: Plan, keys: Collection[str], key: str, above: str) -> bool:
    return key == above or any(
        _reaches(plan, keys, up, above) for up in loads(plan, key) if up in keys
    )


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(2, 4))
def test_packed_jobs_keep_all_that(case: Case, models: int) -> None:
    single = cut(case, 2)
    packed = waves.packed(single, models)
    check(case, packed)
    assert len(packed) <= len(single)
    assert waves.packed(single, 1) == single


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(1, 3))
def test_arrays_hold_each_job_once_and_wait_for_its_inputs(case: Case, size: int) -> None:
    jobs = waves.packed(cut(case, 2), size)
    arrays = waves.arrays(jobs, size)
    place = {number: index for index, array in enumerate(arrays) for number in array.jobs}
    assert sorted(n for array in arrays for n in array.jobs) == list(range(len(jobs)))
    for index, array in enumerate(arrays):
        assert 1 <= len(array.jobs) <= size
        assert all(above < index for above in array.after)
        for number in array.jobs:
            job = jobs[number]
            assert {place[above] for above in job.needs} == array.after
            assert (job.outside, job.wave) == (array.outside, array.wave)
            assert (job.gpus, job.request) == (array.gpus, array.request)


@settings(deadline=None, max_examples=60)
@given(cases())
def test_the_tail_is_the_longest_chain_behind_a_job(case: Case) -> None:
    jobs = cut(case)

    def longest(number: int) -> float:
        after = [n for n, job in enumerate(jobs) if number in job.needs]
        return (jobs[number].request.hours or 0) + max(map(longest, after), default=0.0)

    for number, job in enumerate(jobs):
        assert job.tail_h == pytest.approx(longest(number))


def paper(models: int, gpus: int = 8) -> Plan:
    """A clip search that all share, a training a model, two scores each through a rebuilt model."""
    nodes = {"search": node("Search")}
    scores = {}
    for m in range(models):
        nodes[f"train{m}"] = node("train", ("search",), gpus=gpus)
        nodes[f"round{m}"] = node("Round", (f"train{m}",), stored=False)
        scores[f"round{m}"] = (f"ppl{m}", f"task{m}")
        nodes |= {key: node("Score", (f"round{m}",)) for key in scores[f"round{m}"]}
    return plan_of(nodes, scores)


def test_forty_cells_are_a_handful_of_submissions() -> None:
    plan = paper(40, gpus=1)
    jobs = waves.jobs(plan, plan.stored(), Profile())
    assert [job.keys for job in jobs[:2]] == [("search",), ("train0", "ppl0", "task0")]
    assert len(jobs) == 41
    found = waves.arrays(jobs, 1000)
    assert [(len(a.jobs), a.after, a.wave) for a in found] == [
        (1, frozenset(), 1),
        (40, frozenset({0}), 2),
    ]
    assert [len(a.jobs) for a in waves.arrays(jobs, 16)] == [1, 16, 16, 8]


def test_training_on_eight_gpus_is_not_fused_with_evaluation_on_one() -> None:
    plan = paper(3)
    jobs = waves.jobs(plan, plan.stored(), Profile())
    assert {(job.gpus, job.keys) for job in jobs} == {
        (1, ("search",)),
        *((8, (f"train{m}",)) for m in range(3)),
        *((1, (f"ppl{m}", f"task{m}")) for m in range(3)),
    }


def test_evaluations_wait_for_few_trainings_as_long_as_that_takes_few_submissions() -> None:
    for models, size in ((3, 1), (100, 8)):
        plan = paper(models)
        jobs = waves.jobs(plan, plan.stored(), Profile())
        found = waves.arrays(jobs, 1000)
        assert len(found) <= waves.ENOUGH
        trainings = [array for array in found if array.gpus == 8]
        assert max(len(array.jobs) for array in trainings) == size
        for array in found:
            assert len(array.after) == (array.wave > 1)


def test_many_gpus_get_several_jobs_of_a_model_and_few_get_one() -> None:
    plan = paper(4, gpus=1)
    nodes = dict(plan.nodes)
    nodes |= {f"more{m}": node("train", (f"round{m}",)) for m in range(4)}
    models = {cell.model: (*cell.scores, f"more{cell.model[-1]}") for cell in plan.cells}
    plan = plan_of(nodes, models)
    for gpus, parts in ((1, 1), (2, 2), (64, 3)):
        jobs = waves.jobs(plan, plan.stored(), PROFILE.model_copy(update={"gpus": gpus}))
        found = [job for job in jobs if any("0" in key for key in job.keys)]
        ends = [set(job.keys) - {"train0"} for job in found]
        assert len([end for end in ends if end]) == parts
        if parts == 2:  # the longest alone: 12 hours against two halves
            assert {"more0"} in ends and {"ppl0", "task0"} in ends


def test_a_model_with_another_request_than_its_scores_is_a_job_before_theirs() -> None:
    plan = plan_of(
        {"model": node("Apply"), "score": node(inputs=("model",))}, {"model": ("score",)}
    )
    first, second = waves.jobs(plan, plan.stored(), PROFILE)
    assert (first.keys, first.request.partition) == (("model",), "big")
    assert (second.keys, second.request.partition) == (("score",), None)


def test_who_waits_for_a_model_does_not_wait_for_its_scores() -> None:
    nodes = {
        "base": node("Apply"),
        "base score": node(inputs=("base",)),
        "tuned": node("Apply", ("base",)),
        "tuned score": node(inputs=("tuned",)),
    }
    plan = plan_of(nodes, {"base": ("base score",), "tuned": ("tuned score",)})
    jobs = waves.jobs(plan, plan.stored(), Profile())
    assert {job.keys for job in jobs} == {
        ("base",),
        ("base score",),
        ("tuned", "tuned score"),
    }


def test_a_score_that_needs_what_others_made_of_its_model_makes_no_circle() -> None:
    nodes = {
        "model": node("Apply"),
        "data": node("Search", ("model",)),
        "score": node(inputs=("model", "data")),
        "other": node(inputs=("data",)),
    }
    plan = plan_of(nodes, {"model": ("score",), "data": ("other",)})
    jobs = waves.jobs(plan, plan.stored(), Profile())
    assert [job.wave for job in jobs] == sorted(job.wave for job in jobs)
    assert {job.keys for job in jobs} == {("model",), ("data",), ("score",), ("other",)}


def test_jobs_are_packed_along_their_inputs() -> None:
    """Of 6 trainings and their 6 evaluations four fit by packing pairs, not by packing one wave."""
    plan = paper(6)
    jobs = waves.jobs(plan, [key for key in plan.stored() if key != "search"], Profile())
    packed = waves.packed(jobs, 3)
    assert [len(job.keys) for job in packed] == [3, 3, 6, 6]
    assert packed[0].request.hours == 3.0 and packed[0].tail_h == 3.0 + 2.0
    assert [len(job.keys) for job in launch._fit(jobs, 4)[0]] == [3, 3, 6, 6]
    first, left = launch._fit(jobs, 1)
    assert [len(job.keys) for job in first] == [6] and left == 1


def test_the_longest_work_goes_first() -> None:
    nodes = {
        "short": node("Search"),
        "long": node("train"),
        "s1": node(inputs=("short",)),
        "s2": node(inputs=("long",)),
    }
    plan = plan_of(nodes, {"short": ("s1",), "long": ("s2",)})
    found = waves.arrays(waves.jobs(plan, plan.stored(), PROFILE), 10)
    jobs = waves.jobs(plan, plan.stored(), PROFILE)
    assert [jobs[a.jobs[0]].keys[0] for a in found] == ["long", "short"]


def test_an_array_knows_what_it_asks_for() -> None:
    plan = paper(1)
    found = waves.arrays(waves.jobs(plan, plan.stored(), PROFILE, large={"train0"}), 10)
    train = next(a for a in found if a.gpus == 8)
    asked = (train.request.memory_gib, train.request.cpus, train.request.constraint)
    assert isinstance(train, Array) and asked == (64, 8, "a100-80g")
