"""Pointers in docstrings lead somewhere: every name in backticks is one that exists.

A name resolves to something in its own module, to a module of the project, to a definition of the
project (`Model.fork`), to a verb or key that users write, or to a library that is imported.
"""

from __future__ import annotations

import ast
import builtins
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("harness", "methods", "reports", "benchmarks")
NAME = re.compile(r"(?<!`)`([A-Za-z_][\w]*(?:\.[A-Za-z_]\w*)*)(?:\(\))?`(?!`)")
# What users write, and what other programs call their own.
WORDS = {
    *("bitgrid", "squeue", "sbatch", "sacct", "scancel", "scontrol", "srun", "torchrun", "pip"),
    *("git", "lm_eval", "meta", "with", "raise", "if", "try", "import"),
    # Of libraries: lm-eval's, transformers', and modules of networks.
    *(
        "exp_mean",  # a value of a row's field
        "TaskManager",
        "task_index",
        "cfg",
        "tags",
        "code_eval",
        "from_pretrained",
        "datasets",
        "mlp",
    ),
}


@cache
def _modules() -> dict[str, Path]:
    """Every module and package of the project by its dotted name."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _identifiers(path: Path) -> frozenset[str]:
    """All names of a module's code: variables, attributes, arguments, keywords, imports, texts."""
    names: set[str] = set()
    docstrings = {id(node) for node, _ in _docstrings(path)}
    for node in ast.walk(_tree(path)):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.keyword(arg=str(name)) | ast.alias(name=name):
                names |= set(name.split("."))
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                names |= set(re.findall(r"\w+", text))
    return frozenset(names)


@cache
def _definitions() -> dict[str, frozenset[str]]:
    """Top-level names of the whole project; of a class also its attributes and methods."""
    found: dict[str, set[str]] = {}
    for path in _modules().values():
        for node in _tree(path).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                inside = found.setdefault(node.name, set())
                for child in ast.walk(node):
                    if isinstance(child, ast.FunctionDef):
                        inside.add(child.name)
                    elif isinstance(child, ast.Name | ast.Attribute):
                        inside.add(child.id if isinstance(child, ast.Name) else child.attr)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        found.setdefault(target.id, set())
    return {name: frozenset(inside) for name, inside in found.items()}


@cache
def _keys_and_verbs() -> frozenset[str]:
    """Words of grids, profiles and the command, and names of methods and components."""
    text = "\n".join(
        path.read_text()
        for pattern in ("experiments/**/*.yaml", "docs/*.md", "harness/testbed/tasks/*.yaml")
        for path in ROOT.glob(pattern)
        if path.name != "log.md"
    )
    return frozenset(re.findall(r"[A-Za-z_]\w*", text))


def _docstrings(path: Path) -> Iterator[tuple[ast.Constant, str]]:
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            constant = first.value if isinstance(first, ast.Expr) else None
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                yield constant, constant.value


def _resolves(name: str, module: str, path: Path) -> bool:
    first, _, rest = name.partition(".")
    if rest == "py":
        return any(each.name == name for each in _modules().values())
    if name in _modules() or first in WORDS or hasattr(builtins, first):
        return True
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    below = f"{module}." if path.name == "__init__.py" else f"{package}."
    for whole in (name, f"{package}.{name}"):
        if whole in _modules():
            return True
        owner, _, leaf = whole.rpartition(".")
        if rest and owner in _modules():
            return leaf in _identifiers(_modules()[owner])
    if any(each.startswith(below) and each.endswith(f".{name}") for each in _modules()):
        return True
    if first in _identifiers(path):
        return True
    if first in _definitions() and (not rest or rest.partition(".")[0] in _definitions()[first]):
        return True
    if first in _keys_and_verbs():
        return True
    return bool(rest) and importlib.util.find_spec(first) is not None


@pytest.mark.parametrize("module", sorted(_modules()))
def test_names_in_backticks_exist(module: str) -> None:
    path = _modules()[module]
    for _, text in _docstrings(path):
        for name in NAME.findall(text):
            assert _resolves(name, module, path), f"{path.relative_to(ROOT)}: `{name}`"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_rule_is_cited_by_a_number_that_is_written_nowhere(folder: str) -> None:
    for path in sorted((ROOT / folder).rglob("*.py")):
        assert not re.search(r"\b[Rr]ule \d", path.read_text()), path
