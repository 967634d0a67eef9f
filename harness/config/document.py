"""YAML with line numbers, so that an error can say where; a file may build on another one.

Whatever lies at a path, it is read in bounded time and memory, or refused in one line: a file and
all that it builds on have at most `MOST_FILES` files, `MOST_CHARACTERS` and `MOST_VALUES`, counted
as aliases stand for them, and no value lies deeper than `DEEPEST`. Text has no characters that do
not show as they are, and no value of a variable that is named as secrets are. Not here: what a grid
may contain (`grid`).
"""

from __future__ import annotations

import itertools
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import yaml

from harness.core.errors import UNSHOWABLE, GridError, first_line, nearest
from harness.core.misfit import Where, show
from harness.core.paths import read_path
from harness.core.scalars import Real, Whole, find_kind, read_scalar
from harness.core.secrets import name_secret

Places = dict[Where, tuple[Path, int]]
MOST_FILES = 32
MOST_CHARACTERS = 128 * 1024
MOST_VALUES = 5_000
DEEPEST = 32
_UNSHOWABLE = re.compile(rf"(?![\t\n])[{UNSHOWABLE}]")


# Of a grid: see `Document`.
MERGED = ("defaults", "report")
EITHER = frozenset({"seed", "seeds"})


@dataclass
class _Total:
    """What a file and those that it builds on have come to."""

    files: int = 0
    characters: int = 0
    values: int = 0

    def add(self, file: Path, line: int, **more: int) -> None:
        """Raises GridError where that is more than a person writes."""
        for name, number in more.items():
            setattr(self, name, getattr(self, name) + number)
        for name, most in (
            ("files", MOST_FILES),
            ("characters", MOST_CHARACTERS),
            ("values", MOST_VALUES),
        ):
            if getattr(self, name) > most:
                raise GridError(
                    f"{file}:{line}: more than {most} {name}, with all that it builds on"
                )


class Document:
    """A parsed YAML file: its data, and the place of each key and item.

    `base: FILE`, or a list of files (relative to this one's folder), takes over what others say,
    key by key, later ones over earlier ones and this file over all. Of the keys in `merged`, which
    hold mappings, the entries are taken over one by one. A key in `either` takes the place of
    another of them that a base says.
    """

    def __init__(
        self,
        file: Path,
        merged: tuple[str, ...] = (),
        above: tuple[Path, ...] = (),
        total: _Total | None = None,
        either: frozenset[str] = frozenset(),
    ) -> None:
        self.file = file
        self._either = either
        self.files = [file]
        self._total = _Total() if total is None else total
        text = _read_text(file)
        _refuse_secrets(file, text)
        self._total.add(file, 1, files=1, characters=len(text))
        self.places: Places = {}
        self.data: Any = self._parse(text)
        self.comment = " ".join(
            line.lstrip("# ").rstrip() for line in _leading_comment(text) if line.strip("# ")
        )
        if isinstance(self.data, dict) and "base" in self.data:
            self._build_on(self.data.pop("base"), merged, (*above, file.resolve()))

    def _parse(self, text: str) -> Any:
        loader = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is not None:
                self._walk(node, ())
            return None if node is None else loader.construct_document(node)
        except GridError:
            raise
        except RecursionError:
            raise GridError(f"{self.file}:1: not YAML: nested too deeply, or in itself") from None
        except Exception as error:  # the parser's own, and what it lets through: of int, chr, …
            line, problem = _explain(error, text, loader)
            raise GridError(f"{self.file}:{line}: not YAML: {problem}") from None

    def error(self, where: Where, message: str) -> GridError:
        """A GridError at the line of `where`, or of the nearest enclosing key."""
        file, line = self.find(where)
        return GridError(f"{file}:{line}: {message}")

    def find(self, where: Where) -> tuple[Path, int]:
        """The file and line of `where`, or of the nearest enclosing key."""
        while where and where not in self.places:
            where = where[:-1]
        return self.places.get(where, (self.file, 1))

    def descend(self, where: Where, path: str) -> Where:
        """The place that a dotted path names inside of the value at `where`, or the last above it.

        Keys may have dots of their own: of those that fit, the longest.
        """
        below = [place for place in self.places if place[:-1] == where and place != where]
        fitting = [place for place in below if f"{path}.".startswith(f"{place[-1]}.")]
        if not fitting:
            return where
        nearest_place = max(fitting, key=lambda place: len(str(place[-1])))
        return self.descend(nearest_place, path.removeprefix(str(nearest_place[-1]))[1:])

    def _build_on(self, names: object, merged: tuple[str, ...], above: tuple[Path, ...]) -> None:
        own, places = self.data, self.places
        self.data, self.places = {}, {("base",): places[("base",)]}
        for name in names if isinstance(names, list) else [names]:
            try:
                base = Document(
                    self._find_base(name, above), merged, above, self._total, self._either
                )
            except _Unreadable as error:
                raise self.error(("base",), f"base: {error}") from None
            if not isinstance(base.data, dict):
                raise self.error(("base",), f"base: {name!r} should be a mapping")
            self._lay(base.data, base.places, merged)
            self.files += base.files
        self._lay(own, places, merged)

    def _find_base(self, name: object, above: tuple[Path, ...]) -> Path:
        """The file that `base` names. Raises GridError where it is not there, or is being read."""
        try:
            base = read_path(str(name), GridError, self.file.parent)
        except GridError as error:
            raise self.error(("base",), f"base: {error}") from None
        if not base.exists():
            near = [path.name for path in self.file.parent.glob("*.yaml") if path != self.file]
            raise self.error(("base",), f"base: file {name!r} is missing; {nearest(name, near)}")
        if not base.is_file():
            raise self.error(("base",), f"base: {name!r} is not a plain file")
        if base.resolve() in above:
            raise self.error(("base",), f"base: {name!r} builds on this file itself")
        return base

    def _lay(self, data: dict[str, Any], places: Places, merged: tuple[str, ...]) -> None:
        """What `data` says over what is there."""
        for key in self._either - data.keys() if self._either & data.keys() else ():
            self.data.pop(key, None)
            self.places = {at: place for at, place in self.places.items() if at[:1] != (key,)}
        for key, value in data.items():
            if key in merged and isinstance(value, dict) and isinstance(self.data.get(key), dict):
                self.data[key] = self.data[key] | value
            else:
                self.data[key] = value
                # Of a list that is written anew nothing of the old one's places may remain.
                self.places = {at: place for at, place in self.places.items() if at[:1] != (key,)}
        self.places |= places

    def _walk(self, node: yaml.Node, where: Where) -> None:
        line = node.start_mark.line + 1
        self.places.setdefault(where, (self.file, line))
        self._total.add(self.file, line, values=1)
        if len(where) > DEEPEST:
            raise GridError(f"{self.file}:{line}: nested too deeply, or in itself")
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                path, line = (*where, self._read_key(key)), key.start_mark.line + 1
                if path in self.places:
                    raise GridError(f"{self.file}:{line}: key {path[-1]!r} is given twice")
                self.places[path] = (self.file, line)
                self._walk(child, path)
        elif isinstance(node, yaml.SequenceNode):
            for number, child in enumerate(node.value):
                self._walk(child, (*where, number))
        else:
            self._check_showable(node)

    def _read_key(self, key: yaml.Node) -> str:
        if not isinstance(key, yaml.ScalarNode):
            raise _wrong(key, "a key should be text")
        self._check_showable(key)
        return str(key.value)

    def _check_showable(self, node: yaml.Node) -> None:
        """Raise GridError for text that would not show as it is, in messages or in tables."""
        if found := _UNSHOWABLE.search(node.value):
            raise GridError(
                f"{self.file}:{node.start_mark.line + 1}: {show(node.value)} has the character "
                f"U+{ord(found[0]):04X}, which does not show as it is"
            )


class _Unreadable(GridError):
    """No text can be had from a file; who names it as a base says where."""


def _refuse_secrets(file: Path, text: str) -> None:
    """Raise GridError for a token that the environment has too: what a grid or a profile says
    stands in plans, scripts and reports."""
    for number, line in enumerate(text.splitlines() if name_secret(text) else (), start=1):
        if name := name_secret(line):
            raise GridError(
                f"{file}:{number}: the value of {name} stands here, and would in what others read; "
                f"leave it out: runs and jobs have the environment (${name} in 'setup')"
            )


def _read_text(file: Path) -> str:
    """The text of a file. Raises _Unreadable where there is none, or more than is read."""
    try:
        path = read_path(file, _Unreadable)
    except _Unreadable as error:  # whose words begin with the path, as all that is said of a file
        raise _Unreadable(f"{file}: cannot be read: {str(error).rpartition(': ')[2]}") from None
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # reading a pipe or a device may never end
            what = "it is a folder" if path.is_dir() else "it is not a plain file"
            raise _Unreadable(f"{file}: cannot be read: {what}")
        with path.open("rb") as opened:
            content = opened.read(4 * MOST_CHARACTERS + 1)
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise _Unreadable(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        if len(content) > 4 * MOST_CHARACTERS:  # cut within a character
            raise _Unreadable(f"{file}:1: more than {MOST_CHARACTERS} characters") from None
        line = content.count(b"\n", 0, error.start) + 1
        raise _Unreadable(f"{file}:{line}: cannot be read: it is not text in UTF-8") from None


def _explain(error: Exception, text: str, loader: yaml.SafeLoader | None) -> tuple[int, str]:
    """The line that the parser stumbled over, and why."""
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, (
            f"character U+{ord(text[error.position]):04X} is not allowed"
        )
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.YAMLError):
        return mark.line + 1 if mark else 1, getattr(error, "problem", None) or first_line(error)
    return loader.line + 1 if loader else 1, first_line(error)


def write_yaml(data: Any) -> str:
    """The text of a file that reads as `data`; numbers that a file had are written as there."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _tag(name: str) -> str:
    return f"tag:yaml.org,2002:{name}"


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars (`harness.core.scalars`) in place of YAML 1.1's; keys are text."""

    yaml_constructors: ClassVar[dict[Any, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, _tag("seq"), _tag("map"))
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node. Raises ComposerError for more of them, or deeper ones, than any file needs."""
        mark = self.peek_event().start_mark
        self._nodes += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, "nested too deeply", mark)
        if self._nodes > 2 * MOST_VALUES + 1:  # keys are nodes too
            raise yaml.composer.ComposerError(None, None, f"more than {MOST_VALUES} values", mark)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _tag("merge" if value == "<<" else find_kind(value))
        return super().resolve(kind, value, implicit)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _wrong(node, "expected a mapping")
        self.flatten_mapping(node)
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _wrong(key, "a key should be text")
        return {key.value: self.construct_object(part, deep=deep) for key, part in node.value}

    def construct_typed(self, node: Any) -> Any:
        """A scalar, by its tag. Raises ConstructorError where that is not its text's."""
        kind, text = node.tag.rpartition(":")[2], str(self.construct_scalar(node))
        if kind in ("str", "merge"):
            return text
        found = find_kind(text)
        if found != kind and (found, kind) != ("int", "float"):
            raise _wrong(node, f"{show(text)} is not of type {kind}")
        try:
            return Real(text) if kind == "float" else read_scalar(text)
        except ValueError:
            raise _wrong(node, f"{text[:20]}… is too long for a number") from None


for _kind in ("null", "bool", "int", "float", "str", "merge"):
    _Loader.add_constructor(_tag(_kind), _Loader.construct_typed)


class _Dumper(yaml.SafeDumper):
    """Text in quotes where YAML 1.1 or 1.2 would take it for something else."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0] and find_kind(value) != "str":
            return _tag(find_kind(value))
        return super().resolve(kind, value, implicit)

    def represent_number(self, number: Whole | Real) -> yaml.Node:
        """A number as it stood in its file."""
        tag = _tag("int" if isinstance(number, Whole) else "float")
        return self.represent_scalar(tag, number.text)


_Dumper.add_representer(Whole, _Dumper.represent_number)
_Dumper.add_representer(Real, _Dumper.represent_number)


def _wrong(node: yaml.Node, message: str) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, message, node.start_mark)


def _leading_comment(text: str) -> list[str]:
    """The comment that a file opens with, without the line that tells an editor its schema."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return [line for line in lines if not line.startswith("# yaml-language-server:")]
