"""Scores against the size of the model, and the widths of figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.core.errors import ReportError
from reports.plots.style import VENUES, find_widths
from tests.support.synthetic_grids import drawings_of, quickstart, row, summary_of, write

SIZES = {2: 2_400_000_000, 3: 3_100_000_000, 4: 3_900_000_000}


def sized(folder: Path, sizes: dict[int, int | None], size: str = "gb") -> Path:
    rows = [
        row(bits=b, value=0.2 * b, size_bytes=s, seed=i) for b, s in sizes.items() for i in (0, 1)
    ]
    return write(folder, rows, report={"size": size})


def test_scores_stand_at_the_gigabytes_of_their_models(tmp_path: Path) -> None:
    drawn = drawings_of(sized(tmp_path, dict(SIZES)))
    assert "score_vs_bits" not in drawn
    drawing = drawn["score_vs_size"]
    (axes,) = drawing.figure.axes
    (line,) = [each for each in axes.lines if each.get_marker() == "o"]
    expected = [(size / 1e9, 20 * bits) for bits, size in SIZES.items()]
    assert np.column_stack([line.get_xdata(), line.get_ydata()]) == pytest.approx(
        np.array(expected)
    )
    assert axes.get_xlabel() == "model size (GB)"
    assert drawing.title.endswith("against model size") and "embeddings" in drawing.words
    small = drawings_of(sized(tmp_path / "small", {b: s // 1000 for b, s in SIZES.items()}))
    (axes,) = small["score_vs_size"].figure.axes
    assert axes.get_xlabel() == "model size (MB)"
    bits = drawings_of(sized(tmp_path / "bits", dict(SIZES), size="bits"))
    assert "score_vs_bits" in bits and "score_vs_size" not in bits


def test_rows_without_a_size_are_left_out_and_named(tmp_path: Path) -> None:
    folder = sized(tmp_path, {**SIZES, 8: None})
    remark = drawings_of(folder)["score_vs_size"].figure.get_suptitle().replace("\n", " ")
    assert remark == "size not recorded, not drawn: RTN, 8 bits"
    assert not [each for each in summary_of(folder).remarks if "against size" in each.text]
    older = sized(tmp_path / "older", dict.fromkeys(SIZES))
    assert "score_vs_size" not in drawings_of(older)
    (left_out,) = [each for each in summary_of(older).remarks if "against size" in each.text]
    assert "no row has a size" in left_out.text


def test_one_of_two_models_without_a_size_leaves_its_row_without(tmp_path: Path) -> None:
    rows = [row(seed=seed, size_bytes=size) for seed, size in ((0, 100), (1, None))]
    rows += [row(bits=3, seed=seed, size_bytes=size) for seed, size in ((0, 100), (1, 102))]
    found = {each.bits: each.size_bytes for each in summary_of(write(tmp_path, rows)).rows}
    assert found == {3: 101.0, 2: None}


@pytest.mark.parametrize("width", [None, 5.0, 2.5, "icml"])
def test_figures_are_as_wide_as_asked_for(tmp_path: Path, width: Any) -> None:
    folder = quickstart(tmp_path)
    path = folder / "grid.json"
    if width is not None:
        value = f'"{width}"' if isinstance(width, str) else width
        path.write_text(path.read_text().replace('"report": {}', f'"report": {{"width": {value}}}'))
    column, page = {None: (3.3, 7.0), 5.0: (3.3, 5.0), 2.5: (2.5, 2.5)}.get(width, (3.25, 6.75))
    widths = {name: each.figure.get_figwidth() for name, each in drawings_of(folder).items()}
    assert widths["score_vs_bits"] == column and widths["slopes"] == page


def test_a_width_that_is_none(tmp_path: Path) -> None:
    assert all(column <= page <= 8 for column, page in VENUES.values())
    assert find_widths("neurips").page == 5.5
    for width, words in ((0.5, "at least 2"), ("nips", "nips")):
        folder = write(tmp_path / str(width), [row()], report={"width": width})
        with pytest.raises(ReportError, match=f"report.width: .*{words}"):
            summary_of(folder)
