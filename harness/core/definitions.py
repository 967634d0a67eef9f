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
Not here: what one file says by itself (`harness.core.outlines`), what is recorded of a run
(`harness.core.provenance`).
"""

from __future__ import annotations

import contextlib
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

from harness.core.kept import keep, recall
from harness.core.outlines import Outline, Target, find_outline

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
        if name in reached or source is None or name[1] not in source.outline.definitions:
            continue
        reached[name] = source.outline.read(name[1]).digest
        for module, attribute in source.references(name[1]):
            definition = _resolve(module, attribute, own)
            if definition is not None and definition[0].startswith(ENGINE):
                continue
            if definition is not None:
                queue.append(definition)
            elif not _is_ours(module, own):
                imported.add(module.partition(".")[0])
    sources = [source for module, _ in reached if (source := _source(module)) is not None]
    for source in sources:
        source.outline.keep()
    return Code(
        {f"{module}.{name}": digest for (module, name), digest in sorted(reached.items())},
        tuple(sorted({d for module in imported for d in _distributions().get(module, ())})),
        tuple(sorted({source.outline.path for source in sources})),
    )


def _resolve(module: str, attribute: str | None, own: frozenset[str]) -> tuple[str, str] | None:
    """Where a name imported from `module` is defined, through re-exports; None: not ours."""
    for _ in range(20):  # a chain of re-exports is short; a circle of them is nobody's
        if attribute is None or not _is_ours(module, own):
            return None
        source = _source(module)
        if source is None:
            return None
        if attribute in source.outline.definitions:
            return module, attribute
        if attribute not in source.outline.imports:
            return None
        module, attribute = source.outline.imports[attribute]
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
    """Names of installed distributions by the top-level module that they bring: those of what is
    installed now, which takes a while to read."""
    records = sorted(_list_records())
    known: dict[str, list[str]] | None = recall("packages", sys.version, *records)
    if known is None:
        known = {module: sorted(set(names)) for module, names in packages_distributions().items()}
        keep("packages", known, sys.version, *records)
    return known


def _list_records() -> Iterator[str]:
    """The record of each installed distribution, with the time at which it changed."""
    for folder in sys.path:
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            for each in entries:
                if each.name.endswith((".dist-info", ".egg-info")):
                    yield f"{each.path} {each.stat().st_mtime_ns}"


@dataclass
class _Source:
    """One module's top level: its definitions, and what they stand for."""

    outline: Outline
    _references: dict[str, set[Target]] = field(default_factory=dict)

    def references(self, name: str) -> set[Target]:
        """All that a definition names."""
        if name not in self._references:
            targets: set[Target] = set()
            for statement in self.outline.read(name).statements:
                imports = {**self.outline.imports, **statement.imports}
                for first, second in statement.names:
                    targets |= set(self._references_of(first, second, imports))
                targets |= set(_inner_imports(statement.imports))
            self._references[name] = targets
        return self._references[name]

    def _references_of(
        self, first: str, second: str | None, imports: Mapping[str, Target]
    ) -> Iterator[Target]:
        """What `first`, or `first.second`, stands for in this module."""
        if first in self.outline.definitions:
            yield self.outline.module, first
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
    outline = None if path is None else find_outline(module, path)
    return None if outline is None else _Source(outline)


def _inner_imports(imports: Mapping[str, Target]) -> Iterator[Target]:
    """What a definition imports for itself counts as reached, used or not."""
    for module, attribute in imports.values():
        if attribute is not None and _is_submodule(module, attribute):
            yield f"{module}.{attribute}", None
        else:
            yield module, attribute


@cache
def _is_submodule(module: str, attribute: str) -> bool:
    """Whether `from module import attribute` takes a module: the package defines no such name."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return False
    source = _source(module)
    if source is None or not source.outline.is_package:
        return False
    taken = attribute in source.outline.definitions or attribute in source.outline.imports
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
