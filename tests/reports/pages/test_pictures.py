"""Pictures of a page stand in the width that they were drawn for."""

from __future__ import annotations

import io

import pytest
from matplotlib.figure import Figure

from reports.pages.pictures import Picture
from reports.plots import style


@pytest.mark.parametrize(
    ("width", "is_wide"), [(style.Widths().column, False), (style.Widths().page, True)]
)
@pytest.mark.parametrize("height", [1.2, 6.0])
def test_a_page_wide_figure_spans_the_page(width: float, height: float, is_wide: bool) -> None:
    drawn = io.BytesIO()
    Figure(figsize=(width, height)).savefig(drawn, dpi=style.RC["savefig.dpi"])
    assert Picture("a", "A", "", {"png": drawn.getvalue()}).is_wide == is_wide
