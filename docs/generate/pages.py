"""Which pages the site has beside those of docs/, and where links of one lead.

A link of a page may name any file of the repository. It is on the site too: Markdown as a page of
its own, pictures and tables as they are, any other file as a page that shows its text. So a link
is right on the site where it is right in the repository.

Not here: what mkdocs calls (`hook`), pages that are made of the code (`reference`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
DOCS, HOME = PurePosixPath("docs"), PurePosixPath("README.md")
AS_THEY_ARE = {".png", ".csv", ".json"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".cff": "yaml"}

_FENCED = re.compile(r"^(`{3,}|~{3,}).*?^\1 *$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\|.*$", re.MULTILINE)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)")
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(?=[#)])")


def find_place(path: PurePosixPath) -> str:
    """Where a file of the repository is on the site."""
    if path == HOME:
        return "index.md"
    if path.is_relative_to(DOCS):
        return str(path.relative_to(DOCS))
    if path.suffix == ".md" or path.suffix in AS_THEY_ARE:
        return str(path)
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path}.md"


def find_targets(markdown: str, source: PurePosixPath) -> set[PurePosixPath]:
    """The files of the repository that a file's links lead to."""
    return {_resolve(link, source) for link in _LINK.findall(_FENCED.sub("", markdown))}


def turn_links(markdown: str, source: PurePosixPath) -> str:
    """A file's text with links to where their targets are on the site."""
    folder = os.path.dirname(find_place(source))

    def turn(link: re.Match[str]) -> str:
        return os.path.relpath(find_place(_resolve(link[0], source)), folder or ".")

    parts, end = [], 0
    for block in _FENCED.finditer(markdown):
        parts += [_LINK.sub(turn, markdown[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, _LINK.sub(turn, markdown[end:])])


def show_pipes(markdown: str) -> str:
    """A text whose tables have pipes in code as mkdocs reads them: GitHub wants them escaped."""

    def show(line: re.Match[str]) -> str:
        return _CODE.sub(lambda code: code[0].replace("\\|", "|"), line[0])

    return _ROW.sub(show, markdown)


def list_linked(sources: Iterable[PurePosixPath]) -> set[PurePosixPath]:
    """All files outside of docs/ that these files link to, and what those link to in turn."""
    found: set[PurePosixPath] = set()
    new = set(sources)
    while new:
        source = new.pop()
        found.add(source)
        if source.suffix == ".md" and (ROOT / source).is_file():
            new |= find_targets((ROOT / source).read_text(), source) - found
    return {path for path in found if not path.is_relative_to(DOCS)}


def show_file(path: PurePosixPath) -> str:
    """The page that shows a file, or what is in a folder. Raises OSError where there is none."""
    if (ROOT / path).is_dir():
        files = sorted(each.name for each in (ROOT / path).iterdir() if each.is_file())
        shown = "\n\n".join(show_file(path / name) for name in files if not name.startswith("."))
        return f"# {path}/\n\n{shown}\n"
    text = (ROOT / path).read_text()
    return f"# {path}\n\n````{LANGUAGES.get(path.suffix, 'text')}\n{text}\n````\n"


def _resolve(link: str, source: PurePosixPath) -> PurePosixPath:
    return PurePosixPath(os.path.normpath(source.parent / link))
