"""A throttle over all arrays of a launch, where SLURM's own (`--array=0-9%N`) holds for one.

A launch has so many slots. Each array takes some of them, as its own throttle, and waits for the
arrays that had them before: so no slot is in use twice, whatever jobs take, and however arrays
wait for each other beside. Nothing has to run for it, and nothing is left to hold or release.
What it costs: slots of an array that has nothing left to start are idle until its last job ends.

Pure. Not here: which jobs are an array (`harness.cluster.waves`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.cluster.waves import Array, Job


def throttle(arrays: Sequence[Array], jobs: Sequence[Job], most: int) -> list[Array]:
    """The same arrays, of which at most `most` jobs run at once.

    Slots are shared among the arrays of a wave by their hours. An array takes first those of arrays
    that it waits for in any case, then unused ones, then those that were taken first.
    """
    hours = [sum(jobs[job].request.hours or 1.0 for job in array.jobs) for array in arrays]
    slots: list[int | None] = [None] * most  # the last array that has each
    before: list[frozenset[int]] = []  # all arrays that have ended when an array begins
    limited = []
    for number, array in enumerate(arrays):
        of_wave = sum(h for h, other in zip(hours, arrays, strict=True) if other.wave == array.wave)
        share = max(1, round(most * hours[number] / of_wave))
        count = min(share, len(array.jobs), most)
        ended = frozenset(array.after).union(*(before[above] for above in array.after))

        def rank(slot: int, ended: frozenset[int] = ended) -> tuple[int, int]:
            last = slots[slot]
            return (1, 0) if last is None else (0 if last in ended else 2, last)

        taken = sorted(range(most), key=rank)[:count]
        waits = {last for slot in taken if (last := slots[slot]) is not None and last not in ended}
        for slot in taken:
            slots[slot] = number
        before.append(ended.union(waits, *(before[above] for above in waits)))
        limited.append(replace(array, after=array.after | waits, parallel=count))
    return limited
