"""A registry: what users extend by name, with a file of their own or a package with an entry point.

    METHODS: Registry[Entry] = Registry("method", group="bitgrid.methods", package="methods")

    METHODS.register("rtn", entry, find_caller())
    METHODS.find("rtm")             # GridError: method 'rtm' is unknown; did you mean 'rtn'?

Two that claim one name are an error that names both files. A file that cannot be imported takes
nothing else down: the names that it would have registered are unavailable, each with its reason.
Not here: what is registered (`harness.method` is one client).
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from harness.core.errors import BitgridError, CollisionError, GridError, first_line, nearest

T = TypeVar("T")


class Place(NamedTuple):
    """Where something was registered."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Unavailable:
    """A name whose file cannot be imported. `reason` is one line and names the missing module."""

    name: str
    file: str
    reason: str


class Registry(Generic[T]):
    """Things of one kind by name, found when they are first asked for.

    `kind`: what one is called in an error; `group`: the entry points that are loaded; `package`: a
    package all of whose modules are imported; `error`: what an unknown name raises.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        package: str | None = None,
        error: type[BitgridError] = GridError,
    ) -> None:
        self.kind, self.group, self.package, self.error = kind, group, package, error
        self._items: dict[str, tuple[T, Place]] = {}
        self._unavailable: dict[str, Unavailable] = {}
        self._loaded = False

    def register(self, name: str, item: T, place: Place) -> None:
        """Make `item` known as `name`. Raises CollisionError where the name is taken.

        The same place may register again: a module that is reloaded does.
        """
        held, where = self._items.get(name, (item, place))
        if place != where and item != held:
            raise CollisionError(f"{self.kind} {name!r} is registered twice: {where}, {place}")
        self._items[name] = (item, place)

    def load(self) -> Mapping[str, T]:
        """All that can be used, sorted by name; what is not imported yet is."""
        self._import_all()
        return {name: item for name, (item, _) in sorted(self._items.items())}

    def unavailable(self) -> Mapping[str, Unavailable]:
        """What cannot be used, sorted by name."""
        self._import_all()
        return {
            name: each
            for name, each in sorted(self._unavailable.items())
            if name not in self._items
        }

    def files(self) -> set[Path]:
        """The files in which something is registered."""
        self._import_all()
        return {Path(place.file) for _, place in self._items.values()}

    def find(self, name: str) -> T:
        """What is called `name`. Raises `error`, with the nearest name or with the reason."""
        self._import_all()
        if name in self._items:
            return self._items[name][0]
        if name in self._unavailable:
            missing = self._unavailable[name]
            raise self.error(
                f"{self.kind} {name!r} is unavailable: {missing.file}: {missing.reason}"
            )
        raise self.error(f"{self.kind} {name!r} is unknown; {nearest(name, self._items)}")

    def _import_all(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first, since what is imported may ask the registry
        try:
            for module in self._modules():
                self._import(module, partial(importlib.import_module, module))
            points = sorted(entry_points(group=self.group), key=lambda point: point.name)
            if self.package is None and not points:
                raise BitgridError(
                    f"no package has an entry point in {self.group!r}, not even Bitgrid itself, "
                    "which was installed before it had one; install it again: pip install -e . "
                    "--no-deps --no-build-isolation"
                )
            for point in points:
                self._import(point.module, point.load, point.name)
        except BaseException:
            self._loaded = False
            raise

    def _modules(self) -> Iterator[str]:
        if self.package is not None:
            package = importlib.import_module(self.package)
            # A subpackage that cannot be imported is yielded all the same, and is imported here.
            modules = pkgutil.walk_packages(
                package.__path__, f"{self.package}.", onerror=lambda name: None
            )
            yield from (module.name for module in modules)

    def _import(self, module: str, load: Callable[[], object], name: str | None = None) -> None:
        """Import a module; where that fails, what it registers is unavailable.

        Raises CollisionError where it claims a name that is taken.
        """
        try:
            load()
        except CollisionError:
            raise
        except Exception as error:  # whatever somebody's file raises
            file = _find_file(module)
            reason = f"{type(error).__name__}: {first_line(error)}"
            names = _registered_names(file) or [module.rpartition(".")[2].replace("_", "-")]
            for each in [name, *names] if name else names:
                self._unavailable[each] = Unavailable(each, file or module, reason)
            # Half a module is none: what it registered before it failed may rest on the rest.
            self._items = {n: pair for n, pair in self._items.items() if pair[1].file != file}


def find_caller() -> Place:
    """The place that called the function that calls this one."""
    frame = inspect.currentframe()
    for _ in range(2):
        frame = frame and frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno) if frame else Place("?", 0)


def _find_file(module: str) -> str | None:
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # a package above it cannot be imported
        return None
    return spec.origin if spec else None


def _registered_names(file: str | None) -> list[str]:
    """The names that a file registers, by its text: `register("name", …)`, `register_text(…)`."""
    try:
        tree = ast.parse(Path(file or "").read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return []
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args)
    return [
        call.args[0].value
        for call in calls
        if isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
        and getattr(call.func, "id", getattr(call.func, "attr", "")).startswith("register")
    ]
