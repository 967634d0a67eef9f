"""Import directions, and what may not be imported at all. Read from the source, not from a run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FROM_METHODS = {
    "harness.api",  # the list for authors, which methods of libraries keep to
    "harness.core.checked",
    "harness.core.component",
    "harness.core.errors",
    "harness.core.halting",
    "harness.core.seeds",
    "harness.core.stage",
    "harness.data",
    "harness.method",
    "harness.models",
    "harness.models.dry_run",
    "harness.models.rehearsal",
    "harness.models.tensors",
}


FROM_REPORTS = {
    "harness.core.errors",
    "harness.core.lineage",
    "harness.core.model_names",
    "harness.core.record_lines",
    "harness.core.records",
    "harness.core.report_options",
}
REPORTS = {  # a room of reports: those that it may import
    "reading": {"reading"},
    "numbers": {"reading", "numbers"},
    "plots": {"reading", "numbers", "plots"},
    "pages": {"reading", "numbers", "pages"},
}


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = str(node.module)
            modules = {f"{module}.{alias.name}" for alias in node.names}
            names |= {name if _is_module(name) else module for name in modules}
    return names


def _is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


def _files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def _places(name: str, folders: tuple[str, ...] = ("harness", "methods", "reports")) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in _files(folder)
        if any(i == name or i.startswith(f"{name}.") for i in _imports(path))
    }


def test_the_engine_never_names_a_method() -> None:
    assert _places("methods", ("harness", "reports")) == set()


def test_methods_use_the_narrow_interface_only() -> None:
    for path in _files("methods"):
        for name in _imports(path):
            if name.startswith("harness"):
                assert name in FROM_METHODS, f"{path}: {name}"


def test_reports_read_rows_only() -> None:
    for path in _files("reports"):
        for name in _imports(path):
            assert name.split(".")[0] not in ("torch", "lm_eval", "transformers"), f"{path}: {name}"
            assert not name.startswith("harness") or name in FROM_REPORTS, f"{path}: {name}"


@pytest.mark.parametrize("room", REPORTS)
def test_reports_go_one_way(room: str) -> None:
    for path in _files(f"reports/{room}"):
        for name in _imports(path):
            if name.startswith("reports."):
                assert name.split(".")[1] in REPORTS[room], f"{path}: {name}"


def test_single_doors() -> None:
    assert _places("lm_eval") == {
        "harness/compat.py",
        "harness/evaluation/lm_eval_model.py",
        "harness/evaluation/lm_eval_run.py",
    }
    assert _places("submitit") == {"harness/cluster/compat.py", "harness/cluster/submit.py"}


def test_no_device_is_written_into_code_and_nothing_is_pickled() -> None:
    for folder in ("harness", "methods", "reports"):
        for path in _files(folder):
            text = path.read_text()
            assert ".cuda()" not in text, path
            assert "torch.load(" not in text, path
            assert not _imports(path) & {"pickle", "dill", "cloudpickle"}, path


@pytest.mark.parametrize(
    "module",
    [
        "harness.cli.main",
        "harness.run.export",
        "harness.run.plan",
        "harness.cluster.submit",
        "reports",
    ],
)
def test_verbs_that_read_rows_do_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    run = [sys.executable, "-c", code]
    assert subprocess.run(run, cwd=ROOT, capture_output=True, text=True).stdout.strip() == "False"


ROOMS = (
    "core",
    "config",
    "models",
    "data",
    "method",
    "testing",
    "evaluation",
    "grid",
    "run",
    "cluster",
    "cli",
)
CLIENTS = ("testbed",)  # found by entry points: nothing imports them


def test_rooms_are_imported_one_way_and_clients_by_nobody() -> None:
    for path in _files("harness"):
        room = path.relative_to(ROOT).with_suffix("").parts[1]
        for name in _imports(path):
            imported = (*name.split("."), "")[1] if name.startswith("harness.") else ""
            if room in CLIENTS:
                continue
            assert imported not in CLIENTS, f"{path}: {name}"
            if room in ROOMS and imported in ROOMS:
                assert ROOMS.index(imported) <= ROOMS.index(room), f"{path}: {name}"


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Imports inside functions count: they hide a circle and do not undo it."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in _files("harness")
    }
    imports = {name: _imports(path) & set(modules) for name, path in modules.items()}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            for each in sorted(imports[name] - {name}):
                visit(each, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())
