"""A sheet in LaTeX. Not here: which numbers (`table`, `published`, `effects`)."""

from __future__ import annotations

import itertools
import re

from reports.pages.escape import escape_latex
from reports.pages.sheet import Cell, Sheet, label

_WIDE = 9  # columns that fit a page of two text columns in small type
_ARROWS = {" ↓": r"lower is better $\downarrow$", " ↑": r"higher is better $\uparrow$"}
"""By the end of a title."""
_MARKS = {True: "✓", False: "✗"}
_COLOURS = {True: "green!40!black", False: "red!70!black"}


def write_latex(sheet: Sheet) -> str:
    """A `table*`, over both columns of a paper or its only one.

    Over the titles stands which way is better. Of a table with a short caption the long one follows
    as a paragraph, to be moved to where there is room. It needs booktabs, and xcolor where a
    tolerance is shown.
    """
    needs = r"\usepackage{booktabs}" + (r" \usepackage{xcolor}" if sheet.toleranced else "")
    columns = "l" * sheet.left + "r" * (len(sheet.head) - sheet.left)
    lines = [
        f"% needs {needs}",
        r"\begin{table*}[t]",
        r"\centering",
        r"\small" if len(sheet.head) <= _WIDE else r"\footnotesize \setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_latex(sheet.short or sheet.caption)}}}",
        rf"\label{{{label(sheet.name)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        *_write_head(sheet),
    ]
    for group in sheet.groups:
        lines.append(r"\midrule")
        for index, row in enumerate(group):
            cells = [_cell(cell, i >= sheet.left) for i, cell in enumerate(row)]
            cells[0] = cells[0] if index == 0 else ""
            lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for index, (mark, text) in enumerate(sheet.notes):
        start = r"\par\smallskip" if index == 0 else r"\par"
        sup = rf"\textsuperscript{{{escape_latex(mark)}}}"
        lines.append(rf"{start}{{\footnotesize {sup} {escape_latex(text)}}}")
    lines.append(r"\end{table*}")
    if sheet.short:
        name = rf"Table~\ref{{{label(sheet.name)}}}"
        note = sheet.caption.removeprefix(sheet.short).strip()
        lines += ["", rf"\paragraph{{How to read {name}.}}", escape_latex(note)]
    return "\n".join(lines) + "\n"


def _write_head(sheet: Sheet) -> list[str]:
    """The titles; over runs of them that are better higher or lower, an arrow for all."""
    ways = [_ARROWS.get(title[-2:], "") for title in sheet.head]
    titles = [t[:-2] if way else t for t, way in zip(sheet.head, ways, strict=True)]
    above, rules, place = [], [], 1
    for way, run in itertools.groupby(ways):
        count = len(list(run))
        above += [rf"\multicolumn{{{count}}}{{c}}{{{way}}}"] if way else [""] * count
        rules += [rf"\cmidrule(lr){{{place}-{place + count - 1}}}"] if way else []
        place += count
    last = " & ".join(escape_latex(title) for title in titles) + r" \\"
    return [" & ".join(above) + r" \\", " ".join(rules), last] if rules else [last]


def _cell(cell: Cell, number: bool) -> str:
    shown = _number(cell.text) if number else escape_latex(cell.text)
    shown = rf"\textbf{{{shown}}}" if cell.best else shown
    shown = rf"\underline{{{shown}}}" if cell.second else shown
    if cell.after:
        shown += rf" {{\scriptsize {' '.join(map(_number, cell.after.split()))}}}"
    if cell.near is not None:
        shown = rf"\textcolor{{{_COLOURS[cell.near]}}}{{{shown} {escape_latex(_MARKS[cell.near])}}}"
    marks = rf"\textsuperscript{{{escape_latex(','.join(cell.marks))}}}" if cell.marks else ""
    return shown + marks


def _number(shown: str) -> str:
    if power := re.fullmatch(r"(-?[0-9.]+)e\+?(-?[0-9]+)", shown):
        return rf"${power[1]} \times 10^{{{power[2]}}}$"
    return {"inf": r"$\infty$", "-inf": r"$-\infty$"}.get(shown, escape_latex(shown))
