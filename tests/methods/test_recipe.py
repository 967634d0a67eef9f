"""Recipes whose inits are several, applied in turn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.config.settings import configure
from harness.core.errors import BitgridError
from harness.core.stage import Stage, closure
from harness.method import METHODS
from harness.models import Pretrained, pretrained
from methods.quantization.awq import AWQ, Scaled
from methods.quantization.formats import IntAsym
from methods.quantization.inits import Clip, Clipped, NoInit
from methods.quantization.rotation import Hadamard, Rotated
from methods.recipe import Recipe
from methods.training.objectives import BlockMSE

CLIP = Clip(text="testbed", sequences=2, length=32)
FORMAT = IntAsym(bits=2, group_size=32)


@pytest.fixture
def base(tiny_folder: Path) -> Pretrained:
    return pretrained(str(tiny_folder), "float32")


def _kinds(stage: Stage) -> list[str]:
    return [each.kind for each in closure([stage])]


def test_each_init_is_applied_to_what_the_one_before_gives(base: Pretrained) -> None:
    recipe = Recipe(FORMAT, init=(Hadamard(), CLIP))
    rounded = recipe.build(base, 0)
    assert _kinds(rounded)[-4:] == ["packed", "clip-search", "clipped", "round"] or (
        _kinds(rounded).index("rotated") < _kinds(rounded).index("clip-search")
    )
    names = [(step.name, type(step.origin), type(step.before)) for step in recipe.steps(base, 0)]
    assert names == [
        ("full precision", Pretrained, Pretrained),
        ("hadamard + clip", Rotated, Clipped),
    ]


def test_one_alone_is_what_it_was(base: Pretrained) -> None:
    """A list of one has the key of the init alone, and none in a list changes nothing."""
    alone = configure(METHODS.find("rtn").method, {"init": "hadamard"})
    listed = configure(METHODS.find("rtn").method, {"init": ["none", "hadamard"]})
    assert alone.build(base, 0).key == listed.build(base, 0).key
    assert Recipe(FORMAT, init=(NoInit(),)).build(base, 0).key == Recipe(FORMAT).build(base, 0).key


def test_what_rescales_may_not_follow_what_was_chosen(base: Pretrained) -> None:
    awq = AWQ(text="testbed", sequences=2, length=32)
    fits = Recipe(FORMAT, init=(Hadamard(), awq)).build(base, 0)
    assert any(isinstance(stage, Scaled) for stage in closure([fits]))
    for init in ((CLIP, Hadamard()), (replace(awq, clip=True), CLIP), (CLIP, CLIP)):
        with pytest.raises(BitgridError, match=r"changes what the model computes, so nothing may"):
            Recipe(FORMAT, init=init).build(base, 0)


def test_turned_hidden_states_are_not_compared_with_the_teachers(base: Pretrained) -> None:
    method = configure(METHODS.find("bitdistiller").method, {"init": "hadamard"})
    assert isinstance(method, Recipe)
    with pytest.raises(BitgridError, match="init 'hadamard' turns the student's"):
        replace(method, objective=BlockMSE()).build(base, 0)
