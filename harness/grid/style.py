"""The file that `report.style` names: settings of matplotlib, read when the grid is.

Its text goes into grid.json, so that a report looks the same wherever it is rendered. Not here:
which settings there are, and applying them (`reports.plots.style`).
"""

from __future__ import annotations

from harness.config.document import Document
from harness.core.errors import GridError
from harness.core.paths import read_path
from harness.grid.schema import GridFile

_MOST = 100_000  # bytes: more is no style


def read_style(document: Document, file: GridFile) -> str | None:
    """The text; None where no file is named. The path is relative to the file that says it.

    The file is one of those that the grid rests on from here on. Raises GridError, with file, line
    and key, where it cannot be read.
    """
    if file.report.style is None:
        return None
    naming_file, _ = document.find(("report", "style"))
    why = "is not text of at most 100 kB"
    try:
        path = read_path(file.report.style, GridError, naming_file.parent)
        if path.stat().st_size <= _MOST:
            text = path.read_text(encoding="utf-8")
            document.files.append(path)
            return text
    except OSError as error:
        why = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError:
        pass
    except GridError as error:
        raise document.error(("report", "style"), f"report.style: {error}") from None
    message = f"report.style: {file.report.style!r} {why}"
    raise document.error(("report", "style"), message)
