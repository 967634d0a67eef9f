"""Settings by dotted path, components by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import pytest
from pydantic import PositiveInt

from harness.config.settings import configure, is_redefined, list_settings
from harness.core.component import Component
from harness.core.errors import BitgridError, FormatError, SettingError
from harness.method import Method


@dataclass(frozen=True)
class Shape(Component, family="test-shape"):
    pass


@dataclass(frozen=True)
class Round(Shape):
    name = "round"
    size: int = 1
    radius: float = 0.5
    colour: str = "none"


@dataclass(frozen=True)
class Square(Shape):
    name = "square"
    size: int = 2
    side: float = 1.0
    colour: str = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.colour == "x":
            raise FormatError("colour 'x' is none")
        if self.size > 9:
            raise FormatError(f"size {self.size} is more than 9")


@dataclass(frozen=True)
class Cut(Shape):
    corners: int
    size: int = 1
    colour: str = "none"
    name = "cut"


@dataclass(frozen=True)
class Loop:
    steps: int = 10
    lr: float = 1e-3


@dataclass(frozen=True)
class Toy(Method):
    shape: Shape = Round()
    other: Shape | None = None
    loop: Loop = Loop()
    second: Loop | None = None
    range: tuple[float, float] = (0.0, 1.0)
    flag: bool = False


def test_parts_wholes_and_numbers() -> None:
    found = configure(Toy(), {"loop.lr": "2e-4", "loop.steps": 5, "flag": True, "shape.radius": 2})
    assert found == Toy(shape=Round(radius=2.0), loop=Loop(5, 2e-4), flag=True)
    assert isinstance(found.shape, Round)
    assert isinstance(found.shape.radius, float)


@pytest.mark.parametrize(
    "given",
    [
        {"shape": "square", "shape.side": 3.0, "shape.size": 4},
        {"shape.size": 4, "shape.side": 3.0, "shape": "square"},
        {"shape": {"name": "square", "side": 3, "size": 4}},
        {"shape": {"name": "square", "side": 3}, "shape.size": 4},
    ],
)
def test_a_component_by_name_in_any_order(given: dict[str, object]) -> None:
    assert configure(Toy(), given).shape == Square(4, 3.0)


def test_a_new_component_keeps_what_means_the_same_in_the_old() -> None:
    held = Toy(shape=Round(size=7, colour="red"))
    # The colour is one in both; a size of another default is another size.
    assert configure(held, {"shape": "square"}).shape == Square(size=2, colour="red")
    assert configure(held, {"shape": "cut", "shape.corners": 3}).shape == Cut(3, 7, "red")
    assert configure(held, {"shape": "round"}).shape == Round(size=7, colour="red")
    assert configure(held, {"shape": "square", "shape.size": 3}).shape == Square(3, colour="red")
    with pytest.raises(SettingError, match="colour 'x'"):
        configure(Toy(shape=Round(colour="x")), {"shape": "square"})


@dataclass(frozen=True)
class Paint(Component, family="test-paint"):
    layers: int
    colour: str = "red"
    gloss: float = 0.5


@dataclass(frozen=True)
class Red(Paint):
    name = "red"
    layers: int = 2


@dataclass(frozen=True)
class Blue(Red):
    name = "blue"
    colour: str = "blue"


@dataclass(frozen=True)
class Dark(Blue):
    name = "dark"
    gloss: float = 0.5  # as it was


@dataclass(frozen=True)
class Wall(Paint):
    name = "wall"
    layers: int = 3
    coats: int = 2


@dataclass(frozen=True)
class Roof(Paint):
    name = "roof"
    layers: int = 1
    coats: int = 1


@dataclass(frozen=True)
class Painted(Method):
    paint: Paint = Red()


@pytest.mark.parametrize(
    ("paint", "before", "redefined"),
    [
        (Red(), Red(), set()),
        (Blue(), Red(), {"colour"}),
        (Blue(), Blue(), {"colour"}),
        (Dark(), Red(), {"colour"}),
        (Red(), Blue(), set()),  # as the family has it
        # Layers the family leaves open; coats are each one's own.
        (Wall(), Roof(), {"coats"}),
        (Roof(), Wall(), {"coats"}),
        (Wall(), Wall(), set()),
        (Wall(), Red(), set()),  # which has none
    ],
)
def test_what_a_component_redefines(paint: Paint, before: Paint, redefined: set[str]) -> None:
    found = {
        field
        for field in ("layers", "colour", "gloss", "coats")
        if is_redefined(Painted(paint=paint), f"paint.{field}", Painted(paint=before))
    }
    assert found == redefined


def test_what_is_no_component_redefines_nothing() -> None:
    assert not is_redefined(Toy(), "loop.lr", Toy(loop=Loop(lr=2.0)))
    assert not is_redefined(Toy(), "nothing.here", Toy())


def test_an_absent_component_can_be_chosen_and_left_out() -> None:
    chosen = configure(Toy(), {"other": "square"})
    assert chosen.other == Square()
    assert configure(chosen, {"other": None}).other is None


def test_what_a_component_needs_may_come_in_the_same_mapping() -> None:
    assert configure(Toy(), {"shape": {"name": "cut", "corners": "3"}}).shape == Cut(3)
    # Kept, and only then changed: the colour that is kept alone would be refused.
    given = {"shape": {"name": "square", "colour": "red"}}
    assert configure(Toy(shape=Round(colour="x")), given).shape == Square(colour="red")
    assert configure(Toy(), {"second": {"lr": 1}}).second == Loop(lr=1.0)


def test_nothing_given_changes_nothing() -> None:
    assert configure(Toy(), {}) == Toy()


@pytest.mark.parametrize(
    ("given", "path", "words"),
    [
        ({"shap": "round"}, "shap", "did you mean 'shape'"),
        ({"shape": "sqare"}, "shape", "did you mean 'square'"),
        ({"shape.radus": 1}, "shape.radus", "did you mean 'shape.radius'"),
        ({"loop.steps": "many"}, "loop.steps", "'many' should be a whole number"),
        ({"loop.steps": 2.5}, "loop.steps", "loop.steps: 2.5 should be a whole number"),
        ({"shape": {"name": "square", "size": "x"}}, "shape.size", "'x' should be a whole number"),
        (
            {"shape": {"name": "square", "size": [2, 2]}},
            "shape.size",
            r"\[2, 2\] should be a whole",
        ),
        ({"shape": {"name": "square", 3: 1}}, "shape.3", "'shape.3' is unknown"),
        ({"shape": ["square"]}, "shape", r"\['square'\] is unknown; did you mean 'square'"),
        ({"shape": "cut"}, "shape.corners", "shape: key 'corners' is missing"),
        ({"other": {"size": 3}}, "other", "there is none yet: give its 'name', of cut, round, sq"),
        ({"other.size": 3}, "other", "there is none yet"),
        ({"second": {"steps": "x"}}, "second.steps", "'x' should be a whole number"),
        ({"second": 3}, "second", "second: 3 should be a mapping"),
        ({"loop.lr": math.nan}, "loop.lr", r"loop.lr: \.nan should be a finite number"),
        ({"loop": {"lr": -math.inf}}, "loop.lr", r"loop.lr: -\.inf should be a finite number"),
        ({"shape": {"name": "square", "side": math.inf}}, "shape.side", "a finite number"),
        ({"range": [1, math.nan]}, "range", "a finite number"),
        ({"range": [1]}, "range", r"range: \[1\] should be longer"),
        ({"loop.steps": 10**23}, "loop.steps", "steps: 10+ should fit in 64 bits"),
        ({"flag.part": 1}, "flag", "has no parts"),
        ({"shape": "square", "shape.size": 11}, "shape", "more than 9"),
    ],
)
def test_errors_carry_the_path_and_the_nearest_name(
    given: dict[str, object], path: str, words: str
) -> None:
    with pytest.raises(SettingError, match=words) as caught:
        configure(Toy(), given)
    assert caught.value.path == path


def test_every_path_is_listed() -> None:
    paths = dict(list_settings(Toy()))
    assert {"shape", "shape.size", "shape.radius", "loop.lr", "other", "flag"} <= set(paths)
    assert paths["loop.steps"] == 10


@dataclass(frozen=True)
class Careful(Method):
    """Types that are constraints, a component of one class, and several components in a list."""

    count: PositiveInt = 1
    way: Literal["up", "down"] = "up"
    square: Square = Square()
    again: Square = Square()
    shapes: tuple[Shape, ...] = ()


def test_a_method_is_checked_when_it_is_made() -> None:
    with pytest.raises(SettingError, match="count: 0 should be more than 0") as caught:
        Careful(count=0)
    assert caught.value.path == "count"
    with pytest.raises(SettingError, match="way: 'left' should be 'up' or 'down'"):
        Careful(way="left")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"shapes: 3 should be a list"):
        Careful(shapes=3)  # type: ignore[arg-type]
    # A number is of its field's type, so that equal settings are equal.
    assert repr(Round(radius=1).radius) == "1.0"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"count": 0}, "count: 0 should be more than 0"),
        ({"count": "x"}, "count: 'x' should be a whole number"),
        ({"way": "left"}, "way: 'left' should be 'up' or 'down'"),
        ({"square": "round"}, "square: 'round' is unknown; choices: square"),
        ({"again.size": 10}, "again: size 10 is more than 9"),
        ({"shapes": ["square", "sqare"]}, "shapes: 'sqare' is unknown; did you mean 'square'"),
        ({"shapes": [{"name": "round", "sise": 3}]}, "did you mean .shapes.size.?"),
    ],
)
def test_the_same_types_check_what_a_grid_says(given: dict[str, object], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        configure(Careful(), given)


def test_a_list_of_components_and_a_component_without_a_choice() -> None:
    shapes = ["round", {"name": "square", "side": 3}]
    given = {"shapes": shapes, "square.size": 5, "again": {"name": "square", "size": 4}}
    assert configure(Careful(), given) == Careful(
        square=Square(size=5), again=Square(size=4), shapes=(Round(), Square(side=3.0))
    )


def test_a_component_that_is_defined_late_can_be_chosen() -> None:
    assert configure(Toy(), {"shape": "square"}).shape == Square()

    @dataclass(frozen=True)
    class Late(Shape):
        name = "late"

    assert configure(Toy(), {"shape": "late"}).shape == Late()


def test_a_component_without_a_name_of_its_own_is_not_mistaken_for_another() -> None:
    @dataclass(frozen=True)
    class Wider(Round):
        pass

    assert Toy(shape=Wider()).shape == Wider()
    assert configure(Toy(shape=Wider()), {"flag": True}).shape == Wider()
    with pytest.raises(BitgridError, match="give it a `name` of its own"):
        configure(Toy(shape=Wider()), {"shape.radius": 1})
