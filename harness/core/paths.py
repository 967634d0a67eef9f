"""Paths as users write them: in grids, in variables, on the command line.

    read_path("~/models/mine", ModelError)        # the path; ModelError where there can be none
    check_file_name("quickstart", GridError)       # the same; GridError where it leads elsewhere
    cache_folder()                                # what is made again where it is lost

Not here: what should lie there (whoever asks).
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from harness.core.errors import UNSHOWABLE, BitgridError

NODE_SCRATCH = "BITGRID_NODE_SCRATCH"  # names a folder of this node's own, for copies of models
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


def check_file_name(name: str, error: type[BitgridError]) -> str:
    """A name that files, folders and jobs are called by.

    Raises `error` for what would be another place, an option of a command, or more than one line.
    """
    fault = re.match(rf".*?([/{UNSHOWABLE}])|(-|\.{{0,2}}$)", name, re.S)
    if fault is None:
        return name
    what = f"the character U+{ord(fault[1]):04X}" if fault[1] else "'-' first"
    reason = f"has {what}" if fault[1] or fault[2] == "-" else "is no name of its own"
    raise error(f"{name!r} {reason}: nothing can be called so")


def cache_folder() -> Path:
    """Where what can be made again is kept: BITGRID_CACHE, else the user's cache folder."""
    if chosen_folder := os.environ.get("BITGRID_CACHE"):
        return Path(chosen_folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitgrid"
