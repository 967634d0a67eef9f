"""What a caption says is what was drawn, and what was drawn is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.collections import PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from reports.plots import data, style
from reports.plots.context import Drawing
from tests.reports.plots.test_plots import confidence, swept, trained
from tests.support.synthetic_grids import drawings_of, measured, ppl, quickstart, row, write

RESULTS = Path(__file__).parents[3] / "results"


def has_bars(figure: Figure) -> bool:
    return any(isinstance(c, ErrorbarContainer) for axes in figure.axes for c in axes.containers)


def has_bands(figure: Figure) -> bool:
    return any(isinstance(c, PolyCollection) for axes in figure.axes for c in axes.collections)


def has_level_lines(figure: Figure) -> bool:
    """Across the axes, in a colour of a method."""
    lines = [line for axes in figure.axes for line in axes.lines]
    marked = (style.REFERENCE, style.FAINT)  # 16-bit rows, guessing
    return any(
        list(line.get_xdata()) == [0, 1] and line.get_color() not in marked for line in lines
    )


def labels_of(figure: Figure) -> set[str]:
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def check(name: str, drawing: Drawing) -> None:
    """Each statement against the artists that would make it true."""
    words, figure = drawing.words.casefold(), drawing.figure
    if name.startswith(("score_vs_", "perplexity")):
        assert ("error bars" in words) == has_bars(figure), (name, words)
    if name == "ablation":
        assert ("bars are simultaneous" in words) == has_bars(figure)
        labels = labels_of(figure)
        assert ("coloured" in words) == bool({"better", "worse"} & labels)
        assert ("gray: not distinguished" in words) == ("not distinguished" in labels)
        assert ("hollow: untested" in words) == ("untested" in labels)
    if name == "sweep":
        assert ("bands are" in words) == has_bands(figure)
    if name in ("sweep", "score_vs_tokens", "score_vs_hours"):
        assert ("level lines" in words) == has_level_lines(figure)
    if name == "training_loss":
        assert ("the band" in words) == has_bands(figure)
        pale = [line for axes in figure.axes for line in axes.lines if line.get_alpha() == 0.25]
        assert ("of one seed" in words) == bool(pale)
    if name == "score_vs_bits":
        assert ("pareto front" in words) == ("Pareto front" in labels_of(figure))
    if name == "confidence":
        assert ("dotted" in words) == ("before training" in labels_of(figure))


@pytest.mark.parametrize(
    "folder",
    [RESULTS / "quickstart", RESULTS / "format-testbed", RESULTS / "inside-testbed"],
    ids=lambda folder: folder.name,
)
def test_committed_captions_describe_their_figures(folder: Path) -> None:
    drawn = drawings_of(folder)
    assert len(drawn) >= 4
    for name, drawing in drawn.items():
        check(name, drawing)


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_are_spoken_of_where_they_are_drawn(tmp_path: Path, seeds: int) -> None:
    drawn = drawings_of(quickstart(tmp_path, seeds=seeds))
    for name, drawing in drawn.items():
        check(name, drawing)
    bars = {name for name, drawing in drawn.items() if has_bars(drawing.figure)}
    drawn_with = {"score_vs_bits", "perplexity", "perplexity_differences"}
    assert bars == (drawn_with if seeds > 1 else set())
    words = drawn["score_vs_bits"].words
    assert ("Every point is one model." in words) == (seeds == 1)
    # RTN and AWQ-clip are one model whatever the seed.
    assert ("points without are one model" in words) == (seeds > 1)
    assert ("spread is not drawn" in drawn["slopes"].words) == (seeds > 1)


@pytest.mark.parametrize("axis", ["init.shrink", "data.sequences"])
@pytest.mark.parametrize("values", [[0.1, 0.5], [0.1, 0.5, 0.9]])
def test_sweeps_ablations_and_costs(tmp_path: Path, axis: str, values: list[float]) -> None:
    drawn = drawings_of(swept(tmp_path, axis, values, cost=True))
    assert "ablation" in drawn and ("sweep" in drawn) == (len(values) == 3)
    for name, drawing in drawn.items():
        check(name, drawing)
    losses = drawn["training_loss"].words
    assert ("differ in data" in losses) == (axis == "data.sequences")


def test_values_of_another_axis_are_not_called_seeds(tmp_path: Path) -> None:
    rows = [
        row(bits=b, settings={"order": o}, value=0.1 * b + 0.01 * o) for b in (2, 3) for o in (0, 1)
    ]
    folder = write(tmp_path, rows, report={"over": "order", "aggregate": "median"})
    words = drawings_of(folder)["score_vs_bits"].words
    assert "means over values of order, where the table has medians" in words
    assert "intervals over values of order" in words and "seeds" not in words


@pytest.mark.parametrize(("higher", "side"), [(True, "above"), (False, "below")])
def test_the_front_lies_where_the_caption_says(tmp_path: Path, higher: bool, side: str) -> None:
    make: Any = row if higher else ppl
    rows = [make(bits=b, value=0.2 * b if higher else 9.0 - b) for b in (2, 3, 4)]
    rows.append(make(bits=3, label="Worse", value=0.1 if higher else 50.0))
    drawing = drawings_of(write(tmp_path, rows))["score_vs_bits"]
    assert f"No point lies {side} and left of the Pareto front" in drawing.words
    assert drawing.title.startswith("Knowledge" if higher else "Perplexity")
    (axes,) = drawing.figure.axes
    (front,) = [line for line in axes.lines if line.get_label() == "Pareto front"]
    points = [
        (x, y)
        for line in axes.lines
        if line is not front and len(line.get_xdata()) < 4
        for x, y in np.column_stack([line.get_xdata(), line.get_ydata()])
    ]
    assert len(points) >= 4
    for at, value in points:
        reached = [v for w, v in zip(front.get_xdata(), front.get_ydata(), strict=True) if w <= at]
        best = (max if higher else min)(reached)
        assert value <= best + 1e-9 if higher else value >= best - 1e-9


def test_an_effect_that_was_not_tested_is_hollow(tmp_path: Path) -> None:
    """One seed, items of one setting alone: nothing can be tested, and nothing looks as if."""
    rows = [row(settings={"init": i}, seed=0, value=v) for i, v in (("a", 0.5), ("b", 0.7))]
    rows += [row(settings={"init": "a"}, seed=1, value=0.5)]
    drawing = drawings_of(write(tmp_path, rows, report={"effect": "init"}))["ablation"]
    check("ablation", drawing)
    assert labels_of(drawing.figure) == {"untested"} and "untested" in drawing.words
    items = [measured([0.0, 1.0] * 50, settings={"init": i}, seed=0) for i in ("a", "b")]
    tested = write(
        tmp_path / "t",
        [r for r, _ in items],
        items=[i for _, i in items],
        report={"effect": "init"},
    )
    check("ablation", drawings_of(tested)["ablation"])


def stage(key: str, objective: str) -> dict[str, Any]:
    named = {"class": f"o.{objective}"}
    if objective == "sum":
        parts = [{"component": "objective/KL", "gamma": 0.5}, {"component": "objective/CE"}]
        named = {"component": "objective/sum", "parts": parts, "weights": [1.0, 0.1]}
    return {"schema": 2, "key": key, "stage": {"kind": "train", "objective": named}}


@pytest.mark.parametrize(
    ("objectives", "said", "unsaid"),
    [
        (["KL", "KL", "KL"], None, "compare"),
        (["KL", "KL", "CE"], "KL: A, B; CE: C", "heights"),
        (["CE", "CE", "sum"], "sum parts=(KL gamma=0.5 + CE) weights=[1.0, 0.1]: C", "heights"),
        (["KL", "CE", "MSE"], "each curve has an objective of its own", "may"),
        (["KL", "KL", None], "objectives may differ", "own"),
    ],
)
def test_curves_of_several_objectives_are_said_to_be(
    tmp_path: Path, objectives: list[str | None], said: str | None, unsaid: str
) -> None:
    rows = [row(label=label) for label in "ABC"]
    curves = [point for each in rows for point in trained(each, 1000)]
    folder = write(tmp_path, rows, curves)
    lines = [
        json.dumps(stage(each["model_key"], objective))
        for each, objective in zip(rows, objectives, strict=True)
        if objective
    ]
    (folder / "provenance.jsonl").write_text("\n".join(lines))
    words = drawings_of(folder)["training_loss"].words
    assert said is None or said.casefold() in words.casefold()
    assert unsaid not in words


def test_losses_by_confidence_say_which_seed_and_objectives(tmp_path: Path) -> None:
    one = row(seed=7)
    records = [
        {**confidence(one, "after training", [0.1, 0.2, 0.3]), "objective": o} for o in ("kl", "ce")
    ]
    folder = write(tmp_path, [one])
    (folder / "diagnostics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    drawing = drawings_of(folder)["confidence"]
    check("confidence", drawing)
    assert "Seed 7; 2 bits." in drawing.words and "(here KL, CE)" in drawing.words
    assert re.search(r"fewer than 10 labels", drawing.words)


losses = arrays(float, st.integers(1, 200), elements=st.floats(-1e3, 1e3, allow_subnormal=False))


@given(losses, st.integers(0, 40))
def test_smoothing_keeps_the_ends_and_the_range(values: np.ndarray, half: int) -> None:
    found = data.smooth(values, half)
    assert found[0] == values[0] and found[-1] == values[-1]
    assert found.shape == values.shape
    assert (found >= values.min() - 1e-8).all() and (found <= values.max() + 1e-8).all()


@given(st.floats(-1e6, 1e6), st.integers(1, 200), st.integers(0, 40))
def test_smoothing_is_exact_on_constant_series(value: float, count: int, half: int) -> None:
    assert (data.smooth(np.full(count, value), half) == value).all()


@given(losses, losses)
def test_a_curve_begins_with_the_first_losses_that_all_seeds_have(
    one: np.ndarray, other: np.ndarray
) -> None:
    lines = [
        pd.DataFrame({"step": range(start, start + len(loss)), "loss": loss})
        for start, loss in ((1, one), (1, other))
    ]
    found = data.make_band(lines, "step")
    assert found.at[0] == 1 and len(found.at) == min(len(one), len(other))
    assert found.low[0] == min(one[0], other[0]) and found.high[0] == max(one[0], other[0])


def test_a_small_effect_is_printed_as_in_the_table(tmp_path: Path) -> None:
    rows = [
        ppl(settings={"init": i}, seed=s, value=2.0 + 0.003 * s - (0.008 if i == "b" else 0.0) * s)
        for s in range(3)
        for i in ("a", "b")
    ]
    drawing = drawings_of(write(tmp_path, rows, report={"effect": "init"}))["ablation"]
    shown = [text.get_text() for axes in drawing.figure.axes for text in axes.texts]
    assert shown == ["−0.004"]
