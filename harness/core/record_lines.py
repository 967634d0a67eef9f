"""Records as the JSON objects that stand in their files, and back, checked.

Not here: what records hold (`records`), reading and writing files (`harness.run.export`,
`reports.reading`). pydantic is loaded when a record is first read.
"""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from harness.core.errors import ReportError
from harness.core.records import SCHEMA
from harness.core.report_options import Finding, ReportOptions

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
_PLAIN = frozenset({str, int, float, bool, NoneType})
_BEGIN = f'{{"schema": {SCHEMA}, '
_OPTIONS = {"report": ReportOptions, "report.finding": Finding}  # where no other key may be given


def to_json(record: Any) -> dict[str, Any]:
    """A record as the object that stands in its file, `schema` first."""
    return {"schema": SCHEMA, **_to_plain(record)}


def _to_plain(value: Any) -> Any:
    """A copy without records; that of dataclasses takes seconds more over 10,000 rows."""
    if is_dataclass(value):
        value = {name: getattr(value, name) for name in _list_names(cast(type, type(value)))}
    if isinstance(value, list | tuple):
        return [each if type(each) in _PLAIN else _to_plain(each) for each in value]
    if not isinstance(value, dict):
        return value
    return {n: part if type(part) in _PLAIN else _to_plain(part) for n, part in value.items()}


@cache
def _list_names(kind: type) -> tuple[str, ...]:
    return tuple(each.name for each in fields(kind))


def from_json(kind: type[T], line: object, where: str) -> T:
    """A record of `kind` from the object in its file.

    Raises ReportError, in one line that begins with `where`, for another schema and for what does
    not fit the record. Names that the record does not have are passed over.
    """
    import pydantic

    from harness.core.misfit import explain

    if not isinstance(line, dict):
        raise ReportError(f"{where}: expected an object, found {type(line).__name__}")
    if line.get("schema") != SCHEMA:
        raise ReportError(
            f"{where}: schema version {line.get('schema')!r}, expected {SCHEMA}; "
            "export the grid again with this version of the code"
        )
    try:
        return _validate(kind, json.dumps(line))
    except pydantic.ValidationError as error:
        raise ReportError(f"{where}: {explain(error, line, _OPTIONS).message}") from error


def from_text(kind: type[T], text: str, where: str) -> T:
    """`from_json` of a line, which is parsed once where it is as `to_json` has it."""
    import pydantic

    if text.startswith(_BEGIN):
        try:
            return _validate(kind, text)
        except pydantic.ValidationError:
            pass  # what is wrong is said below
    return from_json(kind, parse_json(text, where), where)


def parse_json(text: str, where: str) -> Any:
    """The value of a JSON text. Raises ReportError that begins with `where`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise ReportError(f"{where}: not JSON ({error})") from error


def _validate(kind: type[T], text: str) -> T:
    # As JSON: of Python objects a strict validator takes no mapping for a record.
    return cast(T, _make_adapter(cast(type, kind)).validate_json(text, strict=True))


@cache
def _make_adapter(kind: type) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)
