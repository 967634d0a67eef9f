"""What a row says of how its settings were chosen: a record, as those of `records`.

Not here: choosing (`harness.grid.tuning`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

WAITS, ALL_FAILED = "waits for its trials", "every trial failed"
"""Why a cell's settings are not chosen yet."""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How settings of a cell were chosen among several, on a text that no score reads."""

    chosen: Annotated[dict[str, Any], "the settings, dotted path -> value"]
    on: Annotated[str, "by what, in words"]
    tried: Annotated[dict[str, list[Any]], "the values of each that were tried"] = field(
        default_factory=dict
    )
    trials: Annotated[int, "models that were made to choose; 0: its own settings were kept"] = 0
    combinations: Annotated[int, "of the values, of which a budget may leave some untried"] = 0
    failed: Annotated[int, "trials that failed"] = 0
    score: Annotated[float | None, "of the chosen one: perplexity or divergence"] = None
    at_end: Annotated[
        list[str], "settings whose least or largest value was chosen: a better one may lie beyond"
    ] = field(default_factory=list)
    models: Annotated[list[str], "keys of the trials' models"] = field(default_factory=list)
    tokens: Annotated[float | None, "that the trials trained on; null: unknown"] = None
    device_hours: Annotated[float | None, "of making the trials' models; null: unknown"] = None
