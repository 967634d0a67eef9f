"""The registry of methods."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.core.errors import BitgridError, GridError
from harness.data import Tokens, calibration
from harness.method import METHODS, Method, register
from harness.models import Model, pretrained


@dataclass(frozen=True)
class Toy(Method):
    shape: int = 1
    flag: bool = False

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        return model


def test_registered_methods_are_found_with_their_source() -> None:
    register("test-toy", Toy(), title="Toy", about="a toy", fixed=("shape",))
    assert METHODS.find("test-toy").source == __file__
    assert "test-toy" in METHODS.load()
    with pytest.raises(BitgridError, match="registered twice"):
        register("test-toy", Toy(flag=True), title="Toy", about="another")
    with pytest.raises(BitgridError, match="which it does not have; did you mean"):
        register("test-toy-2", Toy(), title="Toy", about="a toy", fixed=("shap",))
    with pytest.raises(GridError, match=r"'bitdistill' is unknown; did you mean 'bitdistiller'\?"):
        METHODS.find("bitdistill")


def test_the_four_presets_are_points_of_one_space() -> None:
    from methods.recipe import Recipe

    for name in ("bf16", "rtn", "awq-clip", "llm-qat", "bitdistiller"):
        assert type(METHODS.find(name).method) is Recipe


@dataclass(frozen=True)
class Reading(Toy):
    """Has the fields that name tokens."""

    text: str = "testbed"
    sequences: int = 4
    length: int = 32


def test_fields_that_name_tokens_are_what_a_method_reads() -> None:
    base = pretrained("testbed-small")
    assert Toy().calibration(base) is None
    named = Reading(sequences=5).calibration(base)
    assert named is not None and named == calibration(base, "testbed", 5, 32)
