"""Grids over components in components: their axes, defaults, names in tables, and errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.core.component import Component, Several
from harness.core.errors import GridError
from harness.data import Tokens
from harness.grid.points import Point, list_points
from harness.grid.reading import read_grid
from harness.method import METHODS, Method, register
from harness.models import Model


@dataclass(frozen=True)
class Grain(Component, family="test-grid-grain"):
    pass


@dataclass(frozen=True)
class Even(Grain):
    name = "even"
    bits: int = 2


@dataclass(frozen=True)
class Raw(Grain):
    name = "raw"


@dataclass(frozen=True)
class Mix(Grain):
    name = "mix"
    default: Grain = Even()
    layers: Mapping[str, Grain] = field(default_factory=dict)


@dataclass(frozen=True)
class Start(Component, family="test-grid-start"):
    pass


@dataclass(frozen=True)
class Cut(Start):
    name = "cut"
    grid: int = 20
    text: str = "pile"


@dataclass(frozen=True)
class Turn(Start):
    name = "turn"


@dataclass(frozen=True)
class Mill(Method):
    grain: Grain = Even()
    start: Several[Start] = ()

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        return model


Read = Callable[..., list[Point]]
MIX = "vary:\n  grain:\n  - name: mix\n    layers:\n      a.b: raw\n"


@pytest.fixture(scope="module", autouse=True)
def _mill() -> None:
    if "test-mill" not in METHODS.load():
        register("test-mill", Mill(), title="Mill", about="for tests of grids")


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def points(text: str, method: str = "test-mill") -> list[Point]:
        file = tmp_path / "grid.yaml"
        file.write_text(f"model: m\nevaluate: [t]\nmethod: {method}\n{text}\n")
        return list_points(*read_grid(file))

    return points


def test_an_axis_inside_of_a_component_inside_another(read: Read) -> None:
    own = "{name: test-mill, grain: {name: mix, layers: {'*.down': raw, lm_head: even}}}"
    points = read("vary: {grain.default.bits: [2, 3]}", own)
    assert [point.method for point in points] == [
        Mill(Mix(Even(bits), {"*.down": Raw(), "lm_head": Even()})) for bits in (2, 3)
    ]
    assert [point.axes for point in points] == [
        {"grain.default.bits": 2},
        {"grain.default.bits": 3},
    ]


def test_whole_lists_and_mappings_are_values_of_an_axis(read: Read) -> None:
    points = read(
        "vary:\n"
        "  start: [turn, [turn, {name: cut, grid: 3}]]\n"
        "  grain: [raw, {name: mix, layers: {a.b: {name: even, bits: 4}, c: raw}}]"
    )
    assert [point.axes for point in points] == [
        {"start": start, "grain": grain}
        for start in ("turn", "turn + cut grid=3")
        for grain in ("raw", "mix layers=(a.b=(even bits=4) c=raw)")
    ]
    assert points[-1].method == Mill(
        Mix(Even(), {"a.b": Even(4), "c": Raw()}), (Turn(), Cut(grid=3))
    )


def test_a_default_is_about_every_member_that_says_nothing_of_it(read: Read) -> None:
    """A text for all inits reaches each in a list; what stands beside a name wins."""
    start = "[turn, cut, {name: cut, text: own}]"
    text = "defaults: {start.text: ours}\nvary: {start.grid: [5, 6]}"
    assert [point.method.start for point in read(text, f"{{name: test-mill, start: {start}}}")] == [  # type: ignore[attr-defined]
        (Turn(), Cut(grid, "ours"), Cut(grid, "own")) for grid in (5, 6)
    ]
    alone = read("defaults: {start.text: ours}\nvary: {start: [[], turn, cut]}")
    assert [point.method.start for point in alone] == [(), (Turn(),), (Cut(text="ours"),)]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (
            "vary: {start: [[{name: cut, grid: 5}]], start.grid: [1, 2]}",
            4,
            "'start.grid' is said by what 'start' holds itself",
        ),
        (
            f"{MIX}      c.d: {{name: even, bits: x}}",
            9,
            "grain.layers.c.d.bits: 'x' should be a whole number",
        ),
        (
            f"{MIX}      c.d: rew",
            9,
            "grain.layers.c.d: 'rew' is unknown; did you mean 'raw'?",
        ),
        (
            "vary: {grain.default.bit: [2]}",
            4,
            "'grain.default.bit' is not a setting of any method here; did you mean "
            "'grain.default.bits'?",
        ),
        ("defaults:\n  start.text: [a]", 5, "start.text: ['a'] should be text"),
        ("defaults:\n  start: [turn, cot]", 5, "start: 'cot' is unknown; did you mean 'cut'?"),
    ],
)
def test_errors_name_file_line_and_path(read: Read, text: str, line: int, words: str) -> None:
    with pytest.raises(GridError) as caught:
        read(text)
    assert f"grid.yaml:{line}: {words}" in str(caught.value)
