"""What was worked out from texts and files that may come again, in the user's cache.

    if (kept := recall("code", text)) is None:
        keep("code", kept := read(text), text)

    <cache>/<kind>/<digest>.json        JSON, by a digest of all that it follows from

It is never needed: where it is lost, broken or cannot be written, it is worked out again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

from harness.core.files import write_text
from harness.core.paths import cache_folder


def recall(kind: str, *basis: str) -> Any | None:
    """What was kept of the texts `basis`; None where there is nothing."""
    with contextlib.suppress(OSError, ValueError, RecursionError, RuntimeError):  # no home
        return json.loads(_find_place(kind, basis).read_bytes())
    return None


def keep(kind: str, content: Any, *basis: str) -> None:
    """Keep JSON for `recall`, where that can be done."""
    with contextlib.suppress(OSError, RuntimeError):
        place = _find_place(kind, basis)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_text(place, json.dumps(content), durable=False)


def _find_place(kind: str, basis: tuple[str, ...]) -> Path:
    digest = hashlib.sha256(json.dumps(basis).encode()).hexdigest()
    return cache_folder() / kind / f"{digest[:32]}.json"
