"""Keeps what lets a user in out of what others may read: errors, records of failures, logs.

Not here: what is written of a user's text in general (`errors.show_text`, `reports.pages.escape`).
"""

from __future__ import annotations

import os
import re

HIDDEN = "…"
"""What stands in the place of a secret."""

_NAMES = re.compile(r"TOKEN(?!IZER)|SECRET|PASSW|(API|ACCESS|PRIVATE)_?KEY|CREDENTIAL", re.I)
_FIELDS = "token|sig|key|secret|password|credential"
_SHORTEST = 8  # characters; what is shorter may be any word
_KINDS = (
    (re.compile(r"(?<=://)[^/\s@]+(?=@)"), HIDDEN),  # of a URL: user and password
    # Of a signed or keyed URL, and of a header.
    (re.compile(rf"([?&][\w.-]*(?:{_FIELDS})[\w.-]*=)[^&\s'\"]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"\b((?:Bearer|Basic) )[\w.~+/=-]{8,}"), rf"\1{HIDDEN}"),
    (re.compile(r"\bhf_\w{8,}"), HIDDEN),
)


def hide_secrets(text: str) -> str:
    """Text without the values of variables that are named as secrets are, and without what looks
    like one: in a URL, in a header, a token of the hub."""
    for value in sorted(set(_list_secrets().values()), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    for kind, instead in _KINDS:
        text = kind.sub(instead, text)
    return text


def name_secret(text: str) -> str | None:
    """The variable, named as secrets are, whose value stands in a text; None where none does."""
    return next((name for name, value in _list_secrets().items() if value in text), None)


def _list_secrets() -> dict[str, str]:
    """Of the environment, by name."""
    named = ((name, value) for name, value in os.environ.items() if _NAMES.search(name))
    return {name: value for name, value in named if len(value) >= _SHORTEST}
