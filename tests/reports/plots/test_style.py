"""The settings of a style file, against matplotlib's own reading of it."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from harness.core.errors import ReportError
from reports import plots
from reports.numbers.summary import summarise
from reports.plots.style import read_settings
from reports.reading.export import Export
from tests.support.synthetic_grids import row, write

TEXT = 'axes.titlesize: 11  # points\n\n# a comment\ngrid.color: "#ff0000"\nsavefig.dpi : 50\n'


def test_settings_are_what_matplotlib_reads(tmp_path: Path) -> None:
    (tmp_path / "own.mplstyle").write_text(TEXT)
    with matplotlib.rc_context():
        matplotlib.style.use(tmp_path / "own.mplstyle")
        own = {name: matplotlib.rcParams[name] for name in read_settings(TEXT)}
    assert read_settings(TEXT) == own
    assert own == {"axes.titlesize": 11.0, "grid.color": "#ff0000", "savefig.dpi": 50.0}
    assert read_settings("") == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("font.size: 8\naxes.titlesiz: 9", "line 2: 'axes.titlesiz' is no setting .* mean"),
        ("backend: agg", "line 1: 'backend' is no setting of a style"),
        ("lines.linewidth: wide", "Could not convert 'wide' to float"),
    ],
)
def test_what_matplotlib_would_pass_over_is_refused(text: str, words: str) -> None:
    with pytest.raises(ReportError, match=f"report.style.*{words}"):
        read_settings(text)


def test_figures_have_the_style_and_nothing_else_has(tmp_path: Path) -> None:
    rows = [row(bits=bits, value=0.2 * bits) for bits in (2, 3)]
    before = dict(matplotlib.rcParams)
    sizes = []
    for style in (None, TEXT):
        export = Export(write(tmp_path / str(style is None), rows, style=style))
        (drawn,) = plots.draw(plots.Context(export, summarise(export)))
        width = int.from_bytes(drawn.files["png"][16:20], "big")
        sizes.append(width)
    assert sizes == [pytest.approx(3.3 * 220, abs=1), pytest.approx(3.3 * 50, abs=1)]
    assert dict(matplotlib.rcParams) == before
