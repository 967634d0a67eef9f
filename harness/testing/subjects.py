"""What is checked: a method in a small case, or a part inside of a method that uses it.

A part (a format, an init, an objective, …) does nothing alone. It is tried inside the registered
method of the fewest stages for which it makes a difference. Not here: the checks (`checks`).
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.settings import configure, find_families, list_settings
from harness.core.checked import field_types
from harness.core.component import Component, find_named
from harness.core.errors import BitgridError, GridError, SettingError, first_line, nearest
from harness.core.hints import find_items
from harness.core.stage import closure
from harness.method import METHODS, Entry, Method, list_kinds, list_parts
from harness.testing.bench import Bench
from harness.testing.tiny import TEXT

# By the last name of a path: whatever has such a setting gets it small, in the order written.
_SMALL: dict[str, Any] = {
    "group_size": 32,
    "text": TEXT,
    "sequences": 16,
    "length": 64,
    "steps": 4,
    "epochs": 2,
    "iterations": 4,
    "batch_size": 4,
    "micro_batch": 4,
    "lr": 1e-3,
    "dtype": "float32",
}


@dataclass(frozen=True)
class Subject:
    """A method as it is tried. part: what of it is meant, where not all of it is."""

    title: str
    method: Method
    entry: Entry | None = None
    part: type[Component] | None = None


def make_subject(
    method: Method, settings: Mapping[str, Any] | None = None, entry: Entry | None = None
) -> Subject:
    """A method in a small case. Raises SettingError for `settings` that it does not take."""
    title = f"method {entry.name if entry else type(method).__name__}"
    return Subject(title, configure(make_small(method), settings or {}), entry)


def find_subject(name: str, bench: Bench, settings: Mapping[str, Any] | None = None) -> Subject:
    """What is called so: a method, or a part where no method is.

    Raises GridError for a name that is unknown, unavailable or of several parts.
    """
    found = list_parts()
    if name in METHODS.load() or name in METHODS.unavailable():
        return make_subject(METHODS.find(name).method, settings, METHODS.find(name))
    fitting = find_named(name, found)
    if not fitting:
        known = [*METHODS.load(), *found, *(each.partition("/")[2] for each in found)]
        raise GridError(f"{name!r} is unknown; {nearest(name, known)}")
    if len(fitting) > 1:
        raise GridError(f"several parts are called {name!r}: say {' or '.join(sorted(fitting))}")
    return _carry(fitting[0], found[fitting[0]], bench, settings or {})


def list_names() -> list[str]:
    """Every name that can be checked: methods, then parts as `family/name`."""
    return [*METHODS.load(), *sorted(list_parts())]


def load_file(path: Path) -> list[str]:
    """Import a file, and give the names of what it registers and defines, as `list_names` does.

    Raises GridError where it cannot be imported, with the line, or where there is nothing in it.
    """
    path = path.resolve()
    if not path.is_file():
        raise GridError(f"{path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    METHODS.load()
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever somebody's file raises
        kind = "" if isinstance(error, BitgridError) else f"{type(error).__name__}: "
        told = f"{kind}{first_line(error)}"
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        place = "" if str(path) in told else f"{path}:{lines[-1] if lines else 1}: "
        raise GridError(f"{place}{told}") from error
    entries = [n for n, each in METHODS.load().items() if Path(each.source) == path]
    parts = [n for n, cls in sorted(list_parts().items()) if cls.__module__ == path.stem]
    if not entries and not parts:
        raise GridError(f"{path}: it registers no method and defines no part of one")
    return [*entries, *parts]


def make_small(method: Method) -> Method:
    """The method with those of its settings that cost time, and the group size, small."""
    for name, small in _SMALL.items():
        for path in [each for each, _ in list_settings(method)]:
            if path.rpartition(".")[2] == name:
                try:
                    method = configure(method, {path: small})
                except BitgridError:  # one of its own that only shares the name
                    continue
    return method


def _carry(
    identity: str, part: type[Component], bench: Bench, settings: Mapping[str, Any]
) -> Subject:
    """The part inside the method of the fewest stages on which it makes a difference."""
    name, fault = identity.partition("/")[2], BitgridError("no method has such a part")
    carriers: list[tuple[tuple[bool, bool, int], Subject]] = []
    places = {kind: [*_find_places(kind, part)] for kind in list_kinds()}
    for entry in METHODS.load().values():
        for path, as_list in places[type(entry.method)]:
            chosen: Any = {"name": name, **settings}
            try:
                method = configure(entry.method, {path: [chosen] if as_list else chosen})
                method = make_small(method)
                method.check(bench.shapes)
                root = method.build(bench.base, 0)
                if not _matters(entry.method, path, as_list, part, bench, root.key):
                    continue
            except BitgridError as error:
                fault = error
                continue
            title = f"{identity.replace('/', ' ')} (in method {entry.name})"
            idle = part.needs_training and not _is_trained(method)
            rank = entry.method.is_reference, idle, len(closure([root]))
            carriers.append((rank, Subject(title, method, None, part)))
    if not carriers:
        raise GridError(f"{identity.replace('/', ' ')} cannot be tried in any method: {fault}")
    return min(carriers, key=lambda pair: pair[0])[1]


def _is_trained(method: Method) -> bool:
    """Whether a method takes steps, by its having a learning rate."""
    return any(path.rpartition(".")[2] == "lr" for path, _ in list_settings(method))


def _find_places(cls: Any, part: type[Component]) -> Iterator[tuple[str, bool]]:
    """The fields of a kind of method that may hold a part, and whether they hold a list of such."""
    for path, family in find_families(cls).items():
        if "." not in path and part in family.choices().values():
            items = find_items(field_types(cls)[path])
            yield path, isinstance(items, type) and issubclass(items, Component)


def _matters(
    method: Method, path: str, as_list: bool, part: type[Component], bench: Bench, key: str
) -> bool:
    """Whether a method makes another graph with another part, or refuses it."""
    others = [each for each in part.siblings().values() if each is not part]
    for other in others:
        try:
            chosen = [other.name] if as_list else other.name
            small = make_small(configure(method, {path: chosen}))
            small.check(bench.shapes)
            if small.build(bench.base, 0).key != key:
                return True
        except SettingError:
            continue
        except BitgridError:
            return True
    return not others
