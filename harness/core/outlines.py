"""The top level of a source file: what its definitions and imports are, by its text alone.

    outline = find_outline("harness.data.tokens", path)
    outline.imports["hub"]                  # ("harness.data", "hub"), which that name stands for
    outline.read("pack").digest             # of its code; and the names in it

    <cache>/code/<digest>.json              what was read before of a module with this text

To read all definitions behind a stage takes two seconds, so what was read of a text is kept until
the cache is deleted. What a name of another module stands for is none of it: that file may change.
Not here: what definitions reach (`harness.core.definitions`).
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from harness.core.kept import keep, recall

_KIND = "code"  # of what is kept

Target: TypeAlias = tuple[str, str | None]
"""A module and what is taken of it; None: the module as a whole."""


class Statement(NamedTuple):
    """One of the statements that make a definition."""

    names: list[Target]  # that it loads, with the attribute taken of each, if one is
    imports: dict[str, Target]  # inside it


class Definition(NamedTuple):
    """`digest`: of the code, 12 hex digits."""

    digest: str
    statements: list[Statement]


@dataclass
class Outline:
    """One module's top level. `definitions`: None for one that is not read yet."""

    module: str
    path: Path
    text: str
    imports: dict[str, Target] = field(default_factory=dict)
    definitions: dict[str, Definition | None] = field(default_factory=dict)
    _statements: dict[str, list[ast.stmt]] | None = None
    _texts: dict[int, tuple[str, Statement]] = field(default_factory=dict)
    _is_kept: bool = False

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"

    def read(self, name: str) -> Definition:
        """What makes a definition, without what does not count."""
        held = self.definitions[name]
        if held is None:
            read = [self._read_statement(each) for each in self._parse()[name]]
            text = "\n".join(text for text, _ in read)
            digest = hashlib.sha256(text.encode()).hexdigest()[:12]
            held = self.definitions[name] = Definition(digest, [each for _, each in read])
            self._is_kept = False
        return held

    def keep(self) -> None:
        """Keep what was read, where that can be done."""
        if not self._is_kept:
            content = {"imports": self.imports, "definitions": self.definitions}
            keep(_KIND, content, *self._basis)
            self._is_kept = True

    def _recall(self) -> bool:
        """Take what was kept; whether there was something that can be understood."""
        kept: Any = recall(_KIND, *self._basis)
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
            imports = {name: _to_target(each) for name, each in kept["imports"].items()}
            definitions = {name: _to_definition(each) for name, each in kept["definitions"].items()}
            self.imports, self.definitions, self._is_kept = imports, definitions, True
        return self._is_kept

    def _parse(self) -> dict[str, list[ast.stmt]]:
        """The statements of each definition. Raises SyntaxError."""
        if self._statements is None:
            statements: dict[str, list[ast.stmt]] = {}
            for statement in _top_level(ast.parse(self.text).body):
                self.imports |= _import_targets(self.module, self.is_package, statement)
                for name in _bound(statement):
                    statements.setdefault(name, []).append(statement)
            self._statements = statements
            for name in statements:
                self.definitions.setdefault(name, None)
        return self._statements

    def _read_statement(self, statement: ast.stmt) -> tuple[str, Statement]:
        """Its text, and what it names; it is changed, so that it cannot be read again."""
        if id(statement) not in self._texts:
            nodes = [*ast.walk(statement)]
            inside: dict[str, Target] = {}
            for node in nodes:
                inside |= _import_targets(self.module, self.is_package, node)
            names = Statement([*dict.fromkeys(_names(nodes))], inside)
            self._texts[id(statement)] = _normalize(statement), names
        return self._texts[id(statement)]

    @property
    def _basis(self) -> tuple[str, ...]:
        return _digest_reader(), self.module, str(self.is_package), self.text


def find_outline(module: str, path: Path) -> Outline | None:
    """The outline of a module, whose file lies at `path`; None where it cannot be read."""
    try:
        outline = Outline(module, path, path.read_text(encoding="utf-8"))
        if not outline._recall():
            outline._parse()
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None
    return outline


@cache
def _digest_reader() -> str:
    """Of what turns a text into an outline: this file, and Python, which writes code as text."""
    return hashlib.sha256(Path(__file__).read_bytes() + sys.version.encode()).hexdigest()


def _to_target(raw: Any) -> Target:
    module, attribute = raw
    return module, attribute


def _to_definition(raw: Any) -> Definition | None:
    if raw is None:
        return None
    digest, statements = raw
    return Definition(
        digest,
        [
            Statement(
                [_to_target(each) for each in names],
                {name: _to_target(each) for name, each in inside.items()},
            )
            for names, inside in statements
        ],
    )


def _import_targets(module: str, is_package: bool, node: ast.AST) -> dict[str, Target]:
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
        package = module if is_package else module.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = f"{package}.{base}".strip(".")
    return {alias.asname or alias.name: (base, alias.name) for alias in node.names}


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


def _names(nodes: list[ast.AST]) -> Iterator[Target]:
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


def _normalize(statement: ast.stmt) -> str:
    """The statement's code as text, without docstrings and the words of the errors it raises."""
    for node in ast.walk(statement):
        body = getattr(node, "body", None)
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = body[1:] or [ast.Pass()]
    return ast.unparse(_Wordless().visit(statement))


class _Wordless(ast.NodeTransformer):
    """Empties the texts inside `raise`: an error's words move no number."""

    def visit_Raise(self, node: ast.Raise) -> ast.Raise:
        for inside in ast.walk(node):
            if isinstance(inside, ast.Constant) and isinstance(inside.value, str):
                inside.value = ""
        return node
