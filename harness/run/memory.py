"""How many GPUs the stages of a grid need, as a table: what `bitgrid plan --memory` prints.

Not here: how memory is estimated (`harness.models.dry_run`), the estimates of stages (a module
`memory` beside them), what a run keeps for other stages (`compute`).
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from harness.core.stage import Stage
from harness.models import pretrained_of
from harness.models.dry_run import PARTS, Memory, estimate_memory

# Left free of a device's memory, for what an estimate does not see: a share, and at least so much.
HEADROOM, RESERVE_GIB = 0.1, 3.0
_MOST_GPUS = 64


def fits(memory: Memory, gib: float) -> bool:
    """Whether a device of `gib` GiB holds it, with headroom."""
    return memory.total <= (gib - max(gib * HEADROOM, RESERVE_GIB)) * 2**30


def count_gpus(stage: Stage[Any], gib: float) -> int | None:
    """The fewest GPUs of `gib` GiB, a power of two, that hold a stage; None where more do not
    help."""
    gpus, before = 1, math.inf
    while gpus <= _MOST_GPUS:
        estimate = estimate_memory(stage, gpus)
        if estimate is None or estimate.total >= before:
            return None
        if fits(estimate, gib):
            return gpus
        gpus, before = 2 * gpus, estimate.total
    return None


def choose_sizes(stages: Iterable[Stage[Any]], sizes: Sequence[float]) -> dict[str, float | None]:
    """For each stage, by key, the smallest of these GPUs, in GiB, as many of which as it asks for
    hold it. None where none do, or where that cannot be estimated."""
    chosen: dict[str, float | None] = {}
    for stage in stages:
        try:
            estimate = estimate_memory(stage)
        except Exception:  # as in `table`
            chosen[stage.key] = None
            continue
        holding = [size for size in sorted(sizes) if estimate is None or fits(estimate, size)]
        chosen[stage.key] = holding[0] if holding else None
    return chosen


def table(stages: Iterable[Stage[Any]], sizes: Sequence[float]) -> str:
    """Each kind of stage by the memory it needs, in GiB, and the GPUs of each size that hold it.

    `host` is what a job asks for it of the host's memory, for all processes together.
    """
    rows: Counter[tuple[str, ...]] = Counter()
    unknown: Counter[str] = Counter()
    for stage in stages:
        try:
            estimate = estimate_memory(stage)
        except Exception:  # whatever a model's code raises where it asks for data
            unknown[stage.kind] += 1
            continue
        if estimate is not None:
            numbers = (count_gpus(stage, size) for size in sizes)
            parts = (*dataclasses.astuple(estimate), estimate.total)
            rows[
                pretrained_of(stage).source,
                stage.kind,
                *(f"{part / 2**30:.2f}" for part in parts),
                f"{stage.resources.memory_gib:g}",
                *(str(number or "–") for number in numbers),
            ] += 1
    head = [*PARTS, "total", "host", *(f"{size:g}" for size in sizes)]
    names = {row: f"{row[1]} ×{rows[row]}" if rows[row] > 1 else row[1] for row in rows}
    first = max(map(len, names.values()), default=0)
    widths = [max(len(title), 6) if title in (*PARTS, "total") else 4 for title in head]
    lines = []
    for source in dict.fromkeys(row[0] for row in rows):
        shown = [[names[row], *row[2:]] for row in rows if row[0] == source]
        lines += [f"memory in GiB at the peak of a stage: {source}"]
        for name, *cells in [["", *head], *shown]:
            padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
            lines.append(f"{name:{first}} " + " ".join(padded))
    lines += [
        f"{kind} ×{count}: unknown; the model's code computes with numbers, which an estimate lacks"
        for kind, count in unknown.items()
    ]
    return "\n".join(
        [
            *lines,
            "host: GiB of the host's memory that a job asks for, for all processes of the stage",
            f"under {', '.join(head[-len(sizes) :])}: GPUs of so many GiB that hold it, "
            f"{HEADROOM:.0%} and at least {RESERVE_GIB:g} GiB free; – none do",
        ]
    )
