"""What of a source file counts as it is imported: all but the bodies of functions that only run
later.

    read_declarations(text)     # the same text where only such bodies differ

The body of a function counts where its name stands outside of bodies, or in one that counts; one
with two underscores before its name always does. Lines are told apart by how far they are indented:
what is in doubt counts. Not here: who asks (`listing`), the code behind a value
(`harness.core.definitions`).
"""

from __future__ import annotations

import re

_HEAD = re.compile(r"( *)(?:async )?def (\w+)")
_WORDS = re.compile(
    r'"{3}.*?"{3}|#[^\n]*', re.DOTALL
)  # docstrings and comments name what they like
_NAME = re.compile(r"[^\W\d]\w*")


def read_declarations(text: str) -> str:
    """The lines of a file without those bodies."""
    kept, bodies = _cut(text.splitlines())
    reached = _list_names("\n".join(line for line in kept if not _HEAD.match(line)))
    while called := [each for each in bodies if each[0] in reached or each[0].startswith("__")]:
        bodies = [each for each in bodies if each not in called]
        for _, body in called:
            kept.append(body)
            reached |= _list_names(body)
    return "\n".join(kept)


def _cut(lines: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The lines outside of bodies, of a function its first, and each function's other lines."""
    kept, bodies = list[str](), list[tuple[str, list[str]]]()
    indent: int | None = None  # of the function that is open
    for line in lines:
        depth = len(line) - len(line.lstrip(" "))
        if indent is not None and (not line.strip() or depth > indent or line.lstrip()[0] == ")"):
            bodies[-1][1].append(line)
            continue
        head = _HEAD.match(line)
        indent = len(head[1]) if head else None
        if head:
            bodies.append((head[2], []))
        kept.append(line)
    return kept, [(name, "\n".join(body)) for name, body in bodies]


def _list_names(text: str) -> set[str]:
    return set(_NAME.findall(_WORDS.sub("", text)))
