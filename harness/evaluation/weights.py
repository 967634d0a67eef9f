"""The diagnostic `weights`: how far rounding moved each layer, and one layer's histogram.

Of every step that a method takes, with the levels that the layer was rounded to. Not here: the
figures (`reports`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from harness.core.checked import Checked
from harness.core.errors import GridError, nearest
from harness.core.stage import Input, Resources, Stage, incidental, report, value
from harness.evaluation.diagnostics import Diagnostic, Facts, register_diagnostic
from harness.method import Method
from harness.models import Model, Quantized, blocks, host_gib, matrices

BINS = 120  # of a histogram
LEVELS = 32  # at most, to be drawn
_SAMPLE = 2**20  # weights, or groups, that quantiles are taken over


@dataclass(frozen=True)
class Weights(Stage[Facts]):
    """Weights of a model before and after they were rounded, against those they came from.

    errors: of each layer |after - origin| / |origin| (`error`) and |after - before| / |before|
    (`rounding`), Frobenius norms. histogram: of one layer before rounding, with the levels that its
    groups took after it (`histogram`, `group_levels`).
    """

    kind: ClassVar[str] = "weights"
    origin: Input[Model]
    before: Input[Model]
    after: Input[Model]
    layer: str
    step: str = incidental("")  # what the method did in between, as a figure calls it

    @property
    def resources(self) -> Resources:
        return Resources(gpus=1, memory_gib=host_gib(self.after), hours=0.2)

    def run(self, work: Path) -> Facts:
        models = value(self.origin), value(self.before), value(self.after)
        layers = [matrices(model.network) for model in models]

        def weights(name: str) -> tuple[Tensor, Tensor, Tensor]:
            """A layer's of origin, before and after, (O, I) float32, experts one below the other;
            a trained model's come from the host."""
            stored = (each[name].weight.detach().to(models[2].device) for each in layers)
            a, b, c = (weight.flatten(0, -2).float() for weight in stored)
            return a, b, c

        errors = []
        for block, prefix in enumerate(blocks(models[0].network)):
            for name in (name for name in layers[0] if name.startswith(f"{prefix}.")):
                origin, before, after = weights(name)
                moved = {
                    "error": _relative(after - origin, origin),
                    "rounding": _relative(after - before, before),
                }
                place = {"block": block, "projection": name.removeprefix(f"{prefix}.")}
                errors.append({"layer": name, **place, **moved})
            report(block + 1, len(blocks(models[0].network)))
        _, before, after = weights(self.layer)
        shown = histogram(before, after, models[2].quantized.get(self.layer))
        return {
            "diagnostic": "weights",
            "errors": errors,
            "histogram": {"layer": self.layer, **shown},
        }


def histogram(before: Tensor, after: Tensor, quantized: Quantized | None) -> Facts:
    """Counts of `before` (O, I) in equal bins from `low` to `high`, and the levels of `after`.

    The outermost weights, one in a thousand, are `outside`: a few of them would make the bins wide.
    """
    flat = before.flatten()
    ends = flat[:: -(-len(flat) // _SAMPLE)].quantile(flat.new_tensor([0.0005, 0.9995]))
    low, high = (_short(end) for end in ends.tolist())
    counts = torch.histc(flat.cpu(), BINS, low, high).long() if low < high else torch.empty(0)
    return {
        "low": low,
        "high": high,
        "counts": counts.tolist(),
        "outside": len(flat) - int(counts.sum()),
        "levels": [] if quantized is None else group_levels(after, quantized.group_size),
    }


def group_levels(weight: Tensor, group_size: int) -> list[Facts]:
    """The levels of a rounded weight (O, I), over its groups: empty where there are too many.

    A group's levels are its distinct values, numbered from its zero: `place` -1 is the first below,
    with `quartiles` over the groups that have such a level and the `share` of groups that do.
    Groups that do not use all levels, and a shorter last group of a row, are left out: which level
    they lack cannot be seen.
    """
    width = group_size or weight.shape[1]
    groups = weight[:, : weight.shape[1] // width * width].reshape(-1, width)
    groups = groups[:: -(-len(groups) // _SAMPLE)].sort(-1).values
    rank = torch.nn.functional.pad((groups.diff(dim=-1) != 0).cumsum(-1), (1, 0))
    count = int(rank.max()) + 1
    if count > LEVELS:
        return []
    full = rank[:, -1] + 1 == count
    values = groups.new_zeros(int(full.sum()), count).scatter_(1, rank[full], groups[full])
    below = (values < 0).sum(-1, keepdim=True)
    lacks_zero = ~(values == 0).any(-1, keepdim=True)
    places = torch.arange(count, device=values.device) - below + ((values > 0) & lacks_zero)
    at = values.new_tensor([0.25, 0.5, 0.75])
    return [
        {
            "place": place,
            "share": _short(float((places == place).any(-1).float().mean())),
            "quartiles": [_short(q) for q in values[places == place].quantile(at).tolist()],
        }
        for place in sorted(set(places.flatten().tolist()))
    ]


@dataclass(frozen=True)
class WeightsOptions(Checked):
    """What a grid may say of `weights`."""

    layer: str | None = None  # the one whose histogram is drawn; else the last of the middle block


class WeightsDiagnostic(Diagnostic):
    """A stage for each step of the method."""

    about = "how far rounding moved each layer, and the levels of one"
    options = WeightsOptions

    def stages(
        self,
        method: Method,
        base: Stage[Model],
        layers: Mapping[str, tuple[int, int]],
        seed: int,
        options: WeightsOptions,
    ) -> tuple[Stage[Facts], ...]:
        layer = options.layer or middle(list(layers))
        if layer not in layers:
            raise GridError(f"weights: layer {layer!r} is unknown; {nearest(layer, layers)}")
        return tuple(
            Weights(step.origin, step.before, step.after, layer, step.name)
            for step in method.steps(base, seed)
        )


def middle(layers: list[str]) -> str:
    """The last linear layer of the middle block: in most models the feed-forward's way back."""
    prefixes = list(dict.fromkeys(_block(name) for name in layers))
    chosen = prefixes[len(prefixes) // 2]
    return [name for name in layers if _block(name) == chosen][-1]


def _block(name: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.down_proj`: up to the first number."""
    parts = name.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: end + 1])


def _relative(change: Tensor, against: Tensor) -> float:
    size = float(against.norm())
    return _short(float(change.norm()) / size) if size else 0.0


def _short(number: float) -> float:
    """Six digits: a file of rows holds thousands of these, and a figure shows three."""
    return float(f"{number:.6g}")


register_diagnostic("weights", WeightsDiagnostic())
