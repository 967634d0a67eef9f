"""Stages and walks by hand, each with a work folder of its own that is gone afterwards."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.execution import execute
from harness.core.stage import Stage
from harness.data import Tokens
from harness.models import Matrix, Model
from methods.quantization.formats import Grouped
from methods.quantization.observing import Observed, observe
from methods.quantization.walking import sequentially


def execute_alone(stage: Stage[Any], values: Mapping[str, Any]) -> Any:
    """The value of a stage, from those of its inputs by key."""
    with tempfile.TemporaryDirectory() as work:
        return execute(stage, values, Path(work))


def observe_all(
    model: Model, layers: Mapping[str, Matrix], tokens: Tokens, format: Grouped, count: int
) -> list[Observed]:
    """What layers of all blocks see."""
    observed = []
    with tempfile.TemporaryDirectory() as work:
        for block in sequentially(model, tokens, Path(work), quantized_inputs=False):
            here = {name: matrix for name, matrix in layers.items() if name in block.layers}
            observed += observe(block, here, format, count)
    return observed
