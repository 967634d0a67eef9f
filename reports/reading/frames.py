"""Records as pandas DataFrames: a column a field, its type that of the record.

`seed: int | None` is an Int64 column, so that a missing one stays missing. Not here: reading files
(`lines`), checks of one row against another (`export`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pandas as pd
from pandas.api.types import is_extension_array_dtype

_DTYPES: dict[tuple[type, bool], str] = {  # (type, whether it may be null)
    (str, False): "str",
    (str, True): "str",
    (int, False): "int64",
    (int, True): "Int64",
    (float, False): "float64",
    (float, True): "float64",
    (bool, False): "bool",
    (bool, True): "boolean",
}


@cache
def column_types(kind: type) -> dict[str, str]:
    """Field of a record -> the pandas type of its column; `object` for lists and mappings."""
    hints = get_type_hints(kind)
    return {each.name: _column_type(hints[each.name]) for each in fields(kind)}


def make_frame(kind: type, records: Sequence[Any]) -> pd.DataFrame:
    """One row a record of `kind`, in their order, with the columns of `column_types`."""
    columns = {}
    for name, dtype in column_types(kind).items():
        values = [getattr(record, name) for record in records]
        if dtype == "float64":
            values = [math.nan if value is None else value for value in values]
        columns[name] = pd.Series(values, dtype=dtype)
    return pd.DataFrame(columns)


def list_records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    """The rows as mappings of Python's own values; what is missing is None or NaN.

    `to_dict("records")` takes several times as long.
    """
    columns = [
        column.astype(object).where(column.notna(), None).tolist()
        if is_extension_array_dtype(column.dtype) and column.dtype != "str"
        else column.tolist()
        for _, column in frame.items()
    ]
    names = list(frame.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _column_type(hint: Any) -> str:
    kinds = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    single = [each for each in kinds if each is not NoneType]
    kind = str if get_origin(single[0]) is Literal else single[0]
    return _DTYPES.get((kind, NoneType in kinds), "object") if len(single) == 1 else "object"
