"""The checker looks at what a graph of several stages changes beside what it rounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from torch import nn

from harness.core.stage import Input, Stage, value
from harness.method import METHODS, Method
from harness.models import Model
from harness.testing import Bench
from harness.testing.checks import Finding, run_checks
from harness.testing.subjects import make_subject
from methods.parts import Format, Init, Recipe

TITLE = "leaves what it does not round"


@dataclass(frozen=True)
class Bent(Stage[Model]):
    """A parameter doubled."""

    kind: ClassVar[str] = "test-bent"
    stored: ClassVar[bool] = False
    model: Input[Model]
    parameter: str

    def run(self, work: Path) -> Model:
        result = value(self.model).fork(latent=True)
        owner, _, name = self.parameter.rpartition(".")
        module = result.network.get_submodule(owner)
        double = nn.Parameter(2 * getattr(module, name).detach(), requires_grad=False)
        setattr(module, name, double)
        return result


@dataclass(frozen=True)
class Bend(Init):
    """An init that changes one parameter, and says of no other model that weights stand for it."""

    name = "test-bend"
    parameter: str = "model.norm.weight"

    def build(self, base: Stage[Model], format: Format) -> Stage[Model]:
        return Bent(base, self.parameter)


@dataclass(frozen=True)
class Declared(Recipe):
    """A recipe that says what it changes."""

    name = "test-declared"
    changes: ClassVar[tuple[str, ...]] = ("model.nor?.weight",)


def find(method: Method, bench: Bench) -> Finding:
    findings = run_checks(make_subject(method), bench)
    return next(each for each in findings if each.check == TITLE)


@pytest.mark.parametrize(
    "parameter", ["model.norm.weight", "model.layers.1.input_layernorm.weight"]
)
def test_a_recipe_that_changes_a_norm_is_found(parameter: str, bench: Bench) -> None:
    fault = find(Recipe(init=(Bend(parameter=parameter),)), bench).fault
    assert fault and fault.startswith(f"it changes {parameter}, which is no matrix of the blocks")


def test_a_matrix_is_what_a_recipe_may_change(bench: Bench) -> None:
    layer = "model.layers.0.mlp.up_proj.weight"
    assert find(Recipe(init=(Bend(parameter=layer),)), bench).state == "passed"
    whole = METHODS.find("bf16").method
    assert isinstance(whole, Recipe)
    fault = find(replace(whole, init=(Bend(parameter=layer),)), bench).fault
    assert fault == "it changes layer model.layers.0.mlp.up_proj, which `quantized` lacks"


def test_what_is_declared_passes(bench: Bench) -> None:
    assert find(Declared(init=(Bend(),)), bench).state == "passed"
    other = Bend(parameter="model.layers.1.input_layernorm.weight")
    assert find(Declared(init=(other,)), bench).state == "FAILED"
