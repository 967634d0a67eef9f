"""The errors that Bitgrid raises on purpose. Each message is one line that says what to do.

Printed once, at the top, by `harness.cli.main`; anything else that reaches the top is a bug.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from harness.core.secrets import hide_secrets

# What would not show as one line of what was written: control characters, other ends of lines,
# halves of surrogate pairs, marks that turn the direction of the text around them, and what has no
# width at all.
UNSHOWABLE = (
    "\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
    "\u200b\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f"
)
_LONGEST_WORD, _LONGEST_LINE = 240, 2000  # characters of a message


class BitgridError(Exception):
    """Base of all errors whose message is meant for the user, and is shown as one line."""

    def __str__(self) -> str:
        return make_line(super().__str__())


class CollisionError(BitgridError):
    """Two definitions that claim one name: names both files."""


class GridError(BitgridError):
    """A grid file that cannot be run: names file, line, what it says, the nearest name."""


class SettingError(BitgridError, ValueError):
    """A setting that a method does not have, or a value that it does not take.

    `path` is the dotted path; "" where several fields do not fit each other.
    """

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ModelError(BitgridError):
    """A model that cannot be loaded, or that a method cannot handle."""


class TextError(BitgridError):
    """A text source that is unknown, missing or empty."""


class FormatError(BitgridError, ValueError):
    """A number format that does not fit a layer, or whose parameters make no sense."""


class TrainingError(BitgridError):
    """Training that met NaN or Inf, or diverged: names the step, a layer, the last checkpoint."""


class ValueChanged(BitgridError):
    """A stage changed an input, or its value would not come back the same from the store."""


class StoreError(BitgridError):
    """A store that cannot be written, or holds something unreadable."""


class Damaged(StoreError):
    """A value whose files are not those that were committed. `key`: whose value."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


class Outbid(BitgridError):
    """Another process has taken a stage over: whoever is told leaves, with nothing to report."""


class ClusterError(BitgridError):
    """A cluster profile that makes no sense, or a scheduler that refuses or does not answer."""


class ReportError(BitgridError):
    """Rows that cannot be turned into a report."""


def make_line(text: str) -> str:
    """Any text as one line of what can be seen, without the middle of what is too long."""
    line = hide_secrets(show_text(text).strip())
    line = re.sub(rf"\S{{{_LONGEST_WORD},}}", lambda match: _cut(match[0], _LONGEST_WORD), line)
    return _cut(line, _LONGEST_LINE)


def show_text(text: str) -> str:
    """Any text as one line of what can be seen; nothing is cut.

    White space that is more than spaces is one space; what does not show is its number: `\\x1b`.
    """
    if text.isascii() and text.isprintable():
        return text
    line = re.sub(r"\s+", lambda match: " " if match[0].strip(" ") else match[0], text)
    return re.sub(f"[{UNSHOWABLE}]", lambda match: ascii(match[0])[1:-1], line)


def show_lines(text: str) -> str:
    """`show_text` of each line of a text that was broken into lines on purpose."""
    return "\n".join(map(show_text, text.split("\n")))


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most * 2 // 3]}…{text[-most // 4 :]}"


def first_line(error: BaseException) -> str:
    """What an error of somebody else's says, as far as one line goes."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


def nearest(wrong: object, choices: Iterable[str], prefix: str = "") -> str:
    """A phrase for the end of an error: the nearest valid name, or the list where none is near.

    `prefix` stands before each name that is shown: the part of a dotted path that was right.
    """
    names = sorted(choices)
    close = close_to(wrong, names)
    if close is not None:
        return f"did you mean {prefix + close!r}?"
    shown = ", ".join(prefix + name for name in names[:12]) + (", …" if len(names) > 12 else "")
    return f"choices: {shown}" if names else "there are no choices"


def close_to(name: object, choices: Iterable[str]) -> str | None:
    """The nearest valid name; None where none is near."""
    close = difflib.get_close_matches(str(name), list(choices), n=1, cutoff=0.5)
    return close[0] if close else None
