"""The checker looks at what attachments do on experts that lie in one parameter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from torch import Tensor
from transformers import PreTrainedModel

from harness.models import Attachment, change_inputs, matrices
from harness.testing import Bench
from harness.testing.checks import run_checks
from harness.testing.subjects import find_subject, make_subject
from methods.parts import Recipe

REGISTERED = ["activations", "static-activations", "kv-cache", "online-hadamard"]
TITLE = "rounds experts, or refuses them"


@dataclass(frozen=True)
class Unpacking(Attachment):
    """Takes whatever is read for (B, T, I), which what experts read is not."""

    name = "test-unpacking"

    @property
    def label(self) -> str:
        return "U"

    def attach(self, network: PreTrainedModel) -> None:
        change_inputs(self, network, matrices(network).values())

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        rows, tokens, width = read.shape
        return read.view(rows, tokens, width)


@dataclass(frozen=True)
class Drifting(Unpacking):
    """Changes what experts read by how often they have read."""

    name = "test-drifting"

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        CALLS.append(layer)
        return read * (1 + len(CALLS) / 10) if "experts" in layer else read


CALLS: list[str] = []


@pytest.mark.parametrize(
    ("attachment", "words"),
    [
        (Unpacking(), "layer model.layers.0.mlp.experts.gate_up_proj (E x O x I: 4 x 128 x 64): "),
        (Drifting(), "of a model with experts: saved and loaded, its logits differ by "),
    ],
)
def test_a_fault_on_experts_is_said(attachment: Attachment, words: str, bench: Bench) -> None:
    findings = run_checks(make_subject(Recipe(attach=(attachment,))), bench)
    (failed,) = (each for each in findings if each.state == "FAILED")
    assert failed.check == TITLE
    assert failed.fault is not None and failed.fault.startswith(words)


@pytest.mark.parametrize(
    "name", ["activations", "static-activations", "kv-cache", "online-hadamard"]
)
def test_none_that_is_registered_is_refused_for_experts(name: str, bench: Bench) -> None:
    method, other = find_subject(f"attachment/{name}", bench).method, bench.on("experts")
    made = other.compute(method.build(other.base, 0))
    assert [each.name for each in made.attachments] == [name]
    assert any(each.experts for each in matrices(made.network).values())


def test_all_are_tried() -> None:
    registered = {name for name in Attachment.choices() if not name.startswith("test-")}
    assert registered == set(REGISTERED)
