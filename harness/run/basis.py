"""What a plan was made from, and whether that is the same here and now.

    basis = describe_basis(own, keys, files)  # of a plan that is being made
    find_again(basis, path)                   # the same for a grid at `path`; None where it differs

A plan rests on content, not on a place: the text of its grid and of those that this builds on, the
code, the files that keys were made from, the folder of data sets, the paths that words of the grid
are from the current folder, Python and the packages. Each is looked for where it would be now:
beside the grid, in this copy of the project, in the packages that would be imported. A file that is
where it was, of the size and time that it had, is taken for unchanged; otherwise its content
decides. What cannot be found again, or may mean something else here, is another basis.
Not here: where plans are kept (`remembering`), scores of trials (`trials`). What a hub says of a
branch is asked when a plan is made, and not again.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from harness.core import provenance
from harness.core.definitions import ROOT

OWN = "bitgrid"  # the distribution
_GRID, _CODE = ":grid", ":code"
_LARGE = 2**20  # bytes; of more, as of a model's weights, time and size alone count


class Watched(NamedTuple):
    """A file that a plan was made from."""

    path: str
    size: int
    changed: int  # time of change, in ns
    digest: str  # of its content; empty of a large one
    root: str  # what it lies in: the grid's folder, the project, a package's name; empty: itself
    name: str  # from there


@dataclass(frozen=True)
class Basis:
    """What a plan was made from, and where."""

    files: tuple[Watched, ...] = ()
    names: Mapping[str, str] | None = None  # words of the grid -> the path that they are, or ""
    mirror: str | None = None  # the environment's folder of data sets
    beside: str | None = None  # the grid's folder, where a folder of data sets is named from it
    packages: str = ""  # a digest of the installed ones, and of Python

    @property
    def text(self) -> str:
        """The digest of the grid's own text."""
        return next((each.digest for each in self.files if _is_grid(each)), "")


def describe_basis(
    own: Sequence[Path], keys: Mapping[str, Any], files: Iterable[Path] = ()
) -> Basis:
    """The basis of a plan: a grid's file, those that it builds on, and what they say; `files`: all
    else that it is made from. Raises OSError."""
    packages = _find_packages()
    named = [(path, _GRID, _name_from(path, own[0])) for path in own]
    found = [(path, *_find_root(path, packages)) for path in sorted(set(files))]
    mirror, folder = find_mirror(), str(keys.get("mirror") or "")
    is_beside = not mirror and folder and not os.path.isabs(os.path.expanduser(folder))
    return Basis(
        tuple(_watch(*each) for each in (*named, *found)),
        {word: _find(word) for word in sorted(set(_list_words(keys)))},
        mirror,
        os.path.abspath(own[0].parent) if is_beside else None,
        describe_packages(),
    )


def find_again(basis: Basis, path: Path) -> Basis | None:
    """The basis with its files as they are found for a grid at `path`; None where it differs."""
    if basis.packages != describe_packages() or basis.mirror != find_mirror():
        return None
    if basis.beside is not None and basis.beside != os.path.abspath(path.parent):
        return None
    if any(_find(word) != place for word, place in (basis.names or {}).items()):
        return None
    files = []
    for each in basis.files:
        again = _look_again(each, path)
        if again is None:
            return None
        files.append(again)
    if not {each.path for each in files} >= set(map(str, provenance.list_sources())):
        return None  # there is more of the project than there was
    return replace(basis, files=tuple(files))


def list_moved(before: Basis, now: Basis) -> tuple[dict[str, Watched], set[str]]:
    """Files that lie elsewhere or were written anew, by the path that they had; and the folders
    that have another place now."""
    moved, left = {}, set[str]()
    for old, new in zip(before.files, now.files, strict=True):
        if old != new:
            moved[old.path] = new
        if old.path != new.path:
            left.add(old.path.removesuffix(old.name) if old.name else str(Path(old.path).parent))
    return moved, left


def find_mirror() -> str | None:
    """The folder of data sets that the environment names."""
    chosen = os.environ.get("BITGRID_MIRROR")
    return os.path.realpath(os.path.expanduser(chosen)) if chosen else None


def describe_packages() -> str:
    """A digest of Python's version, and of the names and versions of all installed packages, with
    the entry points by which any of them extends the project.

    Without the project itself, whose code is compared: a checkout that is on the path, as of
    `python -m`, has its record beside the one in the environment.
    """
    found = {sys.version}
    for folder in filter(os.path.isdir, sys.path):
        for name in os.listdir(folder):
            if name.endswith((".dist-info", ".egg-info")) and re.split("[-.]", name)[0] != OWN:
                points = ""
                with contextlib.suppress(OSError):
                    points = Path(folder, name, "entry_points.txt").read_text()
                found.add(name + (points if "[bitgrid." in points else ""))
    return hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest()[:16]


def _is_grid(each: Watched) -> bool:
    return each.root == _GRID and not each.name


def _name_from(path: Path, grid: Path) -> str:
    """A grid, or a file that it builds on, as it is named from the grid's folder; the grid: ""."""
    if path == grid:
        return ""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(grid.parent))
    return str(path)


def _find_packages() -> dict[str, str]:
    """The folders of imported packages, and files of modules, with their names."""
    places = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if "." not in name and file and name not in sys.stdlib_module_names:
            places[file if not hasattr(module, "__path__") else os.path.dirname(file)] = name
    return places


def _find_root(path: Path, packages: Mapping[str, str]) -> tuple[str, str]:
    if path.is_relative_to(ROOT):
        return _CODE, str(path.relative_to(ROOT))
    for above in (path, *path.parents):
        if (name := packages.get(str(above))) is not None:
            return name, str(path.relative_to(above)) if above != path else ""
    return "", ""


def _locate(each: Watched, grid: Path) -> Path | None:
    """Where a file would be looked for now."""
    if each.root == _GRID:
        return (grid.parent / each.name if each.name else grid).resolve()
    if each.root == _CODE:
        return ROOT / each.name
    if not each.root:
        return Path(each.path)
    try:
        spec = importlib.util.find_spec(each.root)
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not spec.origin:
        return None
    return Path(spec.origin).parent / each.name if each.name else Path(spec.origin)


def _look_again(each: Watched, grid: Path) -> Watched | None:
    """A file as it is now; None where it is another, or not there."""
    path = _locate(each, grid)
    try:
        facts = path.stat() if path is not None else None
        if path is None or facts is None or facts.st_size != each.size:
            return None
        if (str(path), facts.st_mtime_ns) == (each.path, each.changed):
            return each
        if not each.digest or digest_content(path) != each.digest:
            return None
    except OSError:
        return None
    return each._replace(path=str(path), changed=facts.st_mtime_ns)


def _watch(path: Path, root: str, name: str) -> Watched:
    """Raises OSError."""
    path = path.resolve() if root == _GRID else path
    facts = path.stat()
    digest = digest_content(path) if facts.st_size <= _LARGE else ""
    return Watched(str(path), facts.st_size, facts.st_mtime_ns, digest, root, name)


def digest_content(path: Path) -> str:
    """A digest of a file. Raises OSError; of a pipe or a device too: reading one may never end."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:24]


def _list_words(thing: Any) -> Iterator[str]:
    """All text in the values of a grid."""
    if isinstance(thing, str):
        yield thing
    elif isinstance(thing, Mapping):
        for part in thing.values():
            yield from _list_words(part)
    elif isinstance(thing, list | tuple):
        for part in thing:
            yield from _list_words(part)


def _find(word: str) -> str:
    """The path that a word of a grid is from the current folder: a model's, `file:` and a text's,
    one before a revision. Empty where nothing lies there."""
    for path in (word, word.partition(":")[2], word.rpartition("@")[0]):
        with contextlib.suppress(OSError, ValueError):
            if path and os.path.exists(expanded := os.path.expanduser(path)):
                return os.path.realpath(expanded)
    return ""
