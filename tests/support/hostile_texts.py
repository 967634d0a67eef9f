"""Texts that mean something to whatever prints them."""

from __future__ import annotations

from hypothesis import strategies as st

PIECES = (
    *("|", "`", "``", "\\", "*", "_", "~~", "#", "- ", "+ ", "1. ", "2) ", "> ", "---", "===", "!"),
    *(
        "[a](http://x)",
        "![a](b.png)",
        "[x]: /y",
        "<b>",
        "</script>",
        "<!--",
        "]]>",
        "&amp;",
        "&#60;",
    ),
    *("$x^2$", "{", "}", "^^41", "%", "~", "\\input{x}", "&#60;", "&", '"', "'", "?`", "--"),
    *("=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", "=", "＝1", "－", ";", ",", "1e5", "-0.5"),
    *("\n", "\n\n", "\r", "\t", "\u2028", "\x85", "\x00", "\x1b[31m", "\x7f", "\u202e", "\u200b"),
    *("\ud800", "\uffff", "\ufeff", "\U000e0041", "é", "Ż", "e\u0301", "中", "γ", "✓", "→", "😀"),
    *("x", "RTN", "2", " ", "  "),
)
ALL = " ".join(PIECES)
"""Every piece, one after the other."""

hostile = st.lists(
    st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), min_size=1, max_size=8
).map("".join)
