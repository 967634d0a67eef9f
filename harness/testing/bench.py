"""Where checks run: the tiny model, and the values of stages, each computed once.

Not here: what is checked (`checks`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import ValueChanged
from harness.core.execution import execute
from harness.core.stage import Stage, closure
from harness.models import Model, pretrained, read_layer_shapes
from harness.testing.tiny import make_tiny_model


class Bench:
    """Runs graphs on a model as the engine does, with all that the engine checks.

    model: a folder with a model; work: an empty folder for what stages write.
    """

    def __init__(self, model: Path, work: Path) -> None:
        self.base = pretrained(str(model), "float32")
        self.shapes = read_layer_shapes(str(model))
        self._work, self._values, self._attempts = work, dict[str, Any](), 0

    @classmethod
    def make(cls, folder: Path) -> Bench:
        """One on the tiny model, all in an empty folder."""
        (folder / "model").mkdir()
        (folder / "work").mkdir()
        return cls(make_tiny_model(folder / "model"), folder / "work")

    def compute(self, root: Stage[Any]) -> Any:
        """The value of a graph; stages that were computed before are not computed again."""
        return self._fill(self._values, root, "")

    def compute_anew(self, root: Stage[Any], resumed: bool = False) -> Any:
        """The same value, with nothing but the base model taken from before.

        resumed: each stage finds in its folder what it left there, as after a kill.
        """
        self._attempts += 1
        values = {self.base.key: self.compute(self.base)}
        return self._fill(values, root, "" if resumed else f"-{self._attempts}")

    def _fill(self, values: dict[str, Any], root: Stage[Any], attempt: str) -> Any:
        try:
            for stage in closure([root]):
                if stage.key not in values:
                    work = self._work / f"{stage.key}{attempt}"
                    work.mkdir(exist_ok=True)
                    values[stage.key] = execute(stage, values, work)
        except ValueChanged:  # what others share is not what it was
            self._values.clear()
            raise
        return values[root.key]

    def measure_logits(self, model: Model) -> Tensor:
        """Of a fixed prompt: (4, 40, V) float32."""
        draw = torch.Generator().manual_seed(1)
        prompt = torch.randint(3, min(250, model.vocabulary), (4, 40), generator=draw)
        with torch.inference_mode():
            logits: Tensor = model.network(prompt.to(model.device)).logits.float()
        return logits
