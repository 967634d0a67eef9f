"""What a model cost to train: device-hours, the hours of its training times the devices that shared it.

A device is a GPU, or on CPUs a process. The time is the training's own clock, which goes on from the
last checkpoint after a restart, where the wall time of its stage begins anew: steps that were done
twice count once. How many devices there were stands in the stage's settings. Searching, generating
and evaluating are not counted. Not here: tokens (`plots.data`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from reports.reading.rows import Stages, inputs


def device_hours(frame: pd.DataFrame, curves: pd.DataFrame, stages: Stages) -> pd.Series:
    """Key of a model -> hours; without those that were not trained, or of which that is not known."""
    keys = frame.drop_duplicates("cell").set_index("cell")["model_key"]
    seconds = curves.groupby(curves["cell"].map(keys))["seconds"].max()
    shared = pd.Series({key: _devices(key, stages) for key in seconds.index}, dtype="float64")
    return (seconds * shared / 3600).dropna()


def device_names(frame: pd.DataFrame, stages: Stages) -> list[str]:
    """What the trainings ran on."""
    chains = (stage for key in frame["model_key"].unique() for stage in _behind(key, stages))
    lines = [line for line in chains if _shared(line.get("stage")) and line.get("device")]
    return list(dict.fromkeys(str(line.get("device_name") or line["device"]) for line in lines))


def _devices(key: str, stages: Stages) -> float:
    """Of the trainings behind a model; NaN where the export does not have them."""
    return max((_shared(line.get("stage")) for line in _behind(key, stages)), default=0) or float(
        "nan"
    )


def _behind(key: str, stages: Stages) -> Iterator[dict[str, Any]]:
    """The lines of all stages that a model was made from."""
    seen, queue = {key}, [key]
    while queue:
        line = stages.get(queue.pop())
        if line is not None:
            yield line
            above = set(inputs(line["stage"])) - seen
            seen |= above
            queue += above


def _shared(stage: Any) -> int:
    """How many devices a described stage asks for in its settings (`gpus`); 0 where it says nothing."""
    if not isinstance(stage, dict):
        return 0
    said = stage.get("gpus")
    if isinstance(said, int):
        return said
    return max((_shared(part) for part in stage.values()), default=0)
