"""A sheet in LaTeX. Not here: which numbers (`table`, `published`, `effects`)."""

from __future__ import annotations

from reports.pages.sheet import Cell, Sheet, label

_WIDE = 9  # columns that fit a page of two text columns in small type
_COLOURS = {True: "green!40!black", False: "red!70!black"}
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": "--",
    "—": "---",
    "−": r"$-$",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "†": r"$\dagger$",
    "Δ": r"$\Delta$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    **{character: "\\" + character for character in "&%$#_{}"},
}


def write_latex(sheet: Sheet) -> str:
    """A `table*` for a two-column paper.

    It needs booktabs, and xcolor where a tolerance is shown.
    """
    needs = r"\usepackage{booktabs}" + (r" \usepackage{xcolor}" if sheet.toleranced else "")
    columns = "l" * sheet.left + "r" * (len(sheet.head) - sheet.left)
    lines = [
        f"% needs {needs}",
        r"\begin{table*}[t]",
        r"\centering",
        r"\small" if len(sheet.head) <= _WIDE else r"\footnotesize \setlength{\tabcolsep}{3pt}",
        rf"\caption{{{escape_latex(sheet.caption)}}}",
        rf"\label{{{label(sheet.name)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(escape_latex(title) for title in sheet.head) + r" \\",
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
    return "\n".join([*lines, r"\end{table*}"]) + "\n"


def escape_latex(text: str) -> str:
    """Text that LaTeX sets as it stands."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def _cell(cell: Cell, number: bool) -> str:
    shown = _number(cell.text) if number else escape_latex(cell.text)
    shown = rf"\textbf{{{shown}}}" if cell.best else shown
    shown = rf"\underline{{{shown}}}" if cell.second else shown
    if cell.after:
        shown += rf" {{\scriptsize {' '.join(map(_number, cell.after.split()))}}}"
    if cell.near is not None:
        shown = rf"\textcolor{{{_COLOURS[cell.near]}}}{{{shown}}}"
    marks = rf"\textsuperscript{{{escape_latex(','.join(cell.marks))}}}" if cell.marks else ""
    return shown + marks


def _number(shown: str) -> str:
    mantissa, _, exponent = shown.partition("e")
    if exponent.isdigit() and mantissa[-1:].isdigit():
        return rf"${mantissa} \times 10^{{{exponent}}}$"
    return {"inf": r"$\infty$", "-inf": r"$-\infty$"}.get(shown, escape_latex(shown))
