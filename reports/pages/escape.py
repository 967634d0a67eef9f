"""Text that stays text, whatever it says: in Markdown, HTML, LaTeX and spreadsheets.

What grids, models, data sets and errors say reaches a page through one of these functions, each of
which shows it as one line (`harness.core.errors.show_text`). Not here: how a table is written.
"""

from __future__ import annotations

import csv
import html
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence

from harness.core.errors import show_text

_GREEK = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
_GREEK_NAMES = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
    "upsilon phi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega"
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "`": r"\textasciigrave{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # not the option of the command before it
    "]": "{]}",
    "–": "--",
    "—": "---",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "−": r"$-$",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "→": r"$\rightarrow$",
    "←": r"$\leftarrow$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "≈": r"$\approx$",
    "≠": r"$\neq$",
    "∞": r"$\infty$",
    "†": r"$\dagger$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "µ": r"$\mu$",
    **{letter: rf"$\{name}$" for letter, name in zip(_GREEK, _GREEK_NAMES.split(), strict=True)},
    **{character: "\\" + character for character in "&%$#_{}"},
}
_ACCENTS = {  # combining marks that every font of LaTeX has
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}
# What a spreadsheet shows as it stands: a number, or one with its interval.
_REAL = r"[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(rf"(?:{_REAL}|[-+]?inf|NaN)(?: \[{_REAL}, {_REAL}\])?", re.ASCII)


def escape_markdown(text: str) -> str:
    """Text as text within a pipe table, a heading or a line of its own: no mark-up of any kind."""
    text = html.escape(show_text(text).strip(), quote=False)
    text = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", text)
    # At the start of a line: a rule, an item of a list, a numbered one.
    return re.sub(r"^(?=[-+](?: |$)|-[- ]*$)|^(\d{1,9})(?=[.)](?: |$))", r"\1\\", text)


def write_code(text: str) -> str:
    """Text as a code span of Markdown: its fence is longer than any run of backticks in it."""
    text = show_text(text).strip()
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else ""


def escape_html(text: str) -> str:
    """Text as text within an element or an attribute in quotes."""
    return html.escape(show_text(text).strip())


def escape_latex(text: str) -> str:
    """Text that pdflatex sets as it stands, with no package.

    A character that it has no command for, as of Chinese, stands as its number: U+4E2D.
    """
    return "".join(map(_set_letter, unicodedata.normalize("NFC", show_text(text).strip())))


def _set_letter(letter: str) -> str:
    if letter in _LATEX or letter.isascii():
        return _LATEX.get(letter, letter)
    letters = unicodedata.normalize("NFD", letter).ljust(2)
    base, mark = letters[0], letters[1]
    if unicodedata.normalize("NFC", base + mark) == letter and base.isascii() and mark in _ACCENTS:
        return rf"\{_ACCENTS[mark]}{{{base}}}"
    return f"U+{ord(letter):04X}"


def write_csv(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV: numbers as they are, and text that no spreadsheet runs as a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerows(
        [escape_formula(cell) if isinstance(cell, str) else cell for cell in row] for row in rows
    )
    return out.getvalue()


def escape_formula(text: str) -> str:
    """Text with an apostrophe before what would begin a formula: = + - @, wide ones too.

    Also after a semicolon, at which some spreadsheets begin a cell. Numbers stay as they are.
    """
    text = show_text(text).strip()
    if _NUMBER.fullmatch(text):
        return text
    return re.sub(r"(^|;\s*)(?=[-=+@－＝＋＠﹣﹦﹢﹫])", r"\1'", text)
