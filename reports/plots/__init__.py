"""The plots, as the bytes of their PNG and PDF files.

Each is drawn from an export alone, with no clock, no global state and no settings of the user's, so
that equal input gives equal bytes. Each file draws the plots of its `PLOTS`; `context` has what
they are drawn from, `data` the numbers that several need, `panels` what axes and legends share,
`style` colours and sizes. Not here: the pages that show them (`reports.pages`).
"""

from __future__ import annotations

from typing import Any, cast

import matplotlib

from reports.plots import bits, curves, dots, inside, slopes, style, sweeps
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


def draw(context: Context) -> dict[Plot, dict[str, bytes]]:
    """The files, by suffix (png, pdf), of every plot that has something to show."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(cast(Any, style.RC))
        figures = {plot: plot.draw(context) for plot in PLOTS}
        return {
            plot: encode_figure(figure) for plot, figure in figures.items() if figure is not None
        }
