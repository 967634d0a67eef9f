"""What a plan says where models read the same data again and again, and one stage could keep that.

Not here: what passes through models (`harness.models.passes`), the stage that keeps it, which a
method's setting asks for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from harness.core.stage import Stage
from harness.models.passes import Pass, list_passes


def describe_rereads(stages: Iterable[Stage[Any]]) -> tuple[str, ...]:
    """A line for each teacher and data that trainings read twice or more in all: how often, and how
    large its last states are."""
    readings: dict[str, list[Pass]] = {}
    for stage in stages:
        for each in list_passes(stage):
            if each.instead is not None:
                readings.setdefault(each.instead.key, []).append(each)
    lines = []
    for passes in readings.values():
        once = passes[0].instead
        assert once is not None
        needed = sum(each.tokens for each in list_passes(once))
        times = sum(each.tokens for each in passes) / needed if needed else 0.0
        if times >= 2:
            number = f"{len(passes)} trainings read" if len(passes) > 1 else "a training reads"
            often = f"{times:.1f}" if times < 10 else f"{times:,.0f}"
            lines.append(
                f"teacher: {number} the same data {often} times with it; "
                f"train.teacher_states: stored reads them once, and keeps "
                f"{once.resources.disk_gib:,.2f} GiB at most"
            )
    return tuple(lines)
