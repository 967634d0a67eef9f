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
    values = {value for name, value in os.environ.items() if _NAMES.search(name)}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= _SHORTEST:
            text = text.replace(value, HIDDEN)
    for kind, instead in _KINDS:
        text = kind.sub(instead, text)
    return text
