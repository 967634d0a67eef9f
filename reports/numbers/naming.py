"""What a row is called: its label, W2A8KV4 where its models do something as they run, and
`key=value` for what tells it from others of that label.

Two cells have one name only when they differ in nothing but the axis that is averaged over.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pandas as pd

from harness.core.report_options import ReportOptions
from reports.reading.frames import list_records


def format_setting(value: object, path: str = "") -> str:
    """A setting as a reader would write it: strings bare, the rest as JSON.

    A group size of 0 is no number of weights: the group is a whole channel.
    """
    if type(value) is int and value:
        return str(value)  # most are; JSON takes ten times as long
    if value == 0 and path.rpartition(".")[2] == "group_size":
        return "channel"
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def name_method(label: str, bits: float, attachments: object) -> str:
    """A label, with the bits of weights and of what else is rounded where anything is."""
    return f"{label} {name_width(bits, attachments)}" if isinstance(attachments, str) else label


def name_width(bits: float, attachments: object) -> str:
    """2, or W2A8 where something else than weights is rounded."""
    return f"W{bits:g}{attachments}" if isinstance(attachments, str) else f"{bits:g}"


def name_cells(frames: Sequence[pd.DataFrame], options: ReportOptions) -> dict[str, str]:
    """Cell -> name of its row: the label and, where it needs them, `key=value`."""
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
    names = {}
    for cell, record in cells.items():
        keys = [*(key for key in options.row_names if key != "label"), *telling[record["label"]]]
        names[cell] = _named(methods[cell], settings[cell], keys)

    # What the settings do not tell apart and would be averaged as if it were another seed.
    def same(cell: str) -> tuple[Any, ...]:
        return names[cell], cells[cell]["bits"], format_setting(over.get(cell))

    extras = ["method", "model", "format", "group_size"]
    facts: dict[str, dict[str, Any]] = {
        cell: {key: record.get(key) for key in extras if pd.notna(record.get(key))}
        for cell, record in cells.items()
    }
    for group in [group for group in _groups(cells, same) if len(group) > 1]:
        keys = _varying(group, facts)
        for cell in group:
            names[cell] = _named(names[cell], facts[cell], keys)
    for group in [group for group in _groups(cells, same) if len(group) > 1]:
        for cell in group:
            names[cell] = f"{names[cell]} cell={cell}"
    return names


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


def _named(name: str, settings: dict[str, Any], keys: Iterable[str]) -> str:
    parts = [
        f"{key}={format_setting(settings[key], key)}"
        for key in dict.fromkeys(keys)
        if key in settings
    ]
    return " ".join([name, *parts])
