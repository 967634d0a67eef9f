"""YAML with line numbers, so that an error can say where. Not here: what a grid may contain (`grid`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from harness.errors import GridError

Path_ = tuple[str | int, ...]


class Document:
    """A parsed YAML file: its data, and the line of each key and item."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            text = file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise GridError(
                f"{file}: cannot be read: {getattr(error, 'strerror', error)}"
            ) from None
        self.lines: dict[Path_, int] = {}
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            if node is not None:
                self._walk(node, ())
            self.data: Any = None if node is None else loader.construct_document(node)
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise GridError(f"{file}:{line}: not YAML: {error.problem}") from None
        self.comment = " ".join(
            line.lstrip("# ").rstrip() for line in _leading_comment(text) if line.strip("# ")
        )

    def error(self, where: Path_, message: str) -> GridError:
        """A GridError at the line of `where`, or of the nearest enclosing key."""
        while where and where not in self.lines:
            where = where[:-1]
        return GridError(f"{self.file}:{self.lines.get(where, 1)}: {message}")

    def _walk(self, node: yaml.Node, where: Path_) -> None:
        self.lines.setdefault(where, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                path = (*where, str(key.value))
                if path in self.lines:
                    line = key.start_mark.line + 1
                    raise GridError(f"{self.file}:{line}: key {key.value!r} is given twice")
                self.lines[path] = key.start_mark.line + 1
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
    lines = text.splitlines()
    end = next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return lines[:end]
