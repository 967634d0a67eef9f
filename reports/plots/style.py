"""How every figure looks: sizes, fonts, colours, markers, and `report.style` over them. Nothing is
drawn here.

The colours are those of seaborn's "colorblind" palette, in an order that keeps neighbours apart in
lightness too, so that a figure can be read in grey; the marker repeats what the colour says.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from matplotlib import rc_params_from_file, rcParams
from matplotlib.style.core import STYLE_BLACKLIST

from harness.core.errors import ReportError, nearest
from harness.core.report_options import Width


class Widths(NamedTuple):
    """Of figures, in inches: one column, and the text of a page."""

    column: float = 3.3
    page: float = 7.0

    def choose(self, is_wide: bool) -> float:
        """Of a figure that needs a page's width, or does not."""
        return self.page if is_wide else self.column


VENUES: dict[Width, Widths] = {
    "acl": Widths(3.03, 6.3),
    "iclr": Widths(3.3, 5.5),
    "icml": Widths(3.25, 6.75),
    "ieee": Widths(3.5, 7.16),
    "neurips": Widths(3.3, 5.5),
}
"""By their LaTeX styles; of papers in one column a narrow figure has Bitgrid's own width."""


def find_widths(width: Width | float | None) -> Widths:
    """As `report.width` has it; a narrow figure is never wider than the page."""
    if width is None:
        return Widths()
    if isinstance(width, str):
        return VENUES[width]
    return Widths(min(Widths().column, width), width)


RC: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.2,
    "lines.markersize": 5,
    "figure.dpi": 100,
    "savefig.dpi": 220,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}

REFERENCE = "#333333"
FAINT = "#8a8a8a"
FRONT = "#d9d9d9"
HEAT = "cividis"
WEIGHTS, LEVELS = "#9ecae1", "#d55e00"
BETTER, WORSE, UNTOLD = "#0173b2", "#d55e00", "#949494"
"""What an ablation shows, by sign and by whether it can be told from chance."""

_COLOURS = ["#0173b2", "#de8f05", "#029e73", "#cc78bc", "#d55e00", "#56b4e9", "#949494", "#ca9161"]
_DASHES = ["-", "--", ":", "-."]
_MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<"]


def read_settings(text: str) -> dict[str, Any]:
    """The settings in the text of a style file, as matplotlib reads them.

    Raises ReportError for a name that matplotlib does not have or that no figure rests on, and for
    a value that does not fit.
    """
    for number, line in enumerate(text.splitlines(), 1):
        name = line.partition("#")[0].partition(":")[0].strip()
        if name and (name not in rcParams or name in STYLE_BLACKLIST):
            known = sorted(set(rcParams) - STYLE_BLACKLIST)
            message = f"{name!r} is no setting of a style; {nearest(name, known)}"
            raise ReportError(f"report.style, line {number}: {message}")
    with tempfile.NamedTemporaryFile("w", suffix=".mplstyle", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            settings: Any = rc_params_from_file(file.name, True, use_default_template=False)
            return dict(settings)
        except (ValueError, RuntimeError) as error:
            message = " ".join(str(error).split()).replace(file.name, "its file")
            raise ReportError(f"report.style: {message}") from None


@dataclass(frozen=True)
class Look:
    colour: str
    marker: str
    dash: str = "-"  # of a curve, whose points have no markers


def make_looks(names: Iterable[str]) -> dict[str, Look]:
    """One look a method, in order; beyond eight, colours return with another marker and dash."""
    by_name = {}
    for index, name in enumerate(dict.fromkeys(names)):
        turn = index // len(_COLOURS)
        marker = _MARKERS[(index + turn) % len(_MARKERS)]
        by_name[name] = Look(_COLOURS[index % len(_COLOURS)], marker, _DASHES[turn % len(_DASHES)])
    return by_name
