"""The plots, as the bytes of their PNG and PDF files.

Each is drawn from an export alone, with no clock, no global state and no settings of the user's
but those that the export holds, so that equal input gives equal bytes. Each file draws the plots of
its `PLOTS`; `context` has what they are drawn from, `data` the numbers that several need, `chart`
those that the page's script draws, `panels` what axes and legends share, `intervals` error bars,
`style` colours and sizes. Not here: the pages that show them (`reports.pages`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import matplotlib

from reports.plots import bits, curves, dots, inside, slopes, style, sweeps
from reports.plots.chart import Chart
from reports.plots.context import Context as Context
from reports.plots.context import Plot
from reports.plots.panels import encode_figure

PLOTS: tuple[Plot, ...] = (
    *bits.PLOTS,
    *dots.PLOTS,
    *slopes.PLOTS,
    *sweeps.PLOTS,
    *curves.PLOTS,
    *inside.PLOTS,
)
"""In the order of the page."""


class Drawn(NamedTuple):
    """A plot as it is shown."""

    name: str  # of its files
    title: str
    words: str  # what was drawn
    files: dict[str, bytes]  # by suffix: png, pdf
    chart: Chart | None = None


def draw(context: Context, chosen: Sequence[Plot] = PLOTS) -> list[Drawn]:
    """Every plot of those chosen that has something to show."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, style.RC))
        own = style.read_settings(context.summary.grid.style or "")
        matplotlib.rcParams.update(cast(Any, own))
        drawings = {plot.name: plot.draw(context) for plot in chosen}
        return [
            Drawn(name, each.title, each.words, encode_figure(each.figure), each.chart)
            for name, each in drawings.items()
            if each is not None
        ]
