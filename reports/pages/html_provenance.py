"""What stands behind every number of the page, as JSON for its script.

    rows      one a measurement: its title, its value as shown, its facts, the key of its stage, the
              name of its items, and the command that computes its cell again
    stages    by key: name, facts (commit, device, time, memory …), settings, keys of its inputs
    items     by name: right and wrong answers, where they are kept

Joined from rows.jsonl and provenance.jsonl by key; a fact that neither has is left out, and a chain
that the export lacks is said to be missing. Not here: the page (`html`).
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd

from harness.core.errors import show_lines
from harness.core.records import StageRecord
from reports.numbers.columns import (
    Column,
    format_bits,
    format_number,
    get_quantity,
    name_metric,
)
from reports.numbers.naming import format_group_size, format_setting
from reports.numbers.summary import Summary
from reports.numbers.wording import Wording
from reports.reading.export import Stages, list_inputs
from reports.reading.frames import list_records
from reports.reading.items import ItemIndex, get_key

FACTS = {
    "value": "Value, unrounded",
    "stderr": "Standard error over items",
    "n": "Items",
    "task": "Task",
    "metric": "Metric",
    "num_fewshot": "Few-shot examples",
    "bos": "Prompt begins with BOS",
    "chat_template": "Prompt in a chat template",
    "limit": "Items asked for",
    "protocol": "Protocol",
    "tokenizer": "Tokenizer",
    "task_version": "Version of the task",
    "lm_eval": "lm-eval",
    "seed": "Seed",
    "settings": "Varied settings",
    "method": "Method",
    "format": "Number format",
    "group_size": "Group size",
    "bits_per_weight": "Bits per weight",
    "ends": "Embeddings and head",
    "attachments": "While it runs",
    "model": "Model",
    "revision": "Model revision",
    "total": "Wall time of all stages behind it",
    "cell": "Cell",
    "key": "Key of the evaluation",
    "model_key": "Key of the quantised model",
}
"""What the panel says of a measurement: field of the row -> label."""


def list_measurements(frame: pd.DataFrame, summary: Summary) -> list[dict[str, Any]]:
    """The rows of the export as a reader wants them: those that the table shows, then the rest."""
    columns = {column.quantity: column for column in summary.columns}
    measured = []
    for record in list_records(frame):
        metric = name_metric(record["metric"], record["filter"])
        column = columns.get(get_quantity(record)) or Column(
            record["task"],
            record["metric"],
            f"{record['task']} ({metric})",
            bool(record["higher_is_better"]),
            filter=record["filter"],
        )
        measured.append(
            {
                "record": record,
                "name": summary.names[record["cell"]],
                "bits": format_bits(record["bits"]),
                "seed": "–" if pd.isna(record["seed"]) else str(record["seed"]),
                "column": column,
                "metric": metric,
                "value": _finite(record["value"]),
                "shown": format_number(record["value"], column, summary.decimals),
                "error": _error(record, column, summary.decimals),
                "stale": not pd.isna(record["stale"]),
            }
        )
    return sorted(measured, key=lambda each: not each["record"]["primary"])


def make_data(
    summary: Summary,
    measured: list[dict[str, Any]],
    stages: Stages,
    items: ItemIndex,
) -> dict[str, Any]:
    """The block that the page's script reads; `found` as `list_measurements` gives it."""
    file, wording = summary.grid.file, Wording(summary.grid.report.names)
    return {
        "rows": [_row(each, stages, wording, file) for each in measured],
        "stages": {key: _stage(line) for key, line in stages.items()},
        "items": _list_items(measured, items),
    }


def summarise_stages(stages: Stages) -> dict[str, str]:
    """What all stages have to say together: commits, devices, time."""
    computed = [stage for stage in stages.values() if stage.wall_s is not None]
    total = sum(stage.wall_s or 0 for stage in computed)
    facts = {
        "Computed": f"{len(computed)} stages in {format_duration(total)}",
        "Commit": _listed(_commit(stage, 12) for stage in computed if stage.commit),
        "Device": _listed(_device(stage) for stage in computed),
        "Python": _listed(stage.python for stage in computed if stage.python),
        "torch": _listed(
            stage.packages["torch"]
            for stage in computed
            if stage.packages is not None and "torch" in stage.packages
        ),
    }
    return {label: text for label, text in facts.items() if text} if computed else {}


def embed_json(content: object) -> str:
    """JSON that may stand inside a script element, whatever the strings in it."""
    text = json.dumps(_show(content), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _show(content: Any) -> Any:
    """The same with each line of its strings as what can be seen; keys, which join, stay."""
    if isinstance(content, str):
        return show_lines(content)
    if isinstance(content, dict):
        return {key: _show(part) for key, part in content.items()}
    if isinstance(content, list | tuple):
        return [_show(part) for part in content]
    return content


def format_duration(seconds: float) -> str:
    """0.42 s, 12.5 s, 7 min 36 s, 3 h 05 min."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def _row(
    each: dict[str, Any], stages: Stages, wording: Wording, file: str | None
) -> dict[str, Any]:
    record = each["record"]
    known = {field: record[field] for field in [*FACTS, "stale"] if _is_known(record, field)}
    told = ((path, format_setting(value)) for path, value in record["settings"].items())
    known["settings"] = wording.name_settings(tuple(told)) or None
    known |= _of_the_chain(record["key"], stages)
    seed = "" if each["seed"] == "–" else f", seed {each['seed']}"
    return {
        "title": f"{each['name']}, {each['bits']} bits{seed} · {each['column'].title}",
        "shown": each["shown"] + (f" ± {each['error']}" if each["error"] else ""),
        "seed": each["seed"],
        "stale": _describe(known.get("stale")),
        "key": record["key"],
        "task": f"{record['task']} {name_metric(record['metric'], record['filter'])}",
        "items": _name_items(record),
        "command": _command(record["cell"], stages.get(record["key"]), file),
        "facts": [_describe_field(field, known.get(field)) for field in FACTS],
    }


def _is_known(record: dict[Any, Any], field: str) -> bool:
    """A value is always there, as NaN if need be; elsewhere NaN stands for nothing."""
    held = record.get(field)
    return field == "value" or isinstance(held, dict) or not pd.isna(held)


def _error(record: dict[Any, Any], column: Column, decimals: int) -> str:
    error = record["stderr"]
    return "" if pd.isna(error) else format_number(error, column, decimals)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _describe_field(field: str, value: Any) -> str | None:
    if field == "group_size" and value is not None:
        return format_group_size(int(value))
    return _describe(value)


def _describe(value: Any) -> str | None:
    if isinstance(value, dict):
        return ", ".join(f"{key}={format_setting(each)}" for key, each in value.items()) or None
    if value is None or value is pd.NA:
        return None
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else repr(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _of_the_chain(key: str, stages: Stages) -> dict[str, str]:
    """What pins the published models behind a number, and the time of all its stages."""
    chain: dict[str, StageRecord] = {}
    queue = [key]
    while queue:
        at = queue.pop()
        if at not in stages:
            return {"revision": "not in this export: export the grid again from its store"}
        if at not in chain:
            chain[at] = stages[at]
            queue += list_inputs(stages[at].stage)
    models = {
        f"{record.stage.get('source')} at {record.stage.get('digest')}"
        for record in chain.values()
        if record.name.lower() == "pretrained"
    }
    seconds = [record.wall_s for record in chain.values() if record.wall_s is not None]
    return {"revision": "; ".join(sorted(models)), "total": format_duration(sum(seconds))}


def _stage(record: StageRecord) -> dict[str, Any]:
    stage = record.stage
    wall = None if record.wall_s is None else format_duration(record.wall_s)
    facts: dict[str, str | None] = {
        "Commit": _commit(record) if record.commit else None,
        "Computed": _when(record.started),
        "Wall time": wall,
        "Peak memory": _gib(record.peak_rss_gib),
        "Peak memory of the GPU": _gib(record.peak_gpu_gib),
        "Device": _device(record) if record.device else None,
        "Versions": _versions(record),
        "Digest of the code": _describe(record.code),
        "files": _describe(record.files),
        **{name: _describe(fact) for name, fact in record.more.items()},
    }
    return {
        "name": record.name,
        "facts": [[label, text] for label, text in facts.items() if text is not None],
        "settings": [[path, text] for path, text in _settings(stage)],
        "inputs": list(dict.fromkeys(list_inputs(stage))),
        "time": wall,
        "memory": _gib(record.peak_gpu_gib or record.peak_rss_gib),
        "commit": _commit(record, 8) if record.commit else None,
    }


def _settings(stage: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """Every field by its dotted path; inputs by name of the field and key."""
    for name, held in stage.items():
        path = f"{above}{name}"
        if isinstance(held, dict) and set(held) != {"stage"}:
            yield from _settings(held, f"{path}.")
        elif isinstance(held, dict):
            yield path, f"← {held['stage']}"
        else:
            yield path, format_setting(held)


def _name_items(record: Mapping[Any, Any]) -> str:
    return " ".join(get_key(record))


def _list_items(measured: Sequence[dict[str, Any]], index: ItemIndex) -> dict[str, Any]:
    """Of what the table shows, the items that are right or wrong: scores as a string of 1 and 0,
    and their numbers where these are not 0, 1, 2 …"""
    listed: dict[str, Any] = {}
    for record in (each["record"] for each in measured if each["record"]["primary"]):
        own = index.by_row.get(get_key(record))
        if own is None or not ((own.scores == 0) | (own.scores == 1)).all():
            continue
        counted = np.array_equal(own.numbers, np.arange(len(own.numbers)))
        listed[_name_items(record)] = {
            "scores": "".join("1" if each else "0" for each in own.scores),
            "numbers": None if counted else own.numbers.tolist(),
        }
    return listed


def _command(cell: str, record: StageRecord | None, file: str | None) -> str | None:
    """How to compute one cell again; None where the rows do not say which file asked for it."""
    if file is None:
        return None
    threads = f"OMP_NUM_THREADS={record.threads} " if record and record.threads else ""
    steps = [f"{threads}bitgrid run {shlex.quote(file)} --only {shlex.quote(cell)}"]
    if record and (commit := record.commit):
        steps.insert(0, f"git checkout {shlex.quote(commit.rstrip('+'))}")
        if commit.endswith("+"):
            steps.insert(0, "# the code had changes that this commit has not")
    return "\n".join(steps)


def _commit(record: StageRecord, digits: int = 40) -> str:
    text = record.commit or ""
    commit, more = text.rstrip("+"), text.endswith("+")
    return commit[:digits] + (" with uncommitted changes" if more else "")


def _device(record: StageRecord) -> str:
    threads = f", {record.threads} threads" if record.threads else ""
    host = f", host {record.host}" if record.host else ""
    return f"{record.device} ({record.device_name}){threads}{host}"


def _versions(record: StageRecord) -> str | None:
    versions = {"Python": record.python} if record.python else {}
    versions |= record.packages or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or None


def _when(started: object) -> str | None:
    if not isinstance(started, int | float):
        return None
    return datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _gib(size: object) -> str | None:
    return f"{size:.2f} GiB" if isinstance(size, int | float) else None


def _listed(texts: Iterator[str]) -> str:
    return "; ".join(dict.fromkeys(texts))
