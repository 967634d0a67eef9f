"""Plans hold by content: found again at another place, and never where anything behind them
differs."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.core.definitions import ROOT
from harness.core.store import Store
from harness.grid.expand import load
from harness.run import basis, remembering
from harness.run import plan as plans
from harness.run.plan import Plan
from harness.run.remembering import remember, remembered
from tests.support.toys import toy_grid

GRID = """# Does it move?
base: ../base.yaml
method: rtn
evaluate: [testbed-ppl]
"""
BASE = "model: testbed-small\n"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    return _write(tmp_path / "one" / "grids" / "moves.yaml")


def _write(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    path.write_text(GRID)
    (path.parent.parent / "base.yaml").write_text(BASE)
    return path


def _build(path: Path) -> Plan:
    return plans.build(load(path, allow_code_execution=True))


def test_a_copy_has_the_plan_that_would_be_made_of_it(
    tmp_path: Path, store: Store, grid: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember(_build(grid), store)
    copy = _write(tmp_path / "two" / "copies" / "other.yaml")
    monkeypatch.chdir(copy.parent)
    monkeypatch.setattr(remembering.plans, "build", None)
    found = remembered(Path("other.yaml"), store)
    monkeypatch.undo()
    assert found == _build(copy)
    assert str(grid.parent) not in json.dumps(vars(found), default=vars)
    known = {each.path for each in remembering.list_known(store)}
    assert known == {str(grid), str(copy)}  # so that no `gc` takes what the copy needs
    grid.unlink()
    assert remembered(copy, store) == found


def _edit(path: str, text: str = "\n# and more\n") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / path
        with file.open("a") as opened:
            opened.write(text)

    return change


@pytest.mark.parametrize(
    "change",
    [
        _edit("two/grids/moves.yaml"),
        _edit("two/base.yaml"),
        _edit("two/base.yaml", "dtype: float32\n"),
        lambda folder: (folder / "two/base.yaml").unlink(),
    ],
    ids=["grid", "comment of a base", "base", "no base"],
)
def test_a_copy_that_differs_has_no_plan(
    tmp_path: Path, store: Store, change: Callable[[Path], None]
) -> None:
    plan = _toy_plan(_write(tmp_path / "one" / "grids" / "moves.yaml"), "../base.yaml")
    remember(plan, store)
    copy = _write(tmp_path / "two" / "grids" / "moves.yaml")
    assert remembered(copy, store) is not None
    change(tmp_path)
    shutil.rmtree(store.root / "plans")  # its own, too
    remember(plan, store)
    assert remembered(copy, store) is None


def _toy_plan(path: Path, *bases: str) -> Plan:
    """A plan of toys, whose grid builds on files."""
    text = path.read_text()
    grid = toy_grid(path)
    path.write_text(text)
    files = (path, *(path.parent / base for base in bases))
    return plans.build(plans.replace(grid, files=files))


@pytest.fixture
def toy(tmp_path: Path, store: Store) -> Path:
    """A grid whose plan is kept."""
    path = tmp_path / "toy.yaml"
    remember(plans.build(toy_grid(path)), store)
    return path


def test_a_touched_file_is_the_same(toy: Path, store: Store) -> None:
    os.utime(toy, ns=(1, 1))
    assert remembered(toy, store) is not None
    toy.write_text(toy.read_text().replace("toys", "toyz"))  # of the same size
    assert remembered(toy, store) is None


def test_another_mirror_is_another_plan(
    toy: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITGRID_MIRROR", str(tmp_path))
    assert remembered(toy, store) is None


def test_other_packages_are_another_plan(
    toy: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site" / "more-1.0.dist-info").mkdir(parents=True)
    assert remembered(toy, store) is None
    (tmp_path / "site" / "more-1.0.dist-info").rmdir()
    assert remembered(toy, store) is not None
    with monkeypatch.context() as patch:
        patch.setattr(sys, "version", "3.0")
        assert remembered(toy, store) is None


def test_an_entry_point_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = tmp_path / "more-1.0.dist-info" / "entry_points.txt"
    points.parent.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    before = basis.describe_packages()
    points.write_text("[bitgrid.methods]\nmine = mine\n")
    assert basis.describe_packages() != before


def test_a_file_of_the_project_that_came_or_went_is_seen(
    toy: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = basis.provenance.list_sources()
    monkeypatch.setattr(
        basis.provenance, "list_sources", lambda: [*sources, tmp_path / "methods" / "new.py"]
    )
    assert remembered(toy, store) is None


def test_another_copy_of_the_project_counts_by_its_content(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy, clone, root = tmp_path / "toy.yaml", tmp_path / "clone", basis.ROOT
    plan = remember(plans.build(toy_grid(toy)), store)
    for each in plan.basis.files:
        if each.root == ":code":
            (clone / each.name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(root / each.name, clone / each.name)
    sources = [clone / path.relative_to(root) for path in basis.provenance.list_sources()]
    monkeypatch.setattr(basis, "ROOT", clone)
    monkeypatch.setattr(basis.provenance, "list_sources", lambda: sources)
    found = remembered(toy, store)
    assert found is not None and found.nodes == plan.nodes
    assert all(Path(each.path).is_file() for each in found.basis.files)
    assert not any(each.path.startswith(f"{root}/") for each in found.basis.files)
    _edit("methods/rtn.py")(clone)
    assert remembered(toy, store) is None


def test_a_word_of_the_grid_that_becomes_a_path_is_seen(
    store: Store, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_folder, tmp_path / "models" / "mine")
    path = tmp_path / "mine.yaml"
    path.write_text("# Is it mine?\nmodel: models/mine\nmethod: bf16\nevaluate: [testbed-ppl]\n")
    remember(_build(path), store)
    assert remembered(path, store) is not None
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert remembered(path, store) is None  # it would be a model of the hub
    monkeypatch.chdir(tmp_path)
    assert remembered(path, store) is not None
    config = tmp_path / "models" / "mine" / "config.json"
    config.write_text(config.read_text() + " ")
    assert remembered(path, store) is None  # its digest would be another


def test_a_folder_of_data_beside_the_grid_keeps_its_plan_there(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "mirror").mkdir()
    path = tmp_path / "grid.yaml"
    grid = toy_grid(path)
    file = grid.file.model_copy(update={"mirror": "mirror"})
    remember(plans.build(plans.replace(grid, file=file)), store)
    assert remembered(path, store) is not None
    (tmp_path / "copy").mkdir()
    shutil.copy(path, tmp_path / "copy")
    assert remembered(tmp_path / "copy" / "grid.yaml", store) is None


def test_a_plan_whose_stages_name_the_other_place_stays_there(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "one" / "grid.yaml"
    path.parent.mkdir()
    plan = plans.build(toy_grid(path, labels=(str(path.parent),)))
    remember(plan, store)
    (tmp_path / "two").mkdir()
    shutil.copy(path, tmp_path / "two")
    assert remembered(path, store) == plan
    assert remembered(tmp_path / "two" / "grid.yaml", store) is None


def test_a_package_is_looked_for_where_it_would_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, text in (("one", "x = 1\n"), ("two", "x = 1\n"), ("three", "x = 2\n")):
        (tmp_path / place / "my_plugin").mkdir(parents=True)
        (tmp_path / place / "my_plugin" / "__init__.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "one")
    module = importlib.import_module("my_plugin")
    root = basis._find_root(Path(str(module.__file__)), basis._find_packages())
    assert root == ("my_plugin", "__init__.py")
    each = basis._watch(Path(str(module.__file__)), *root)
    monkeypatch.delitem(sys.modules, "my_plugin")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "two")])
    assert basis._look_again(each, tmp_path) is not None
    monkeypatch.setattr(sys, "path", [str(tmp_path / "three")])
    assert basis._look_again(each, tmp_path) is None


def test_the_projects_own_record_on_the_path_is_no_other_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a checkout that was installed: pip leaves one there, which `python -m` finds."""
    before = basis.describe_packages()
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "bitgrid.egg-info").mkdir()
    (tmp_path / "bitgrid-0.1.0.dist-info").mkdir()
    assert basis.describe_packages() == before
    (tmp_path / "bitgrid_binary-0.1.0.dist-info").mkdir()
    assert basis.describe_packages() != before


def test_a_finished_plan_is_shown_without_torch(tmp_path: Path, store: Store) -> None:
    """Kept by a process of its own too: in this one, tests have registered what others lack."""
    toy, copy = tmp_path / "toy.yaml", tmp_path / "copy.yaml"
    _run_python(
        "from pathlib import Path",
        "from harness.core.store import Store",
        "from harness.run.remembering import remember",
        "from tests.support.toys import toy_plan",
        f"remember(toy_plan(Path({str(toy)!r})), Store(Path({str(store.root)!r})))",
    )
    shutil.copy(toy, copy)
    said = _run_python(
        "import sys; from harness.cli.main import main",
        f"assert main(['plan', {str(copy)!r}, '--store', {str(store.root)!r}]) == 0",
        "assert not {'torch', 'transformers', 'lm_eval', 'pandas'} & set(sys.modules)",
    )
    assert said.startswith("copy: Do toys work?")


def _run_python(*lines: str) -> str:
    """What a process of its own prints."""
    run = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout
