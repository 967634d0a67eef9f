"""Where checks run: the tiny model, and the values of stages, each computed once.

Not here: what is checked (`checks`).
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from harness.core.errors import ValueChanged
from harness.core.execution import execute
from harness.core.stage import Stage, closure
from harness.models import Model, pretrained, read_layer_shapes
from harness.models.dry_run import has_estimate
from harness.testing.killing import run_killed
from harness.testing.tiny import make_tiny_model
from harness.testing.watching import Counting

Other: TypeAlias = Literal["odd", "experts", "bfloat16"]


class Peak(NamedTuple):
    """The most that a stage held beside the model, in bytes, and the layer that it was at."""

    size: int
    layer: str | None


class Bench:
    """Runs graphs on a model as the engine does, with all that the engine checks.

    model: a folder with a model; work: an empty folder for what stages write.
    """

    def __init__(self, model: Path, work: Path, dtype: str = "float32") -> None:
        self.base = pretrained(str(model), dtype)
        self.shapes = read_layer_shapes(str(model))
        self.peaks: dict[str, Peak] = {}  # by key, of stages that were computed anew
        self.seconds: dict[
            str, float
        ] = {}  # that stages took when they were first computed, by key
        self.stopped: dict[str, str | None] = {}  # what differs once a stage was stopped, by key
        self._model, self._work, self._values, self._attempts = model, work, dict[str, Any](), 0
        self._others: dict[str, Bench] = {}

    @classmethod
    def make(cls, folder: Path) -> Bench:
        """One on the tiny model, all in an empty folder."""
        (folder / "model").mkdir()
        (folder / "work").mkdir()
        return cls(make_tiny_model(folder / "model"), folder / "work")

    def on(self, other: Other) -> Bench:
        """One on another model: of an odd width, with experts, or this one in bfloat16."""
        if other not in self._others:
            folder = self._work / f"on-{other}"
            (folder / "work").mkdir(parents=True)
            if other == "bfloat16":
                self._others[other] = Bench(self._model, folder / "work", other)
            else:
                model = make_tiny_model(folder / "model", other)
                self._others[other] = Bench(model, folder / "work")
        return self._others[other]

    def compute(self, root: Stage[Any]) -> Any:
        """The value of a graph; stages that were computed before are not computed again."""
        return self._fill(self._values, root, "")

    def compute_anew(self, root: Stage[Any], resumed: bool = False) -> Any:
        """The same value, with nothing but the base model taken from before.

        resumed: each stage finds in its folder what it left there, as after a kill.
        """
        self._attempts += 1
        values = {self.base.key: self.compute(self.base)}
        attempt = "" if resumed else f"-{self._attempts}"
        return self._fill(values, root, attempt, watched=not resumed)

    def compute_stopped(
        self, stage: Stage[Any], changes: int | None = None, seconds: float | None = None
    ) -> Any:
        """The value of a stage that was killed once its folder had changed so many times, or after
        so long, and run again; None where it ended before. Inputs are as they were computed
        before."""
        self._attempts += 1
        work = self._work / f"{stage.key}-{self._attempts}"
        work.mkdir()
        compute = partial(execute, stage, self._values, work)
        return compute() if run_killed(compute, work, changes, seconds) else None

    def keeps(self, stage: Stage[Any]) -> bool:
        """Whether a stage that was computed left something in its folder."""
        work = self._work / stage.key
        return work.is_dir() and any(work.iterdir())

    def _fill(
        self, values: dict[str, Any], root: Stage[Any], attempt: str, watched: bool = False
    ) -> Any:
        try:
            for stage in closure([root]):
                if stage.key not in values:
                    work = self._work / f"{stage.key}{attempt}"
                    work.mkdir(exist_ok=True)
                    if watched and not has_estimate(stage):
                        with Counting(self.compute(self.base).network) as counted:
                            values[stage.key] = execute(stage, values, work)
                        peak = Peak(counted.peak().total, counted.find_layer())
                        self.peaks[stage.key] = peak
                    else:
                        began = time.monotonic()
                        values[stage.key] = execute(stage, values, work)
                        self.seconds.setdefault(stage.key, time.monotonic() - began)
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
