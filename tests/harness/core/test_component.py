"""A component's declared identity, and two classes that claim one."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness.config.settings import configure
from harness.core.checked import Checked
from harness.core.component import Component
from harness.core.errors import BitgridError


class Colour(Component, family="test-colour"):
    pass


@dataclass(frozen=True)
class Red(Colour):
    name = "red"
    depth: int = 1


def test_identity_is_family_and_name() -> None:
    assert Red().identity_name() == "test-colour/red"
    assert Red.family_name() == "test-colour"
    assert Colour.choices()["red"] is Red
    assert Red.choices() == {"red": Red}
    assert Red().siblings() == Colour.choices()


def test_a_name_is_not_inherited() -> None:
    @dataclass(frozen=True)
    class Darker(Red):
        pass

    assert Darker not in Colour.choices().values()
    with pytest.raises(BitgridError, match=r"Darker in .*test_component.py: give it a `name`"):
        Darker().identity_name()


def test_two_classes_of_one_name_are_refused_and_the_first_stays() -> None:
    place = r"in \S*test_component.py"
    with pytest.raises(
        BitgridError, match=rf"'red' is defined twice: Red {place}, .*Other {place}"
    ):

        class Other(Colour):
            name = "red"

    assert Colour.choices()["red"] is Red


def test_the_same_class_may_be_defined_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "reloaded_colour.py").write_text(
        "from dataclasses import dataclass\n"
        "from harness.core.component import Component\n"
        "class Shade(Component, family='test-shade'): pass\n"
        "@dataclass(frozen=True, slots=True)\n"
        "class Grey(Shade):\n"
        "    name = 'grey'\n"
        "    depth: int = 1\n"
    )
    module = importlib.import_module("reloaded_colour")
    first = module.Grey
    assert module.Shade.choices() == {"grey": first}  # not the class without slots
    importlib.reload(module)
    assert module.Shade.choices() == {"grey": module.Grey} and module.Grey is not first
    (tmp_path / "copied_colour.py").write_text((tmp_path / "reloaded_colour.py").read_text())
    with pytest.raises(BitgridError, match=r"reloaded_colour.py, Grey in .*copied_colour.py"):
        importlib.import_module("copied_colour")
    del sys.modules["reloaded_colour"]


def test_a_family_is_named() -> None:
    with pytest.raises(BitgridError, match=r"Nameless .* names its family"):

        class Nameless(Component):
            pass


class Shape(Component, family="test-component-shape"):
    pass


@dataclass(frozen=True)
class Square(Shape):
    name = "square"
    side: int = 1


@dataclass(frozen=True)
class Box(Square):
    name = "box"
    depth: int = 2


@dataclass(frozen=True)
class Room(Checked):
    shape: Shape = field(default_factory=Square)


def test_a_member_that_others_derive_from_is_still_chosen_by_its_name() -> None:
    """A plug-in's objective may be a kind of KL; `objective: kl` goes on being KL."""
    for given, expected in [
        ({"shape": "square"}, Room(Square())),
        ({"shape": {"name": "square", "side": 3}}, Room(Square(3))),
        ({"shape": "box"}, Room(Box())),
        ({"shape": {"name": "box", "side": 4, "depth": 5}}, Room(Box(4, 5))),
    ]:
        assert configure(Room(), given) == expected
