"""What a row is called: its label, W2A8KV4 where its models do something as they run, and the
settings that tell it from others of that label, in words (`wording`).

Two cells have one name only when they differ in nothing but the axis that is averaged over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from harness.core.report_options import ReportOptions
from harness.core.report_options import format_setting as format_setting
from reports.numbers.wording import Told, Wording, join_words, tell_apart, write_raw
from reports.reading.frames import list_records


def format_group_size(size: int) -> str:
    """A group size of 0 is no number of weights: the group is a whole channel."""
    return str(size) if size else "channel"


def name_method(label: str, bits: float, attachments: object) -> str:
    """A label, with the bits of weights and of what else is rounded where anything is."""
    return f"{label} {name_width(bits, attachments)}" if isinstance(attachments, str) else label


def name_width(bits: float, attachments: object) -> str:
    """2, or W2A8 where something else than weights is rounded."""
    return f"W{bits:g}{attachments}" if isinstance(attachments, str) else f"{bits:g}"


def name_cells(frames: Sequence[pd.DataFrame], options: ReportOptions) -> dict[str, str]:
    """Cell -> name of its row: the label and, where it needs them, settings."""
    cells: dict[str, dict[Any, Any]] = {}
    for frame in frames:
        for record in list_records(frame.drop_duplicates("cell")):
            cells.setdefault(record["cell"], record)
    settings: dict[str, dict[str, Any]] = {
        cell: {
            **record["settings"],
            **({} if pd.isna(record["seed"]) else {"seed": int(record["seed"])}),
        }
        for cell, record in cells.items()
    }
    over = {cell: each.pop(options.over, None) for cell, each in settings.items() if options.over}

    methods = {
        cell: name_method(record["label"], record["bits"], record.get("attachments"))
        for cell, record in cells.items()
    }
    telling: dict[str, list[str]] = {}
    for group in _groups(cells, lambda c: (methods[c], cells[c]["bits"])):
        keys = telling.setdefault(cells[group[0]]["label"], [])
        keys += [key for key in _varying(group, settings) if key not in keys]
    told: dict[str, Told] = {}
    for cell, record in cells.items():
        keys = [*(key for key in options.row_names if key != "label"), *telling[record["label"]]]
        told[cell] = _tell(settings[cell], keys)

    # What the settings do not tell apart and would be averaged as if it were another seed.
    def same(cell: str) -> tuple[Any, ...]:
        return methods[cell], told[cell], cells[cell]["bits"], format_setting(over.get(cell))

    extras = ["method", "model", "format", "group_size"]
    facts: dict[str, dict[str, Any]] = {
        cell: {key: record.get(key) for key in extras if pd.notna(record.get(key))}
        for cell, record in cells.items()
    }
    for group in [group for group in _groups(cells, same) if len(group) > 1]:
        keys = _varying(group, facts)
        for cell in group:
            told[cell] += _tell(facts[cell], keys)
    for group in [group for group in _groups(cells, same) if len(group) > 1]:
        for cell in group:
            told[cell] += (("cell", cell),)
    wording = Wording(options.names)
    return tell_apart(
        {cell: join_words(methods[cell], wording.name_settings(told[cell])) for cell in cells},
        {cell: f"{methods[cell]} {write_raw(told[cell])}" for cell in cells},
    )


def _groups(cells: Iterable[str], key: Callable[[str], Any]) -> list[list[str]]:
    groups: dict[Any, list[str]] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return list(groups.values())


def _varying(group: list[str], settings: dict[str, dict[str, Any]]) -> list[str]:
    keys = sorted({key for cell in group for key in settings[cell]})
    settings_by_key = {
        key: {format_setting(settings[c][key]) if key in settings[c] else None for c in group}
        for key in keys
    }
    return [key for key in keys if len(settings_by_key[key]) > 1]


def _tell(settings: dict[str, Any], keys: Iterable[str]) -> Told:
    known = (key for key in dict.fromkeys(keys) if key in settings)
    return tuple((key, format_setting(settings[key])) for key in known)
