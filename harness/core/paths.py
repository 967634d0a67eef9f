"""Paths as users write them: in grids, in variables, on the command line.

    read_path("~/models/mine", ModelError)        # the path; ModelError where there can be none

Not here: what should lie there (whoever asks).
"""

from __future__ import annotations

import errno
from pathlib import Path

from harness.core.errors import BitgridError

_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def read_path(text: str | Path, error: type[BitgridError], folder: Path | None = None) -> Path:
    """The path that a text is, below `folder` unless it is absolute; of a text `~` is expanded.

    Nothing need lie there. Raises `error` where nothing can: a name too long for the system, a user
    who is not there, a folder that may not be entered, links in a circle.
    """
    try:
        path = Path(text).expanduser() if isinstance(text, str) else text
        path = path if folder is None else folder / path
        path.stat()
    except OSError as fault:
        if fault.errno not in _ABSENT:
            raise error(f"path {str(text)!r} cannot be looked at: {fault.strerror}") from None
    except (ValueError, RuntimeError) as fault:  # NUL, half a surrogate pair; no such user
        reason = "it has characters that no path has" if isinstance(fault, ValueError) else fault
        raise error(f"path {str(text)!r} cannot be looked at: {reason}") from None
    return path
