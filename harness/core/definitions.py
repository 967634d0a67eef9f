"""The code behind a stage: every function, class and constant that it reaches, by their source.

    code = reach([Train, CAKLD])
    code.definitions["harness.data.tokens.pack"]    # digest of that function
    code.digest                                     # one digest over all of them
    code.distributions                              # ("numpy", "torch", …): what they import

A definition is a top-level function, class or constant with the statements that change it later. It
reaches the definitions that it names, in its own module or through an import; annotations count, so
a method called on a typed argument is found through the argument's class. Nothing is executed, and
nothing is imported. Comments, docstrings, layout and the words of error messages do not count, and
neither do the names of modules: code that only moves to another file has the same digest.

Not seen: what is reached by a computed name (`getattr(module, name)`), and code that is data.
Not here: what is recorded of a run (`harness.core.provenance`).
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]  # the folder that has harness/ and methods/
OURS = ("harness", "methods")
# The engine itself says how stages are named and kept, and computes nothing, but for the clean
# state in which every stage runs.
ENGINE = "harness.core."
ALWAYS = (("harness.core.execution", "clean_state"),)


@dataclass(frozen=True)
class Code:
    """What a stage's classes reach. `definitions`: dotted name -> digest, 12 hex digits."""

    definitions: Mapping[str, str]
    distributions: tuple[str, ...]  # installed packages that the definitions name
    files: tuple[Path, ...]  # source files that hold the definitions

    @cached_property
    def digest(self) -> str:
        """16 hex digits over all definitions, whatever modules they lie in."""
        text = "\n".join(sorted(self.definitions.values()))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def reach(roots: Iterable[Callable[..., Any] | type]) -> Code:
    """The code of `roots`, and what it reaches in this project and in the packages of `roots`."""
    return _reach(frozenset((r.__module__, r.__qualname__.partition(".")[0]) for r in roots))


def compare(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Names of definitions that differ between two maps; one that only moved is left out."""
    changed = {name for name in old.keys() & new.keys() if old[name] != new[name]}
    moved = {digest for name, digest in old.items() if name not in new}
    moved &= {digest for name, digest in new.items() if name not in old}
    for one, other in ((old, new), (new, old)):
        changed |= {n for n, digest in one.items() if n not in other and digest not in moved}
    return sorted(changed)


@cache
def _reach(roots: frozenset[tuple[str, str]]) -> Code:
    packages = {module.partition(".")[0] for module, _ in roots}
    own = frozenset({*OURS, *packages})
    reached: dict[tuple[str, str], str] = {}
    imported: set[str] = set()
    queue = sorted({*roots, *ALWAYS})
    while queue:
        name = queue.pop()
        source = _source(name[0])
        if name in reached or source is None or name[1] not in source.definitions:
            continue
        reached[name] = source.digest(name[1])
        for module, attribute in source.references(name[1]):
            definition = _resolve(module, attribute, own)
            if definition is not None and definition[0].startswith(ENGINE):
                continue
            if definition is not None:
                queue.append(definition)
            elif not _is_ours(module, own):
                imported.add(module.partition(".")[0])
    sources = [_source(module) for module, _ in reached]
    return Code(
        {f"{module}.{name}": digest for (module, name), digest in sorted(reached.items())},
        tuple(sorted({d for module in imported for d in _distributions().get(module, ())})),
        tuple(sorted({source.path for source in sources if source is not None})),
    )


def _resolve(module: str, attribute: str | None, own: frozenset[str]) -> tuple[str, str] | None:
    """Where a name imported from `module` is defined, through re-exports; None: not ours."""
    for _ in range(20):  # a chain of re-exports is short; a circle of them is nobody's
        if attribute is None or not _is_ours(module, own):
            return None
        source = _source(module)
        if source is None:
            return None
        if attribute in source.definitions:
            return module, attribute
        if attribute not in source.imports:
            return None
        module, attribute = source.imports[attribute]
    return None


def _is_ours(module: str, own: frozenset[str]) -> bool:
    """Whether a module's code is followed: this project's, a plug-in's, or a loose file's."""
    top = module.partition(".")[0]
    if top in own:
        return True
    if top in sys.stdlib_module_names or top in _distributions():
        return False
    return _source(top) is not None


@cache
def _distributions() -> dict[str, list[str]]:
    """Names of installed distributions by the top-level module that they bring."""
    return {module: sorted(set(names)) for module, names in packages_distributions().items()}


@dataclass
class _Source:
    """One module's top level: its definitions, and what its imports stand for."""

    module: str
    path: Path
    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)
    _references: dict[str, set[tuple[str, str | None]]] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        """Of the statements that make a definition, without what does not count."""
        if name not in self._digests:
            text = "\n".join(_normalize(statement) for statement in self.definitions[name])
            self._digests[name] = hashlib.sha256(text.encode()).hexdigest()[:12]
        return self._digests[name]

    def references(self, name: str) -> set[tuple[str, str | None]]:
        """(module, attribute) of all that a definition names; None for a module as a whole."""
        if name not in self._references:
            targets: set[tuple[str, str | None]] = set()
            for statement in self.definitions[name]:
                nodes = [*ast.walk(statement)]
                inside = _imports_of(self.module, self.path, nodes)
                imports = {**self.imports, **inside}
                for first, second in {*_names(nodes)}:
                    targets |= set(self._references_of(first, second, imports))
                targets |= set(_inner_imports(inside))
            self._references[name] = targets
        return self._references[name]

    def _references_of(
        self, first: str, second: str | None, imports: Mapping[str, tuple[str, str | None]]
    ) -> Iterator[tuple[str, str | None]]:
        """What `first`, or `first.second`, stands for in this module."""
        if first in self.definitions:
            yield self.module, first
        elif first in imports:
            module, attribute = imports[first]
            if attribute is not None:
                inside = f"{module}.{attribute}"
                if _source(module) is None or _is_submodule(module, attribute):
                    module, attribute = inside, None
            if attribute is None and second is not None:
                attribute = second
            yield module, attribute


@cache
def _source(module: str) -> _Source | None:
    path = _file(module)
    if path is None:
        return None
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None
    source = _Source(module, path)
    for statement in _top_level(tree.body):
        source.imports |= _import_targets(module, path, statement)
        for name in _bound(statement):
            source.definitions.setdefault(name, []).append(statement)
    return source


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements of a module; of `if` and `try` also those inside, whose imports may be needed."""
    for statement in body:
        if isinstance(statement, ast.If | ast.Try):
            parts = [statement.body, statement.orelse]
            if isinstance(statement, ast.Try):
                parts += [statement.finalbody, *(handler.body for handler in statement.handlers)]
            for part in parts:
                yield from _top_level(part)
        else:
            yield statement


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement makes or changes: `X = …`, `X[key] = …`, `X.update(…)`."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set()
    names: set[str] = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Subscript | ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= _base(node)
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        names |= _base(statement.value.func)
    return names


def _base(node: ast.expr) -> set[str]:
    """X of X.y[z]; nothing of a bare name, which is not changed by being called."""
    inside = node
    while isinstance(inside, ast.Subscript | ast.Attribute):
        inside = inside.value
    return {inside.id} if isinstance(inside, ast.Name) and inside is not node else set()


def _names(nodes: list[ast.AST]) -> Iterator[tuple[str, str | None]]:
    """Names that a statement, all of whose nodes are given, loads, with the attribute taken of
    each, if one is.

    A name that the statement binds in a function of its own hides the module's.
    """
    hidden = _local_names(nodes)
    attributes = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            attributes.add(id(node.value))
            if node.value.id not in hidden:
                yield node.value.id, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # An annotation in quotes; other texts are seldom a name of the module.
            if node.value.isidentifier():
                yield node.value, None
        elif isinstance(node, ast.Name) and id(node) not in attributes and node.id not in hidden:
            yield node.id, None


def _local_names(nodes: list[ast.AST]) -> set[str]:
    """Names that every function of a definition that uses them also binds.

    One function's local name may be the module's in the next, so those stay visible.
    """
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    bound, free = set[str](), set[str]()
    seen = set[int]()  # those inside of one that was looked at: they come after it
    for function in functions:
        if id(function) in seen:
            continue
        inside = [*ast.walk(function)]
        seen |= {id(node) for node in inside}
        arguments = {node.arg for node in inside if isinstance(node, ast.arg)}
        declared = {name for node in inside if isinstance(node, ast.Global) for name in node.names}
        names = [node for node in inside if isinstance(node, ast.Name)]
        uses = {node.id for node in names}
        local = {node.id for node in names if isinstance(node.ctx, ast.Store)}
        mine = (arguments | local) - declared
        bound |= mine
        free |= uses - mine
        # Defaults, decorators and annotations are read outside of the function.
        arguments_node = function.args
        outside = [*function.decorator_list, *arguments_node.defaults]
        outside += [default for default in arguments_node.kw_defaults if default is not None]
        outside += [a.annotation for a in _all_arguments(arguments_node) if a.annotation]
        outside += [function.returns] if function.returns else []
        for part in outside:
            free |= {node.id for node in ast.walk(part) if isinstance(node, ast.Name)}
    return bound - free


def _all_arguments(arguments: ast.arguments) -> list[ast.arg]:
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return named + [each for each in (arguments.vararg, arguments.kwarg) if each is not None]


def _imports_of(module: str, path: Path, nodes: list[ast.AST]) -> dict[str, tuple[str, str | None]]:
    """Imports inside a definition, as names there."""
    targets: dict[str, tuple[str, str | None]] = {}
    for node in nodes:
        if isinstance(node, ast.Import | ast.ImportFrom):
            targets |= _import_targets(module, path, node)
    return targets


def _inner_imports(
    imports: Mapping[str, tuple[str, str | None]],
) -> Iterator[tuple[str, str | None]]:
    """What a definition imports for itself counts as reached, used or not."""
    for module, attribute in imports.values():
        if attribute is not None and _is_submodule(module, attribute):
            yield f"{module}.{attribute}", None
        else:
            yield module, attribute


def _import_targets(module: str, path: Path, node: ast.AST) -> dict[str, tuple[str, str | None]]:
    """The names that an import binds -> (module, attribute of it or None for the module itself)."""
    if isinstance(node, ast.Import):
        return {
            alias.asname or alias.name.partition(".")[0]: (
                alias.name if alias.asname else alias.name.partition(".")[0],
                None,
            )
            for alias in node.names
        }
    if not isinstance(node, ast.ImportFrom):
        return {}
    base = node.module or ""
    if node.level:
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = f"{package}.{base}".strip(".")
    return {alias.asname or alias.name: (base, alias.name) for alias in node.names}


@cache
def _is_submodule(module: str, attribute: str) -> bool:
    """Whether `from module import attribute` takes a module: the package defines no such name."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    source = _source(module)
    if source is None or source.path.name != "__init__.py":
        return False
    taken = attribute in source.definitions or attribute in source.imports
    return not taken and _file(f"{module}.{attribute}") is not None


@cache
def _file(module: str) -> Path | None:
    """A module's source file, found without importing the module."""
    top, _, rest = module.partition(".")
    if top in sys.stdlib_module_names:
        return None
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is not None:
        return Path(loaded) if loaded.endswith(".py") else None
    package = getattr(sys.modules.get(top), "__file__", None)
    if top in OURS or package is not None:
        base = (Path(package).parent if package else ROOT / top).joinpath(*rest.split("."))
        both = (base.with_suffix(".py"), base / "__init__.py")
        return next((path for path in both if path.is_file()), None)
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    origin = spec.origin if spec else None
    return Path(origin) if origin and origin.endswith(".py") and os.path.isfile(origin) else None


def _normalize(statement: ast.stmt) -> str:
    """The statement's code as text, without docstrings and the words of the errors it raises."""
    copy = ast.parse(ast.unparse(statement))
    for node in ast.walk(copy):
        body = getattr(node, "body", None)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    return ast.unparse(_Wordless().visit(copy))


class _Wordless(ast.NodeTransformer):
    """Empties the texts inside `raise`: an error's words move no number."""

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        for inside in ast.walk(node):
            if isinstance(inside, ast.Constant) and isinstance(inside.value, str):
                inside.value = ""
        return node
