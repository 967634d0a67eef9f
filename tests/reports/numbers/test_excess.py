"""How far a perplexity is above the 16-bit one, and when that has an axis of its own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from reports.numbers.excess import compute_excess, is_crowded
from tests.reports.plots.test_captions import labels_of
from tests.reports.plots.test_intervals import list_bars
from tests.support.synthetic_grids import drawings_of, measured, ppl, summary_of, write

RNG = np.random.default_rng(11)
BASE = RNG.gamma(9.0, 0.2, 50)
MORE = {"A": 0.02, "B": 0.03, "C": 0.05, "D": 4.0}
NLLS = {label: BASE + more * RNG.gamma(4.0, 0.25, 50) for label, more in MORE.items()}


def make_grid(folder: Path) -> Path:
    made = [measured(list(BASE), label="BF16", bits=16, metric="ppl", task="testbed-ppl")]
    made += [
        measured(list(nlls), label=label, metric="ppl", task="testbed-ppl")
        for label, nlls in NLLS.items()
    ]
    rows, items = zip(*made, strict=True)
    return write(folder, rows, items=items)


def test_the_interval_is_that_of_the_paired_loss(tmp_path: Path) -> None:
    """Against scipy's paired t-test, and near a bootstrap of windows that holds the base fixed."""
    reference, *rows = summary_of(make_grid(tmp_path)).rows
    base = reference.entries[0]
    assert base is not None
    for row in rows:
        (entry,) = row.entries
        assert entry is not None
        found = compute_excess(entry, base)
        nlls, perplexity = NLLS[row.name], math.exp(BASE.mean())
        expected = stats.ttest_rel(nlls, BASE).confidence_interval(0.95)
        assert found.mean == pytest.approx(math.exp(nlls.mean()) - perplexity)
        assert (found.low, found.high) == pytest.approx(
            [perplexity * (math.exp(end) - 1) for end in (expected.low, expected.high)]
        )
        change = nlls - BASE
        drawn = stats.bootstrap(
            (change,), np.mean, n_resamples=4000, method="percentile", random_state=0
        ).confidence_interval
        assert np.log1p([found.low / perplexity, found.high / perplexity]) == pytest.approx(
            [drawn.low, drawn.high], rel=0.08
        )
        assert found.high - found.low < entry.interval[1] - entry.interval[0]  # type: ignore[index]


def test_windows_that_are_others_give_no_interval(tmp_path: Path) -> None:
    made = [
        measured(list(BASE), label="BF16", bits=16, metric="ppl", task="testbed-ppl"),
        measured(list(BASE[:40] + 1), label="A", metric="ppl", task="testbed-ppl"),
    ]
    rows, items = zip(*made, strict=True)
    base, other = (row.entries[0] for row in summary_of(write(tmp_path, rows, items=items)).rows)
    assert base is not None and other is not None
    found = compute_excess(other, base)
    assert found.mean == other.mean - base.mean and math.isnan(found.low + found.high)


def test_dots_that_pile_up_have_an_axis_of_differences(tmp_path: Path) -> None:
    drawing = drawings_of(make_grid(tmp_path))["perplexity_differences"]
    (axes,) = drawing.figure.axes
    dots = [line.get_xdata()[0] for line in axes.lines if line.get_marker() != "None"]
    perplexities = [math.exp(nlls.mean()) - math.exp(BASE.mean()) for nlls in NLLS.values()]
    assert dots == pytest.approx(perplexities) and axes.get_xscale() == "log"
    assert len(list_bars(drawing.figure)) == 4
    assert labels_of(drawing.figure) == {"95 % over items, one model"}
    assert "Perplexity less that of BF16 (16 bits)." in drawing.words
    assert "paired: of the differences of each window's loss" in drawing.words


@pytest.mark.parametrize(
    ("perplexities", "drawn"),
    [
        ([5.02, 5.1, 5.4, 9.0], True),  # three in the first tenth
        ([5.5, 6.5, 7.5, 8.5], False),  # an axis of perplexities is enough
        ([5.02, 5.1, 5.4, 1e6], True),  # of a logarithmic one too
        ([5.5, 5.52, 5.6, 9.0], False),  # differences are as near to each other
        ([5.5, 9.0], False),  # two can be told
        ([4.9, 5.02, 5.1, 5.2, 9.0], True),  # below the 16-bit model
        ([4.9, 4.8, 4.95, 9.0], False),  # a logarithm would tell less
    ],
)
def test_the_rule(tmp_path: Path, perplexities: list[float], drawn: bool) -> None:
    rows = [ppl(label="BF16", bits=16, value=5.0)]
    rows += [ppl(label=f"M{i}", value=value) for i, value in enumerate(perplexities)]
    found = drawings_of(write(tmp_path, rows))
    assert ("perplexity_differences" in found) == drawn
    if drawn:
        words = found["perplexity_differences"].words
        assert ("not above BF16" in words) == (min(perplexities) < 5)
    without = drawings_of(write(tmp_path / "without", rows[1:]))
    assert "perplexity_differences" not in without


@given(st.lists(st.floats(1.0, 1e4), min_size=3, max_size=9), st.floats(0.1, 10))
def test_units_do_not_decide(values: list[float], factor: float) -> None:
    """Shares of an axis are the same in any unit; but for rounding at its tenth."""
    base = min(values) / 2
    found = [
        is_crowded([f * v for v in values], [f * (v - base) for v in values], False)
        for f in (1.0, factor)
    ]
    low, high = min(values), max(values)
    logs = np.log([v - base for v in values])
    shares = [(v - low) / (high - low or 1) for v in values]
    shares += [(v - logs.min()) / (np.ptp(logs) or 1) for v in logs]
    assert found[0] == found[1] or any(abs(share - 0.1) < 1e-6 for share in shares)
