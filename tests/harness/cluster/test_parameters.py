"""What a site wants instead of what a launch asks sbatch for: each need, and the line for it."""

from __future__ import annotations

import pytest

from harness.cluster.parameters import ask_sbatch
from harness.cluster.profile import Request

ASKED = {"memory_gib": 10.0, "cpus": 4, "partition": "p"}
OURS = {
    "requeue": True,
    "mem": "10GB",
    "gres": "gpu:2",
    "cpus-per-task": "4",
    "nodes": "1",
    "partition": "p",
}


def without(*names: str) -> dict[str, str | bool]:
    return {name: each for name, each in OURS.items() if name not in names}


@pytest.mark.parametrize(
    ("sbatch", "asked"),
    [
        ({}, OURS),
        ({"mem": None}, without("mem")),
        ({"nodes": None, "gres": None}, without("nodes", "gres")),
        ({"mem": "0"}, {**OURS, "mem": "0"}),
        (
            {"mem-per-cpu": "{mib_per_cpu}M"},
            {**without("mem"), "mem-per-cpu": "2560M"},
        ),
        (
            {"mem_per_gpu": "{mib_per_gpu}M"},
            {**without("mem"), "mem-per-gpu": "5120M"},
        ),
        (
            {"gpus-per-node": "a100:{gpus}"},
            {**without("gres"), "gpus-per-node": "a100:2"},
        ),
        ({"gpus-per-task": "{gpus}"}, {**without("gres"), "gpus-per-task": "2"}),
        (
            {"cpus-per-gpu": "8"},
            {**without("cpus-per-task"), "cpus-per-gpu": "8"},
        ),
        (
            {"exclusive": True, "kill-on-invalid-dep": False, "comment": None},
            {**OURS, "exclusive": True, "no-kill-on-invalid-dep": True},
        ),
    ],
)
def test_a_need_of_a_site(sbatch: dict[str, str | bool | None], asked: dict[str, object]) -> None:
    found, unset = ask_sbatch(Request(**ASKED, sbatch=sbatch), gpus=2, requeue=True)
    assert found == asked
    assert unset.isdisjoint(found) and "wckey" in unset
    assert {name.replace("_", "-") for name, each in sbatch.items() if each is None} <= unset


@pytest.mark.parametrize(
    ("sbatch", "asked"),
    [
        ({}, {"gres": "gpu:8", "mem": "10GB"}),
        ({"gpus-per-node": "a100:{gpus}"}, {"gpus-per-node": "a100:8", "mem": "10GB"}),
        ({"gpus": "{gpus}"}, {"gpus": "16", "mem": "10GB"}),
        ({"mem-per-gpu": "{mib_per_gpu}M"}, {"gres": "gpu:8", "mem-per-gpu": "1280M"}),
    ],
)
def test_a_job_of_several_nodes_asks_for_what_is_of_a_node_by_node(
    sbatch: dict[str, str | bool | None], asked: dict[str, str]
) -> None:
    found, _ = ask_sbatch(Request(**ASKED, sbatch=sbatch), gpus=16, requeue=True, nodes=2)
    assert found == {**without("gres", "mem"), **asked, "nodes": "2"}


def test_a_job_without_a_gpu_asks_for_none_in_any_way() -> None:
    sbatch = {"gpus-per-node": "{gpus}", "mem-per-gpu": "40G", "cpus-per-gpu": "8"}
    for gpu, gpus in (("none", 2), ("gpu", 0)):
        found, _ = ask_sbatch(Request(**ASKED, gpu=gpu, sbatch=sbatch), gpus, requeue=False)
        assert found == {**without("gres", "requeue"), "no-requeue": True}
