"""A summary written down: Markdown, LaTeX (booktabs), CSV, and text for a terminal.

The first three are files; CSV has the numbers unrounded and in the rows' units, the others as a
reader wants them. Not here: which numbers (`summary`).
"""

from __future__ import annotations

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Callable, Sequence

from reports.columns import Column, number, number_of_bits
from reports.summary import Entry, Row, Summary

TESTBED = (
    "Testbed rows: an invented miniature world; they rank methods and say nothing about a real LLM"
)
MISSING = "–"


def markdown(summary: Summary) -> str:
    """A pipe table, its marks beneath."""

    def write(entry: Entry, shown: str, sd: str | None) -> str:
        shown = f"**{shown}**" if entry.best else shown
        shown = shown if sd is None else f"{shown} ± {sd}"
        return shown + (f" <sup>{','.join(entry.marks)}</sup>" if entry.marks else "")

    head = [escape_markdown(title) for title in _head(summary)]
    left = 2
    rule = [":--"] * left + ["--:"] * (len(head) - left)
    body = [
        [escape_markdown(cell) for cell in _stub(summary, row)] + _numbers(summary, row, write)
        for row in summary.rows
    ]
    lines = ["| " + " | ".join(cells) + " |" for cells in [head, rule, *body]]
    notes = [f"<sup>{mark}</sup> {escape_markdown(words)}  " for mark, words in summary.notes]
    return "\n".join([*lines, *(["", *notes] if notes else [])]) + "\n"


def latex(summary: Summary) -> str:
    """A `table*` for a two-column paper; it needs `\\usepackage{booktabs}` and nothing else."""

    def write(entry: Entry, shown: str, sd: str | None) -> str:
        shown = _latex_number(shown)
        shown = rf"\textbf{{{shown}}}" if entry.best else shown
        if sd is not None:
            shown += rf" {{\scriptsize $\pm$ {_latex_number(sd)}}}"
        return shown + (rf"\textsuperscript{{{','.join(entry.marks)}}}" if entry.marks else "")

    head = [escape_latex(title) for title in _head(summary)]
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table*}[t]",
        r"\centering",
        r"\small",
        rf"\caption{{{escape_latex(caption(summary))}}}",
        rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', summary.grid.name).strip('-')}}}",
        rf"\begin{{tabular}}{{ll{'r' * (len(head) - 2)}}}",
        r"\toprule",
        " & ".join(head) + r" \\",
    ]
    for group in summary.groups():
        lines.append(r"\midrule")
        for index, row in enumerate(group):
            stub = [escape_latex(cell) for cell in _stub(summary, row)]
            stub[0] = stub[0] if index == 0 else ""
            lines.append(" & ".join([*stub, *_numbers(summary, row, write)]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for index, (mark, words) in enumerate(summary.notes):
        start = r"\par\smallskip" if index == 0 else r"\par"
        lines.append(rf"{start}{{\footnotesize \textsuperscript{{{mark}}} {escape_latex(words)}}}")
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def tidy_csv(summary: Summary) -> str:
    """One line a row of the table; `.sd` over models, `.se` over items, `.n` models."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    head = ["bits", "method", "label", "bits_per_weight", "models"]
    words = dict(summary.notes)
    for column in summary.columns:
        name = _name(column)
        head += [name, f"{name}.sd", f"{name}.se", f"{name}.n", f"{name}.note"]
    writer.writerow(head)
    for row in summary.rows:
        name, label = " ".join(row.name.split()), " ".join(row.label.split())
        cells = [number_of_bits(row.bits), name, label, row.bits_per_weight, row.models]
        for entry in row.entries:
            if entry is None:
                cells += ["", "", "", 0, ""]
                continue
            note = "; ".join(words[mark] for mark in entry.marks)
            cells += [_exact(entry.mean), _exact(entry.sd), _exact(entry.se), entry.n, note]
        writer.writerow(cells)
    return out.getvalue()


def plain(summary: Summary, width: int) -> str:
    """For a terminal of `width` columns: what does not fit goes on in a further block."""
    head = _head(summary)
    groups = [[_plain_row(summary, row) for row in group] for group in summary.groups()]
    for group in groups:
        for cells in group[1:]:
            cells[0] = ""
    body = [cells for group in groups for cells in group]
    widths = [max(display_width(cells[i]) for cells in [head, *body]) for i in range(len(head))]
    widths[1] = min(widths[1], max(16, width // 2))
    gap = 1 if len(_blocks(widths, width, 2)) > len(_blocks(widths, width, 1)) == 1 else 2
    lines: list[str] = []
    for block in _blocks(widths, width, gap):
        lines += [""] if lines else []
        lines += _lines(head, block, widths, gap)
        rule = "─" * min(width, max(len(line) for line in _lines(body[0], block, widths, gap)))
        for group in groups:
            lines.append(rule)
            lines += [line for cells in group for line in _lines(cells, block, widths, gap)]
    below = [f"[{mark}] {words}" for mark, words in summary.notes]
    return "\n".join([*(line.rstrip() for line in lines), *_wrapped(below, width)])


def caption(summary: Summary) -> str:
    """The grid's caption, or one that explains the table; testbed rows always say what they are."""
    title = summary.grid.spec.caption or f"{summary.grid.model}: methods grouped by bits."
    note = [summary.grid.spec.note] if summary.grid.spec.note else []
    testbed = [TESTBED + "."] if summary.testbed else []
    return " ".join([title, *explanations(summary), *note, *testbed])


def explanations(summary: Summary, best: str = "in bold") -> list[str]:
    """What a reader must know to read the numbers."""
    words = []
    if any(column.percent for column in summary.columns):
        words.append("Scores in percent.")
    words.append(
        f"Best of each group {best}; bpw: bits per weight, scales and zero points counted."
    )
    average = next((column for column in summary.columns if column.task is None), None)
    scores = [column for column in summary.columns if column.higher and column.task is not None]
    if average is not None and len(average.tasks) < len({column.task for column in scores}):
        titles = [column.title for column in scores if column.task in average.tasks]
        words.append(f"Average over {', '.join(titles)}.")
    if summary.several:
        words.append("± is the standard deviation over models (column n) of different seeds.")
    if any(e is not None and e.se is not None for row in summary.rows for e in row.entries):
        words.append("Standard errors over items are in the CSV (.se).")
    if any(None in row.entries for row in summary.rows):
        words.append("– is not measured; an average needs every task.")
    return words


def escape_markdown(words: str) -> str:
    """Text that stays text within a pipe table."""
    words = " ".join(words.split())
    words = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", words)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def escape_latex(words: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(words.split()))


def wrap(words: str, width: int) -> list[str]:
    return textwrap.wrap(words, max(20, width), break_long_words=False, break_on_hyphens=False)


def display_width(words: str) -> int:
    """Columns that a terminal needs."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in words
    )


def _head(summary: Summary) -> list[str]:
    arrows = [f"{column.title} {'↑' if column.higher else '↓'}" for column in summary.columns]
    return ["Bits", "Method", "bpw", *(["n"] if summary.several else []), *arrows]


def _stub(summary: Summary, row: Row) -> list[str]:
    weight = MISSING if row.bits_per_weight is None else f"{row.bits_per_weight:.2f}"
    return [
        number_of_bits(row.bits),
        row.name,
        weight,
        *([_models(row)] if summary.several else []),
    ]


def _models(row: Row) -> str:
    """How many models stand behind the row's numbers: 3, or 2–3 where some are still open."""
    counts = sorted({entry.n for entry in row.entries if entry is not None}) or [row.models]
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def _numbers(
    summary: Summary,
    row: Row,
    write: Callable[[Entry, str, str | None], str],
    missing: str = MISSING,
) -> list[str]:
    cells = []
    for column, entry in zip(summary.columns, row.entries, strict=True):
        if entry is None:
            cells.append(missing)
            continue
        shown = number(entry.mean, column, summary.decimals)
        known = entry.sd is not None and entry.sd == entry.sd
        sd = number(entry.sd, column, summary.decimals) if known and entry.sd is not None else None
        cells.append(write(entry, shown, sd))
    return cells


def _write_plain(entry: Entry, shown: str, sd: str | None) -> str:
    shown = shown if sd is None else f"{shown} ± {sd}"
    marks = f" [{','.join(entry.marks)}]" if entry.marks else ""
    return shown + marks + ("*" if entry.best else " ")


def _latex_number(shown: str) -> str:
    mantissa, _, exponent = shown.partition("e")
    if exponent and mantissa[-1].isdigit():
        return rf"${mantissa} \times 10^{{{exponent}}}$"
    return {"inf": r"$\infty$", "-inf": r"$-\infty$"}.get(shown, shown)


def _name(column: Column) -> str:
    return "average" if column.task is None else f"{column.task}.{column.metric}"


def _exact(value: float | None) -> str:
    return "" if value is None else "NaN" if value != value else repr(value)


def _plain_row(summary: Summary, row: Row) -> list[str]:
    return _stub(summary, row) + _numbers(summary, row, _write_plain, MISSING + " ")


def _wrapped(paragraphs: Sequence[str], width: int) -> list[str]:
    return [line for words in paragraphs for line in wrap(words, width)]


def _blocks(widths: Sequence[int], width: int, gap: int) -> list[list[int]]:
    """Columns of each block; bits and method stand in all of them."""
    blocks = [[0, 1]]
    start = widths[0] + 2 + widths[1]
    used = start
    for index in range(2, len(widths)):
        if used + gap + widths[index] > width and len(blocks[-1]) > 2:
            blocks.append([0, 1])
            used = start
        blocks[-1].append(index)
        used += gap + widths[index]
    return blocks


def _lines(
    cells: Sequence[str], block: Sequence[int], widths: Sequence[int], gap: int
) -> list[str]:
    """One line, or several where the method's name is too long: names are never cut."""
    name = textwrap.wrap(cells[1], widths[1], subsequent_indent="  ") or [""]
    first = _pad(cells[0], widths[0], left=True) + "  " + _pad(name[0], widths[1], left=True)
    for index in block[2:]:
        first += " " * gap + _pad(cells[index], widths[index], left=False)
    return [first, *(" " * (widths[0] + 2) + part for part in name[1:])]


def _pad(words: str, width: int, left: bool) -> str:
    space = " " * (width - display_width(words))
    return words + space if left else space + words
