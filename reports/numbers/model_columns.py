"""Columns of a table that are facts of a row's models and no scores: never ranked, never averaged.

A grid asks for them by name in `report.columns`. To add one, write a `ModelColumn` here and its
name in `harness.core.records.COLUMNS`.

Device-hours are what a model cost to train: the hours of its training times the devices that shared
it. A device is a GPU, or on CPUs a process. The time is the training's own clock, which goes on
from the last checkpoint after a restart, where the wall time of its stage begins anew: steps that
were done twice count once. How many devices there were stands in the stage's settings. Searching,
generating and evaluating are not counted.

Not here: tokens (`budgets`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.core.lineage import list_inputs
from harness.core.records import DEVICE_HOURS, StageRecord
from reports.numbers.naming import format_setting
from reports.reading.export import Export, Stages


@dataclass(frozen=True)
class ModelColumn:
    """One such column: what it is called, and how its values are found and shown."""

    name: str  # in `report.columns` and in the CSV
    title: str
    values: Callable[[Export], pd.Series]  # key of a model -> value; without those that have none
    show: Callable[[float], str]
    describe: Callable[[Export], str]  # a sentence for under the table


def compute_device_hours(export: Export) -> pd.Series:
    """Key of a model -> hours; without models that were not trained, or whose hours are unknown."""
    keys = export.rows.drop_duplicates("cell").set_index("cell")["model_key"]
    seconds = export.curves.groupby(export.curves["cell"].map(keys))["seconds"].max()
    devices = {key: _count_devices(key, export.stages) for key in seconds.index}
    return (seconds * pd.Series(devices, dtype="float64") / 3600).dropna()


def find_objective(key: str, stages: Stages) -> str:
    """What a model was trained on last: `CAKLD confidence=label`; empty where it is not known."""
    for each in _chain(key, stages):
        objective = each.stage.get("objective", each.stage.get("fields", {}).get("objective"))
        if isinstance(objective, dict) and (words := _name_component(objective)):
            return words
    return ""


def _name_component(told: Mapping[str, Any]) -> str:
    """A component of a description, with its settings: `sum parts=(kl + ce) weights=[1, 0.1]`.

    Empty where it has no name; older records have a class in its place.
    """
    identity = str(told.get("component") or told.get("class") or "")
    settings = {k: v for k, v in told.items() if k not in ("component", "class") and v is not None}
    shown = (f"{name}={_show_setting(value, name)}" for name, value in settings.items())
    return " ".join([re.split("[./]", identity)[-1], *shown]) if identity else ""


def _show_setting(value: Any, name: str) -> str:
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        return f"({' + '.join(map(_name_component, value))})"
    return format_setting(value)


def list_devices(export: Export) -> list[str]:
    """What the trainings ran on."""
    keys = export.rows["model_key"].unique()
    stages = (stage for key in keys for stage in _chain(key, export.stages))
    trained = [each for each in stages if _shared(each.stage) and each.device]
    return list(dict.fromkeys(str(each.device_name or each.device) for each in trained))


def _show_hours(hours: float) -> str:
    """0.078, 8.25, 420."""
    return f"{hours:.{3 if hours < 1 else 2 if hours < 100 else 0}f}"


def _describe_hours(export: Export) -> str:
    devices = ", ".join(list_devices(export)) or "devices not recorded"
    return (
        "Device-h: device-hours of training, its time by the GPUs (on CPUs: the processes) that "
        f"shared it ({devices}), mean over models."
    )


MODEL_COLUMNS = {
    column.name: column
    for column in (
        ModelColumn(DEVICE_HOURS, "Device-h", compute_device_hours, _show_hours, _describe_hours),
    )
}


def _count_devices(key: str, stages: Stages) -> float:
    """Of the trainings behind a model; NaN where the export does not have them."""
    counts = [_shared(each.stage) for each in _chain(key, stages)]
    return max(counts, default=0) or float("nan")


def _chain(key: str, stages: Stages) -> Iterator[StageRecord]:
    """All stages that a model was made from."""
    seen, queue = {key}, [key]
    while queue:
        stage = stages.get(queue.pop())
        if stage is not None:
            yield stage
            above = set(list_inputs(stage.stage)) - seen
            seen |= above
            queue += above


def _shared(stage: Any) -> int:
    """How many devices a described stage asks for in its settings; 0 if it says nothing."""
    if not isinstance(stage, dict):
        return 0
    gpus = stage.get("gpus")
    if isinstance(gpus, int):
        return gpus
    return max((_shared(part) for part in stage.values()), default=0)
