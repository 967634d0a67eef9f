"""The numbers of curves on the page: those of the records, cut and rounded as is said."""

from __future__ import annotations

import math
from decimal import Context, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports.plots import chart
from tests.support.synthetic_grids import drawings_of, row, write


def chart_of(folder: Path) -> dict[str, Any]:
    drawn = drawings_of(folder)["training_loss"].chart
    assert drawn is not None
    return dict(drawn)


def curve(cell: dict[str, Any], losses: list[float | None]) -> list[dict[str, Any]]:
    keys = ("cell", "label", "settings", "seed", "bits")
    common = {key: cell[key] for key in keys}
    return [
        {**common, "step": step, "tokens": 100 * step + cell["seed"], "loss": loss}
        for step, loss in enumerate(losses, start=1)
    ]


@given(st.integers(0, 5000))
def test_points_are_evenly_apart_and_end_with_the_last(count: int) -> None:
    kept = chart.choose_points(count)
    assert len(kept) <= chart.POINTS + 1
    assert kept[:1] + kept[-1:] == ([0, count - 1] if count else [])
    apart = [b - a for a, b in pairwise(kept)]
    assert len(set(apart[:-1])) <= 1 and all(0 < each <= apart[0] for each in apart)
    if count <= chart.POINTS:
        assert kept == list(range(count))


def test_lines_are_the_records_to_four_digits(tmp_path: Path) -> None:
    """Straight lines, which smoothing leaves as they are."""
    steps = 1001
    rows = [row(label="QAT", seed=seed, value=0.5) for seed in (0, 1)]
    losses = {
        seed: [7 - step * (0.00412345 + seed / 1e3) for step in range(steps)] for seed in (0, 1)
    }
    points = [point for each in rows for point in curve(each, [*losses[each["seed"]]])]
    made = chart_of(write(tmp_path, rows, points))
    (line,) = made["lines"]
    kept = [*range(0, steps, 3), steps - 1]  # the least k with 1001 / k <= 400 is 3
    assert line["steps"] == [place + 1 for place in sorted(set(kept))]
    assert line["at"] == [round(100 * step + 0.5) for step in line["steps"]]

    def rounded(values: list[float]) -> list[float]:
        four = Context(prec=4)
        return [float(four.create_decimal(Decimal(values[step - 1]))) for step in line["steps"]]

    assert [name for name, _ in line["seeds"]] == ["seed 0", "seed 1"]
    assert [shown for _, shown in line["seeds"]] == [rounded(losses[0]), rounded(losses[1])]
    means = [math.fsum(pair) / 2 for pair in zip(*losses.values(), strict=True)]
    assert line["mean"] == pytest.approx(rounded(means), rel=2e-4)
    assert line["low"] == pytest.approx(rounded(losses[1]), rel=2e-4)
    assert line["high"] == pytest.approx(rounded(losses[0]), rel=2e-4)
    told = "; ".join(made["notes"])
    assert (
        "of 1,001 steps this page has one in 3, and the last" in told
        and "rounded to 4 digits" in told
    )
    assert "are their mean" in told


def test_gaps_and_steps_of_some_seeds_alone_are_said(tmp_path: Path) -> None:
    rows = [row(label="QAT", seed=seed) for seed in (0, 1)]
    points = [*curve(rows[0], [3.0, None, 1.0, 0.5]), *curve(rows[1], [4.0, 3.0, 2.0])]
    made = chart_of(write(tmp_path, rows, points))
    (line,) = made["lines"]
    assert line["steps"] == [1, 2, 3]
    assert line["mean"] == [3.5, None, 1.5]
    assert dict(line["seeds"]) == {"seed 0": [3.0, None, 1.0], "seed 1": [4.0, 3.0, 2.0]}
    assert made["notes"][:2] == [
        "QAT, 2 bits: not finite at 1 steps",
        "QAT, 2 bits: 1 steps that not all of its models have are left out",
    ]


def test_models_of_a_row_are_named_by_what_differs(tmp_path: Path) -> None:
    rows = [row(label="QAT", settings={"train.lr": lr}, seed=0) for lr in (0.1, 0.2)]
    points = [point for each in rows for point in curve(each, [2.0, 1.0])]
    (line,) = chart_of(write(tmp_path, rows, points, report={"over": "train.lr"}))["lines"]
    assert [name for name, _ in line["seeds"]] == [
        "learning rate 0.1, seed 0",
        "learning rate 0.2, seed 0",
    ]


def test_panels_and_legend_are_those_of_the_figure(tmp_path: Path) -> None:
    rows = [
        row(label="QAT", settings={"objective": name}, bits=bits)
        for bits in (3, 2)
        for name in ("kl", "ce")
    ]
    points = [point for each in rows for point in curve(each, [60.0, 1.0])]
    made = chart_of(write(tmp_path, rows, points, report={"rows": "objective"}))
    assert made["panels"] == ["3 bits", "2 bits"] and made["log"]
    assert made["common"] == "QAT"
    assert [(each["panel"], each["short"]) for each in made["lines"]] == [
        (panel, name) for panel in (0, 1) for name in ("KL", "CE")
    ]
    assert all(each["low"] == each["high"] == [] for each in made["lines"])
