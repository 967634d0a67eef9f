"""What the fields of a dataclass mean, in the words that its author left beside them.

    group_size: int = 128  # weights that share a scale
    # Openings are learnt too, as the published code does.
    learn_prompt: bool = True

A field's meaning is the comment behind it, or else the lines of comments right above. One that a
subclass has again without a comment means what it did. Not here: what a field may hold
(`harness.core.hints`).
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import io
import textwrap
import tokenize
from collections.abc import Mapping
from functools import cache
from typing import Any

from harness.config.settings import find_stand_in, list_settings
from harness.core.checked import field_types


def find_owner(thing: object, path: str) -> Any:
    """The class that has the field of a dotted path, where `list_settings` takes its value from."""
    above, _, name = path.rpartition(".")
    held = dict(list_settings(thing))[above] if above else thing
    for each in held if isinstance(held, tuple) else (held,):
        part: Any = each
        while part is not None:
            cls: Any = type(part)
            if name in field_types(cls):
                return cls
            part = find_stand_in(part)
    raise KeyError(path)


@cache
def list_meanings(cls: Any) -> Mapping[str, str]:
    """The meaning of each field of a dataclass that has one; none where its source is not there."""
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if "__dataclass_fields__" in vars(base):
            meanings |= _read_meanings(base)
    names = [each.name for each in dataclasses.fields(cls)]
    return {name: meanings[name] for name in names if name in meanings}


def _read_meanings(cls: type) -> dict[str, str]:
    """Of the fields that the class's own text declares."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
        (body,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError, IndexError):
        return {}
    comments = _list_comments(source)
    meanings = {}
    for node in body.body if isinstance(body, ast.ClassDef) else ():
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            line = node.lineno - 1
            while line in comments and comments[line][1]:
                above.insert(0, comments[line][0])
                line -= 1
            behind = comments.get(node.end_lineno or node.lineno, ("", False))[0]
            if meaning := (behind or " ".join(above)).removesuffix("."):
                is_word = meaning[1:2].islower()  # a remark, as those behind fields are
                meanings[node.target.id] = meaning[0].lower() + meaning[1:] if is_word else meaning
    return meanings


def _list_comments(source: str) -> dict[int, tuple[str, bool]]:
    """By line: a comment's text, and whether the line has nothing else. Not those of linters."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        text = token.string.lstrip("# ")
        if token.type == tokenize.COMMENT and not text.startswith(("noqa", "type:", "---")):
            found[token.start[0]] = (
                text.partition("# noqa")[0].strip(),
                not token.line[: token.start[1]].strip(),
            )
    return found
