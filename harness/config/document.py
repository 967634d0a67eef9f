"""YAML with line numbers, so that an error can say where; a file may build on another one.

Not here: what a grid may contain (`grid`).
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, ClassVar

import yaml

from harness.core.errors import GridError, nearest
from harness.core.misfit import Where
from harness.core.scalars import Real, Whole, find_kind, read_scalar

Places = dict[Where, tuple[Path, int]]
_MOST = 100_000  # values of a file: aliases of aliases stand for more than could be read


class Document:
    """A parsed YAML file: its data, and the place of each key and item.

    `base: FILE`, or a list of files (relative to this one's folder), takes over what others say,
    key by key, later ones over earlier ones and this file over all. Of the keys in `merged`, which
    hold mappings, the entries are taken over one by one.
    """

    def __init__(
        self, file: Path, merged: tuple[str, ...] = (), above: tuple[Path, ...] = ()
    ) -> None:
        self.file = file
        self.files = [file]
        try:
            text = file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise GridError(
                f"{file}: cannot be read: {getattr(error, 'strerror', error)}"
            ) from None
        self.places: Places = {}
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is not None:
                self._walk(node, ())
            self.data: Any = None if node is None else loader.construct_document(node)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            problem = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise GridError(f"{file}:{mark.line + 1 if mark else 1}: not YAML: {problem}") from None
        except RecursionError:
            raise GridError(f"{file}:1: not YAML: nested too deeply, or in itself") from None
        self.comment = " ".join(
            line.lstrip("# ").rstrip() for line in _leading_comment(text) if line.strip("# ")
        )
        if isinstance(self.data, dict) and "base" in self.data:
            self._build_on(self.data.pop("base"), merged, (*above, file.resolve()))

    def error(self, where: Where, message: str) -> GridError:
        """A GridError at the line of `where`, or of the nearest enclosing key."""
        file, line = self.find(where)
        return GridError(f"{file}:{line}: {message}")

    def find(self, where: Where) -> tuple[Path, int]:
        """The file and line of `where`, or of the nearest enclosing key."""
        while where and where not in self.places:
            where = where[:-1]
        return self.places.get(where, (self.file, 1))

    def _build_on(self, names: object, merged: tuple[str, ...], above: tuple[Path, ...]) -> None:
        own, places = self.data, self.places
        self.data, self.places = {}, {("base",): places[("base",)]}
        for name in names if isinstance(names, list) else [names]:
            base = Document(self._find_base(name, above), merged, above)
            if not isinstance(base.data, dict):
                raise self.error(("base",), f"base: {name!r} should be a mapping")
            self._lay(base.data, base.places, merged)
            self.files += base.files
        self._lay(own, places, merged)

    def _find_base(self, name: object, above: tuple[Path, ...]) -> Path:
        """The file that `base` names. Raises GridError where it is not there, or is being read."""
        base = self.file.parent / str(name)
        if not base.is_file():
            near = [path.name for path in self.file.parent.glob("*.yaml") if path != self.file]
            raise self.error(("base",), f"base: file {name!r} is missing; {nearest(name, near)}")
        if base.resolve() in above:
            raise self.error(("base",), f"base: {name!r} builds on this file itself")
        return base

    def _lay(self, data: dict[str, Any], places: Places, merged: tuple[str, ...]) -> None:
        """What `data` says over what is there."""
        for key, value in data.items():
            if key in merged and isinstance(value, dict) and isinstance(self.data.get(key), dict):
                self.data[key] = self.data[key] | value
            else:
                self.data[key] = value
                # Of a list that is written anew nothing of the old one's places may remain.
                self.places = {at: place for at, place in self.places.items() if at[:1] != (key,)}
        self.places |= places

    def _walk(self, node: yaml.Node, where: Where) -> None:
        self.places.setdefault(where, (self.file, node.start_mark.line + 1))
        if len(self.places) > _MOST:
            raise GridError(f"{self.file}: more than {_MOST} values")
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                path = (*where, str(key.value))
                if path in self.places:
                    line = key.start_mark.line + 1
                    raise GridError(f"{self.file}:{line}: key {key.value!r} is given twice")
                self.places[path] = (self.file, key.start_mark.line + 1)
                self._walk(child, path)
        elif isinstance(node, yaml.SequenceNode):
            for number, child in enumerate(node.value):
                self._walk(child, (*where, number))


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

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        if kind is yaml.ScalarNode and implicit[0]:
            return _tag("merge" if value == "<<" else find_kind(value))
        return super().resolve(kind, value, implicit)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
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
            raise _wrong(node, f"{text[:60]!r} is no {kind}")
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
