"""What mkdocs calls as it builds the site: adds pages that nobody wrote, and turns links.

Not here: which they are and where links lead (`pages`), what the code says (`reference`).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pages
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ALONE = {"index.md", "tutorial.md"}  # parts of one page: nothing to choose beside them
RESULTS = sorted(path.parent.name for path in pages.ROOT.glob("results/*/report.md"))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The reports of results/ are a part of their own, before the log."""
    nav: list[Any] = config.nav or []
    config.nav = [
        *nav[:-1],
        {"Results": [f"results/{name}/report.md" for name in RESULTS]},
        nav[-1],
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made of the code, and every file that a page links to."""
    sources = [pages.DOCS / each.src_uri for each in files if each.src_uri.endswith(".md")]
    sources += [PurePosixPath(name) for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    sources += [PurePosixPath(f"results/{name}/report.md") for name in RESULTS]
    linked = pages.list_linked(sources)
    for name, content in reference.write_pages().items():
        place = f"reference/{name}.md"
        files.append(File.generated(config, place, content=content))
        linked |= pages.list_linked(pages.find_targets(content, pages.DOCS / place))
    for path in sorted(linked):
        files.append(_make_file(path, config))
    return files


def _make_file(path: PurePosixPath, config: MkDocsConfig) -> File:
    place, source = pages.find_place(path), pages.ROOT / path
    if path.suffix == ".md" or path.suffix in pages.AS_THEY_ARE:
        return File.generated(config, place, abs_src_path=str(source))
    return File.generated(config, place, content=pages.show_file(path))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    place = page.file.src_uri
    if place in ALONE:
        page.meta["hide"] = ["navigation"]
    if place.startswith("source/"):
        return markdown
    is_outside = page.file.generated_by and not place.startswith("reference/")
    source = PurePosixPath(place) if is_outside else pages.DOCS / place
    source = pages.HOME if place == "index.md" else source
    return pages.show_pipes(pages.turn_links(markdown, source))
