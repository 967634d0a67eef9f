"""The four ways to write the table."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

import reports
from harness.core.errors import show_text
from harness.core.records import ITEM_KEY
from reports.numbers.columns import format_fixed
from reports.numbers.summary import Summary
from reports.pages.escape import escape_latex
from reports.pages.latex import write_latex
from reports.pages.sheet import html, markdown, plain
from reports.pages.table import list_explanations, make_sheet, write_csv
from reports.rendering import render
from tests.support.synthetic_grids import ppl, quickstart, row, summary_of, write

TINY = """\
| Bits | Method | bpw | n | PPL ↓ | Knowledge ↑ |
| :-- | :-- | --: | --: | --: | --: |
| 16 | BF16 | – | 1 | 5.47 | 80.0 |
| 2 | RTN | 2.14 | 1 | NaN | 25.0 <sup>a</sup> |
| 2 | AWQ-clip | 2.14 | 1 | **2.2e5** | – |
| 2 | Bit\\|Distiller | 2.14 | 2 | **2.2e5** ± 1061 | **60.0** ± 14.1 |

<sup>a</sup> stale: formats.py changed  
"""


def tiny(folder: Path) -> Summary:
    rows = [ppl(label="BF16", bits=16, value=5.47), row(label="BF16", bits=16, value=0.8)]
    rows += [ppl(value=math.nan), row(value=0.25, stale="formats.py changed")]
    rows += [ppl(label="AWQ-clip", value=221_000.0)]
    for seed, value in enumerate([0.5, 0.7]):
        key = {"label": "Bit|Distiller", "seed": seed}
        rows += [ppl(**key, value=222_000.0 + 1500 * seed), row(**key, value=value)]
    return summary_of(write(folder, rows))


def test_markdown_golden(tmp_path: Path) -> None:
    assert markdown(make_sheet(tiny(tmp_path))) == TINY


@pytest.mark.parametrize("tie", [0.75, -0.25, 61.25, 1234.5])
def test_the_last_bits_of_a_sum_decide_no_tie(tie: float) -> None:
    decimals = 0 if tie > 1000 else 1
    near = {math.nextafter(tie, end) for end in (-math.inf, math.inf)}
    assert {format_fixed(value, decimals) for value in near} == {f"{tie:.{decimals}f}"}
    assert format_fixed(tie + 1e-6, decimals) == f"{tie + 1e-6:.{decimals}f}"


@pytest.mark.parametrize(
    ("value", "chance", "told"),
    [(0.55, 0.5, True), (0.7, 0.5, False), (0.55, None, False), (0.2, 0.25, True)],
)
def test_a_task_that_the_full_precision_model_guesses_is_told(
    tmp_path: Path, value: float, chance: float | None, told: bool
) -> None:
    scores = [1.0] * int(100 * value) + [0.0] * (100 - int(100 * value))
    rows, items = [], []
    for label, bits in (("BF16", 16), ("RTN", 2)):
        rows.append(row(label=label, bits=bits, value=sum(scores) / 100, n=100, chance=chance))
        item = {name: rows[-1][name] for name in (*ITEM_KEY, "schema")}
        items.append(item | {"items": None, "scores": scores})
    folder = write(tmp_path, rows, items=items)
    summary = summary_of(folder)
    told_of = [each for each in list_explanations(summary) if each.startswith("At chance")]
    assert told_of == (
        [
            f"At chance: Knowledge ({100 * (chance or 0):.1f}). BF16 cannot be told from guessing "
            "there, so that no method can be judged by it."
        ]
        if told
        else []
    )
    if told:
        render(folder, html=True)
        for name in ("report.md", "table.tex", "table.html", "table.txt", "index.html"):
            text = " ".join((folder / name).read_text().split())
            assert "BF16 cannot be told from guessing there" in text, name


def test_latex_is_balanced_and_complete(tmp_path: Path) -> None:
    found = write_latex(make_sheet(summary_of(quickstart(tmp_path))))
    check_latex(found)
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", found)
    assert columns is not None
    lines = [line for line in found.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 11
    above, *lines = lines  # which way is better, over runs of columns
    assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns[1])}
    spans = re.findall(r"multicolumn\{(\d)\}\{c\}\{(\w+) is better", above)
    assert spans == [("1", "lower"), ("4", "higher")]
    assert above.count("&") + 1 + sum(int(count) - 1 for count, _ in spans) == len(columns[1])
    first = 1 + len(columns[1]) - 5
    assert rf"\cmidrule(lr){{{first}-{first}}} \cmidrule(lr){{{first + 1}-{first + 4}}}" in found
    assert "↑" not in found and "↓" not in found
    caption, note = found.split(r"\end{table*}")
    assert "tested" not in caption and "In bold" in note  # a short caption, the rest to be moved
    assert [found.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 3, 1]
    assert r"\textbf{9.83} {\scriptsize $\pm$ 0.30}" in found
    assert "say nothing about a real LLM" in found


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path: Path) -> None:
    odd = [row(label='a & b_c 100% #1 {x} ~^\\ <|> γ 3×4 – ≤ † "q" “', value=0.4)]
    tables = [
        write_latex(make_sheet(summary_of(quickstart(tmp_path / "a")))),
        write_latex(make_sheet(tiny(tmp_path / "b"))),
    ]
    tables.append(write_latex(make_sheet(summary_of(write(tmp_path / "c", odd)))))
    compile_latex(tmp_path, tables)


def compile_latex(folder: Path, tables: list[str]) -> None:
    """A two-column paper with these tables; the engine's words where it refuses one."""
    head = r"\documentclass[twocolumn]{article}\usepackage{booktabs}\usepackage{xcolor}"
    body = "\n\\clearpage\n".join(tables)
    (folder / "paper.tex").write_text(f"{head}\n\\begin{{document}}\n{body}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert (folder / "paper.pdf").stat().st_size > 1000


def test_latex_numbers(tmp_path: Path) -> None:
    found = write_latex(make_sheet(tiny(tmp_path)))
    assert r"\textbf{$2.2 \times 10^{5}$}" in found
    assert "NaN" in found
    assert r"25.0\textsuperscript{a}" in found


def check_latex(found: str) -> None:
    begun: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", found):
        if kind == "begin":
            begun.append(name)
        else:
            assert begun.pop() == name
    assert begun == []
    bare = re.sub(r"\\[\\{}$&%#_]", "", found)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0


def test_html_is_a_whole_table_and_no_script(tmp_path: Path) -> None:
    rows = [row(label="<script>alert(1)</script>", value=0.7), row(label='"B" & C', value=0.4)]
    found = html(make_sheet(summary_of(write(tmp_path, rows, report={"caption": "<b>x</b>"}))))
    tree = ElementTree.fromstring(found)
    assert tree.tag == "table"
    assert {len(line) for line in tree.iter("tr")} == {4}
    assert [cell.text for cell in tree.iter("strong")] == ["70.0"]
    assert "<script>alert(1)</script>" in [cell.text for cell in tree.iter("th")]
    assert (tree.findtext("caption") or "").startswith("<b>x</b>")


def test_second_and_marks_in_every_form(tmp_path: Path) -> None:
    rows = [row(label=name, value=v) for name, v in (("A", 0.5), ("B", 0.4), ("C", 0.3))]
    rows[1]["stale"] = "old"
    shown = make_sheet(summary_of(write(tmp_path, rows)))
    assert "<u>40.0</u> <sup>a</sup>" in markdown(shown)
    assert r"\underline{40.0}\textsuperscript{a}" in write_latex(shown)
    assert "<td><u>40.0</u><sup>a</sup></td>" in html(shown)
    assert "second underlined" in shown.caption


@given(st.text(max_size=40))
def test_latex_escapes_any_text(words: str) -> None:
    found = escape_latex(words)
    check_latex(found)
    commands = r"\\[{}$&%#_]|\\[a-zA-Z]+\{\}|\$(?:\\[a-zA-Z]+|-)\$"
    known = commands + r"|\\[`'^~=u.\"rHvc]\{[A-Za-z]\}|\{[][]\}"
    plain_text = re.sub(known, "", found)
    assert not set("&%$#_{}~^\\<>|[]") & set(plain_text)
    assert plain_text.isascii() and plain_text.isprintable()


@given(label=st.text(min_size=1, max_size=30), reason=st.text(min_size=1, max_size=30))
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_label_keeps_every_table_whole(tmp_path: Path, label: str, reason: str) -> None:
    rows = [row(label=label, stale=reason, cell="a", model_key="a"), row(label="B")]
    summary = summary_of(write(tmp_path, rows))
    table = markdown(make_sheet(summary)).split("\n\n")[0].splitlines()
    assert len(table) == 4
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {5}
    check_latex(write_latex(make_sheet(summary)))
    records = list(csv.reader(io.StringIO(write_csv(summary))))
    assert {len(record) for record in records} == {16}
    shown = show_text(label).strip().replace("'", "")  # a formula has an apostrophe before it
    assert any(record[2].replace("'", "") == shown for record in records)


def test_csv_is_exact(tmp_path: Path) -> None:
    records = list(csv.DictReader(io.StringIO(write_csv(summary_of(quickstart(tmp_path))))))
    assert len(records) == 9
    frame = reports.load(tmp_path)
    for record in records:
        cells = frame[(frame["label"] == record["label"]) & (frame["bits"] == int(record["bits"]))]
        values = cells[cells["metric"] == "ppl"].drop_duplicates("model_key")["value"]
        assert float(record["testbed-ppl.ppl"]) == pytest.approx(values.mean(), rel=1e-12)
        assert int(record["testbed-ppl.ppl.n"]) == len(values)
    last = records[-1]
    assert last["testbed_arithmetic.exact_match.note"] == "stale: methods/training/train.py changed"
    assert float(last["testbed_knowledge.acc.se"]) == pytest.approx(0.02)


def test_csv_tells_nan_from_missing(tmp_path: Path) -> None:
    records = list(csv.DictReader(io.StringIO(write_csv(tiny(tmp_path)))))
    by_name = {record["method"]: record for record in records}
    assert by_name["RTN"]["testbed-ppl.ppl"] == "NaN"
    assert by_name["AWQ-clip"]["testbed_knowledge.acc"] == ""
    assert by_name["AWQ-clip"]["testbed_knowledge.acc.n"] == "0"


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
def test_text_fits_its_width_and_loses_nothing(tmp_path: Path, width: int) -> None:
    summary = summary_of(quickstart(tmp_path))
    found = plain(make_sheet(summary), width)
    if width > 40:
        assert all(cell_len(line) <= width for line in found.splitlines())
    for title in ("PPL ↓", "Knowledge ↑", "Story ↑", "Arithmetic ↑", "Average ↑"):
        assert found.count(title) == 1
    assert "9.83 ± 0.30*" in found
    assert "[a] stale: methods/training/train.py changed" in " ".join(found.split())


def test_long_names_go_on_and_are_never_cut(tmp_path: Path) -> None:
    rows = [row(label="Method", settings={"some.axis": "x" * 20, "b": v}) for v in ("y", "z")]
    rows[0]["settings"]["other.long.axis"] = 12345
    found = plain(make_sheet(summary_of(write(tmp_path, rows))), 60)
    assert "axis 12345" in found
    assert "b z" in found


def test_terminal_text_says_what_it_is(tmp_path: Path) -> None:
    found = reports.text(quickstart(tmp_path), 80)
    assert found.startswith("quickstart: Which method keeps")
    assert "Testbed rows: an invented miniature world" in found
    assert "25 of 27 cells finished, 1 failed, 1 not run yet" in found
    assert "failed: NaN at step 12" in found
    assert all(cell_len(line) <= 80 for line in found.splitlines())
