"""Fetches what a grid reads, where there is a network, so that its jobs need none.

Each stage says what it reads, and each thing that is read knows how it is fetched: models go to the
hub's own cache, at the commit that the grid's keys name, data sets to the mirror. Not here: how
either is done (`harness.models.hub`, `harness.data.fill`).
"""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.reads import Fetched, Read
from harness.core.stage import closure
from harness.data.hub import reading
from harness.grid.expand import Grid


def prefetch(grid: Grid) -> Iterator[Fetched]:
    """Fetch what the grid's stages read, inputs first, each thing once."""
    for read in _reads(grid):
        fetched = read.fetch()
        if fetched is not None:
            yield fetched


def find_obstacles(grid: Grid) -> list[str]:
    """What cannot be fetched, and why, in a line each."""
    return sorted({read.obstacle for read in _reads(grid) if read.obstacle is not None})


def _reads(grid: Grid) -> dict[Read, None]:
    stages = closure([root for cell in grid.cells for root in cell.roots])
    with reading(grid.access):
        return dict.fromkeys(read for stage in stages for read in stage.reads())
