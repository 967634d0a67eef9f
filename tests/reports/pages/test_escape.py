"""Whatever a name says stays text: in Markdown, HTML, LaTeX, spreadsheets and on a terminal.

Each exit is read again by a parser that is not ours.
"""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

import reports
from harness.cli.terminal import format_table
from harness.core.errors import UNSHOWABLE, show_text
from reports.pages.escape import (
    escape_formula,
    escape_html,
    escape_latex,
    escape_markdown,
    write_code,
    write_csv,
)
from reports.pages.html_provenance import embed_json
from reports.pages.latex import write_latex
from reports.pages.sheet import Cell, Sheet, html, markdown, plain
from reports.publishing import shown_pictures
from tests.reports.pages.test_table import compile_latex
from tests.support.hostile_texts import ALL, PIECES, hostile
from tests.support.synthetic_grids import row, write

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def make_sheet(texts: Sequence[str]) -> Sheet:
    cells = tuple(Cell(text, after=text, marks=(text,), near=True) for text in texts)
    head, note = tuple(texts), (texts[0], texts[-1])
    return Sheet(texts[0], texts[0], head, ((cells,), (cells, cells)), left=2, notes=(note,))


def read(tokens: Sequence[Token]) -> str:
    """What inline tokens say; they may be nothing but text."""
    assert {token.type for token in tokens} <= {"text", "text_special"}
    return "".join(token.content for token in tokens)


@given(hostile)
@settings(max_examples=60, deadline=None)
def test_text_in_markdown_is_text_wherever_it_stands(text: str) -> None:
    shown = show_text(text).strip()
    if not shown:
        return
    escaped = escape_markdown(text)
    for before, opening in (("", []), ("# ", []), ("- ", ["bullet_list", "list_item"])):
        tokens = MARKDOWN.parse(before + escaped)
        block = "heading" if before == "# " else "paragraph"
        kinds = [token.type.removesuffix("_open") for token in tokens[: len(opening) + 2]]
        assert kinds == [*opening, block, "inline"]
        assert len(tokens) == 2 * len(opening) + 3
        assert read(tokens[len(opening) + 1].children or []) == shown
    assert shown_pictures(f"{escaped}\n\n![{escaped}](plots/dots.png)") == ["plots/dots.png"]


@given(hostile)
@settings(max_examples=60, deadline=None)
def test_a_name_in_a_code_span_stays_in_it(text: str) -> None:
    (_, inline, _) = MARKDOWN.parse(f"Model: {write_code(text)}. Next")
    children = inline.children or []
    if shown := show_text(text).strip():
        assert [child.type for child in children] == ["text", "code_inline", "text"]
        assert children[1].content == shown
    else:
        assert [child.type for child in children] == ["text"]


@given(st.lists(hostile, min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_table_in_markdown_has_its_cells_and_no_more(texts: list[str]) -> None:
    tokens = MARKDOWN.parse(markdown(make_sheet(texts)))
    kinds = [token.type for token in tokens]
    assert [kinds.count(kind) for kind in ("th_open", "td_open", "tr_open")] == [3, 9, 4]
    inner = [token for token in tokens if token.type == "inline"]
    assert [read(token.children or []) for token in inner[:3]] == [
        show_text(t).strip() for t in texts
    ]
    for token in inner:
        children = token.children or []
        assert {child.type for child in children} <= {"text", "text_special", "html_inline"}
        tags = {child.content for child in children if child.type == "html_inline"}
        assert tags <= {"<sup>", "</sup>"}


class Reader(HTMLParser):
    """Tags, and the text between them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[str] = []
        self.others: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.others.append(data)

    handle_decl = unknown_decl = handle_pi = handle_comment


@given(st.lists(hostile, min_size=3, max_size=3))
@settings(max_examples=25, deadline=None)
def test_a_table_in_html_has_its_tags_and_no_more(texts: list[str]) -> None:
    page = Reader(html(make_sheet(texts)))
    known = {"table", "caption", "thead", "tbody", "tfoot", "tr", "th", "td", "sup", "small"}
    assert set(page.tags) <= known and page.others == []
    assert set(page.attributes) <= {"class", "id", "scope", "style", "colspan"}
    assert page.tags.count("th") + page.tags.count("td") == 3 + 9 + 1
    for text in texts:
        (attribute,) = re.findall('<p title="(.*)">', f'<p title="{escape_html(text)}">')
        assert not set("<>\"'") & set(attribute)
        shown = show_text(text).strip()
        assert not shown or shown in page.texts


@given(st.lists(hostile, min_size=2, max_size=2))
@settings(max_examples=25, deadline=None)
def test_data_of_a_page_ends_no_script(texts: list[str]) -> None:
    text = embed_json({"rows": [{"title": texts[0], "facts": [texts[1], None]}]})
    assert text.isascii() and not set("<>&") & set(text)
    facts = json.loads(text)["rows"][0]
    said = facts["title"] + str(facts["facts"][0])
    assert not re.search(f"(?!\n)[{UNSHOWABLE}]", said)


@given(st.lists(hostile, min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_no_spreadsheet_runs_a_cell(texts: list[str]) -> None:
    number = re.compile(r"[-+]?[0-9.]+(e[-+]?[0-9]+)?( \[.*\])?", re.I)
    (cells,) = csv.reader(io.StringIO(write_csv([texts])), strict=True)
    assert len(cells) == len(texts)
    for cell, text in zip(cells, texts, strict=True):
        assert cell.replace("'", "") == show_text(text).strip().replace("'", "")
        if not number.fullmatch(cell):
            for part in unicodedata.normalize("NFKC", cell).split(";"):
                assert not part.lstrip().startswith(("=", "+", "-", "@", "\t", "\r"))


@given(st.floats())
def test_numbers_stay_numbers_in_a_spreadsheet(value: float) -> None:
    (cells,) = csv.reader(io.StringIO(write_csv([[repr(value), value]])))
    assert cells == [repr(value), repr(value)]


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("-0.5", "-0.5"),
        ("+3", "+3"),
        ("-2.5 [-3, -1]", "-2.5 [-3, -1]"),
        ("−2.5", "−2.5"),
        ("–", "–"),
        ("=1+1", "'=1+1"),
        ("  =1+1", "'=1+1"),
        ("\t@SUM(A1)", "'@SUM(A1)"),
        ("-2+3+cmd|' /C calc'!A0", "'-2+3+cmd|' /C calc'!A0"),
        ("-2.5 [-3, =1]", "'-2.5 [-3, =1]"),
        ("＝1", "'＝1"),
        ("stale; =1", "stale; '=1"),
        ("a=1", "a=1"),
        ("'=1", "'=1"),
    ],
)
def test_what_begins_a_formula_has_an_apostrophe(text: str, written: str) -> None:
    assert escape_formula(text) == written


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("^^5cinput", r"\textasciicircum{}\textasciicircum{}5cinput"),
        ("[1cm]", "{[}1cm{]}"),
        ("Żółw 中", r"\.{Z}\'{o}\l{}w U+4E2D"),
        ("a\x1b\u202eb", r"a\textbackslash{}x1b\textbackslash{}u202eb"),
    ],
)
def test_latex_knows_every_character(text: str, written: str) -> None:
    assert escape_latex(text) == written


def test_only_a_number_is_set_as_one() -> None:
    cells = (Cell("a"), Cell(r"\input{x}1e5"), Cell("2.2e5"), Cell("1e-3"))
    written = write_latex(Sheet("s", "c", ("a", "b", "c", "d"), ((cells,),), left=1))
    assert r"\textbackslash{}input\{x\}1e5 & $2.2 \times 10^{5}$ & $1 \times 10^{-3}$" in written


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_a_hostile_table_compiles(tmp_path: Path) -> None:
    sheets = [make_sheet([piece, f"a{piece}b", piece * 2]) for piece in PIECES]
    compile_latex(tmp_path, [*map(write_latex, sheets), write_latex(make_sheet([ALL, "a", "b"]))])


@given(st.lists(hostile, min_size=2, max_size=2))
@settings(max_examples=25, deadline=None)
def test_a_terminal_is_given_nothing_but_text(texts: list[str]) -> None:
    table = format_table([texts, ["a", "b"]], head=("A", "B"), words=2, width=10_000)
    assert len(table.splitlines()) == 3
    lines = [*table.split("\n"), *plain(make_sheet([*texts, "c"]), 80).split("\n")]
    assert not any(re.search(f"[{UNSHOWABLE}]", line) for line in lines)


def test_a_report_of_hostile_names_is_written_and_read(tmp_path: Path) -> None:
    text = ALL.replace("\ud800", "")  # records with halves of pairs are refused
    names = {"label": text, "settings": {f"axis{text}": text}}
    measured = {"task": f"t{text}", "metric": f"m{text}"}
    stated = dict.fromkeys(("protocol", "stale", "model", "caveat", "tokenizer"), text)
    hole = {"cell": "h", "label": text, "settings": {"a": text}, "seed": 0, "reason": text}
    head = {"name": text, "question": text, "model": text, "holes": [hole]}
    titles = {"title": text, "caption": text, "note": text}
    rows = [row(**names, **measured, **stated), row(label="B", **measured)]
    folder = write(tmp_path, rows, report=titles, **head)
    paths = {path.name: path for path in reports.render(folder, html=True)}
    for name in ("report.md", "table.md", "table.tex", "table.csv", "table.html", "table.txt"):
        found = re.search(f"(?!\n)[{UNSHOWABLE}]", paths[name].read_text())
        assert found is None, (name, found)
    page = Reader(paths["index.html"].read_text())
    assert (page.tags.count("script"), page.tags.count("style"), page.others) == (
        2,
        1,
        ["DOCTYPE html"],
    )
    assert not any(name.startswith("on") for name in page.attributes)
    assert not re.search(f"(?!\n)[{UNSHOWABLE}]", "".join(page.texts))
    json.loads(_find_data(paths["index.html"].read_text()))
    records = list(csv.reader(io.StringIO(paths["table.csv"].read_text()), strict=True))
    assert len({len(record) for record in records}) == 1 and len(records) == 3


def _find_data(page: str) -> str:
    (found,) = re.findall('<script type="application/json" id="data">(.*?)</script>', page)
    return str(found)
