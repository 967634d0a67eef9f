"""The registry that methods, models, texts and evaluations are clients of."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from harness.core import registry as registries
from harness.core.errors import BitgridError, CollisionError, TextError
from harness.core.registry import Place, Registry

HERE = Place("here.py", 3)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `plugged` whose modules register with `__main__.TESTED`."""
    folder = tmp_path / "plugged"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "sound.py").write_text(
        "import __main__\nfrom harness.core.registry import find_caller\n"
        "def register(name, item):\n    __main__.TESTED.register(name, item, find_caller())\n"
        "register('sound', 1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith("plugged")]:
        del sys.modules[name]


@pytest.fixture
def tested(monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    registry: Registry[int] = Registry("thing", "test.things", package="plugged", error=TextError)
    monkeypatch.setattr(sys.modules["__main__"], "TESTED", registry, raising=False)
    return registry


def test_modules_of_the_package_are_imported_when_first_asked_for(
    package: Path, tested: Registry[int]
) -> None:
    assert "plugged.sound" not in sys.modules
    assert tested.load() == {"sound": 1}
    assert tested.files() == {package / "sound.py"}
    assert tested.find("sound") == 1
    with pytest.raises(TextError, match=r"^thing 'sond' is unknown; did you mean 'sound'\?$"):
        tested.find("sond")


def test_a_file_that_cannot_be_imported_takes_nothing_else_down(
    package: Path, tested: Registry[int]
) -> None:
    (package / "broken_one.py").write_text(
        "from plugged.sound import register\n"
        "register('early', 2)\nimport no_such_library\nregister('late', 3)\n"
    )
    (package / "ill_formed.py").write_text("register('x', \n")
    (package / "sub").mkdir()
    (package / "sub" / "__init__.py").write_text("1 / 0\n")
    assert tested.load() == {"sound": 1}  # not the half that was registered before it failed
    assert set(tested.unavailable()) == {"early", "late", "ill-formed", "sub"}
    words = (
        r"^thing 'late' is unavailable: .*broken_one.py: ModuleNotFoundError: No module named 'n"
    )
    with pytest.raises(TextError, match=words):
        tested.find("late")
    with pytest.raises(TextError, match=r"'ill-formed' is unavailable: .*SyntaxError: "):
        tested.find("ill-formed")


def test_a_name_that_two_files_claim_names_both(package: Path, tested: Registry[int]) -> None:
    (package / "second.py").write_text("from plugged.sound import register\nregister('sound', 2)\n")
    for _ in range(2):  # again, not once and then silence
        with pytest.raises(
            CollisionError, match=r"second.py:2, .*sound.py:5|sound.py:5.*second.py:2"
        ):
            tested.load()


def test_one_place_may_register_again(tested: Registry[int]) -> None:
    tested.register("one", 1, HERE)
    tested.register("one", 2, HERE)
    with pytest.raises(CollisionError, match=r"'one' is registered twice: here.py:3, here.py:4"):
        tested.register("one", 3, Place("here.py", 4))


def test_entry_points_are_loaded_and_may_be_unavailable(
    package: Path, tested: Registry[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (package.parent / "plug_good.py").write_text(
        "from plugged.sound import register\nregister('good', 4)\n"
    )
    (package.parent / "plug_bad.py").write_text("import no_such_library\nregister('bad-2', 4)\n")
    points = [EntryPoint(n, f"plug_{n}", "test.things") for n in ("good", "bad", "gone")]
    monkeypatch.setattr(registries, "entry_points", lambda group: points)
    assert tested.load() == {"sound": 1, "good": 4}
    assert set(tested.unavailable()) == {"bad", "bad-2", "gone", "plug-gone"}
    with pytest.raises(
        TextError, match=r"'bad' is unavailable: .*plug_bad.py: ModuleNotFoundError"
    ):
        tested.find("bad")


def test_a_group_without_any_entry_point_means_an_old_installation() -> None:
    """Bitgrid's own things are entry points too: without any, its metadata are old."""
    with pytest.raises(
        BitgridError, match=r"no package has an entry point in 'test\.nothing'.*pip"
    ):
        Registry("thing", "test.nothing").load()
