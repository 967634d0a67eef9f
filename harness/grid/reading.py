"""A grid file as it is read: its text, and what it says as typed values.

What does not fit is a GridError in one line: file, line, what was given, the nearest valid name.
Not here: the keys (`schema`), what the names stand for (`points`, `expand`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from harness.config.document import EITHER, MERGED, Document
from harness.core.checked import make_adapter
from harness.core.errors import BitgridError
from harness.core.misfit import Where, explain
from harness.core.report_options import Finding, ReportOptions
from harness.grid.schema import GridFile, Published, SeedsOf, TuneText

KEYS: Mapping[str, type] = {
    "": GridFile,
    "report": ReportOptions,
    "report.finding": Finding,
    "published": Published,
    "tune.on": TuneText,
    "seeds": SeedsOf,
}


def read_grid(path: Path) -> tuple[Document, GridFile]:
    """The text of a grid, and its keys."""
    document = Document(path, MERGED, either=EITHER)
    if not isinstance(document.data, dict):
        raise document.error((), "a grid is a mapping with at least model, method and evaluate")
    return document, fit(document, (), GridFile, document.data, KEYS)


def fit(
    document: Document,
    where: Where,
    kind: Any,
    data: object,
    known: Mapping[str, type] | None = None,
) -> Any:
    """`data`, which stands at `where`, as a value of type `kind`."""
    try:
        return make_adapter(kind).validate_python(data)
    except pydantic.ValidationError as error:
        prefix = ".".join(step for step in where if isinstance(step, str))
        wrong = explain(error, data, known, prefix)
        raise document.error((*where, *wrong.where), wrong.message) from None


def is_beside(document: Document, key: str) -> bool:
    """Whether a key stands where its axis does: what a base says, an axis may overrule."""
    place, axis = document.places.get((key,)), document.places.get(("vary", key))
    return place is not None and axis is not None and place[0] in (axis[0], document.file)


def read_named(
    document: Document,
    key: str,
    items: Sequence[str | Mapping[str, Any]],
    find_options: Callable[[str], type],
) -> dict[str, Any]:
    """A list of names, each alone or with options, as options by name.

    `find_options`: the dataclass of a name's options; raises a BitgridError for an unknown name.
    """
    named: dict[str, Any] = {}
    for number, item in enumerate(items):
        pairs: Mapping[str, Any] = {item: {}} if isinstance(item, str) else item
        for name, data in pairs.items():
            where: Where = (key, number, name)
            if name in named:
                raise document.error(where, f"{key}: {name!r} is given twice")
            try:
                options = find_options(name)
            except BitgridError as error:
                raise document.error(where, str(error)) from None
            named[name] = fit(document, where, options, data, {"": options})
    return named
