"""YAML with line numbers, so that an error can say where; a file may build on another one.

Not here: what a grid may contain (`grid`).
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import yaml

from harness.core.errors import GridError, nearest
from harness.core.misfit import Where

Places = dict[Where, tuple[Path, int]]


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
            text = file.read_text()
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
        self.comment = " ".join(
            line.lstrip("# ").rstrip() for line in _leading_comment(text) if line.strip("# ")
        )
        if isinstance(self.data, dict) and "base" in self.data:
            self._build_on(self.data.pop("base"), merged, (*above, file.resolve()))

    def error(self, where: Where, message: str) -> GridError:
        """A GridError at the line of `where`, or of the nearest enclosing key."""
        while where and where not in self.places:
            where = where[:-1]
        file, line = self.places.get(where, (self.file, 1))
        return GridError(f"{file}:{line}: {message}")

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


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: 8e-6 is a number, which YAML 1.1 reads as a string."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)([eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _leading_comment(text: str) -> list[str]:
    """The comment that a file opens with, without the line that tells an editor its schema."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return [line for line in lines if not line.startswith("# yaml-language-server:")]
