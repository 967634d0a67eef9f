"""Which copy of the packages runs: `methods` and `reports` must lie beside this `harness`.

Their names are common. A folder called `methods/` where a command is given, or one on PYTHONPATH,
could take their place: unseen, since files of that name would be imported all the same.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from harness.core.errors import BitgridError

BESIDE = ("methods", "reports")
# For processes that are started with `python -m`: the current folder is not looked into first.
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def check_packages() -> None:
    """Raises BitgridError where another folder's package would be imported; imports nothing."""
    root = Path(__file__).resolve().parents[2]
    for name in BESIDE:
        spec = importlib.util.find_spec(name)
        file = Path(spec.origin).resolve() if spec and spec.origin else None
        if file == root / name / "__init__.py":
            continue
        place = file.parent if file else "a folder without code" if spec else "nowhere"
        raise BitgridError(
            f"package {name!r} would be imported from {place} instead of {root / name}; start with "
            "`bitgrid` or `python -P -m harness.cli`, and look at PYTHONPATH"
        )
