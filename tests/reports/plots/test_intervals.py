"""Bars over items where a row is one model: the right ends, and never like bars over seeds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from tests.reports.plots.test_captions import check, labels_of
from tests.reports.plots.test_plots import swept
from tests.support.synthetic_grids import drawings_of, measured, row, write

RNG = np.random.default_rng(5)
NLLS = {"RTN": RNG.gamma(4.0, 0.9, 40), "AWQ": RNG.gamma(4.0, 0.3, 40)}
ITEMS, SEEDS = "95 % over items, one model", "95 % over seeds"


def list_bars(figure: Figure) -> list[tuple[np.ndarray, bool]]:
    """The ends of each error bar (2, 2), and whether it is broken."""
    return [
        (np.asarray(segment), line.get_linestyle()[0][1] is not None)
        for axes in figure.axes
        for line in axes.collections
        if isinstance(line, LineCollection)
        for segment in line.get_segments()
    ]


def perplexities(folder: Path, seeds: int) -> Path:
    """RTN and AWQ are one model each, whatever the seed; AutoRound is another one at each."""
    models = {(label, 0): nlls for label, nlls in NLLS.items()}
    models |= {("AutoRound", s): NLLS["AWQ"] + 0.2 + 0.1 * s for s in range(seeds)}
    made = [
        measured(list(nlls), label=label, metric="ppl", task="testbed-ppl", seed=seed)
        for (label, seed), nlls in models.items()
    ]
    rows, items = zip(*made, strict=True)
    return write(folder, rows, items=items)


def test_a_perplexity_of_one_model_has_the_interval_of_its_loss(tmp_path: Path) -> None:
    """exp of Student's interval over windows, asymmetric; near what resampling windows gives."""
    drawing = drawings_of(perplexities(tmp_path, seeds=1))["perplexity"]
    check("perplexity", drawing)
    bars = list_bars(drawing.figure)
    assert len(bars) == 3 and all(broken for _, broken in bars)
    for (ends, _), nlls in zip(bars, NLLS.values(), strict=False):
        low, high = stats.t.interval(0.95, 39, nlls.mean(), stats.sem(nlls))
        assert ends[:, 0] == pytest.approx([math.exp(low), math.exp(high)], rel=1e-12)
        assert math.exp(high) + math.exp(low) > 2 * math.exp(nlls.mean())
        drawn = stats.bootstrap(
            (nlls,),
            lambda x, axis: np.exp(x.mean(axis=axis)),
            n_resamples=4000,
            method="percentile",
            random_state=0,
        ).confidence_interval
        assert np.log(ends[:, 0]) == pytest.approx(np.log([drawn.low, drawn.high]), abs=0.08)
    assert labels_of(drawing.figure) == {ITEMS}
    assert "thin and broken, are 95 % intervals over the items of one model" in drawing.words


def test_bars_over_items_and_over_seeds_are_told_apart(tmp_path: Path) -> None:
    drawing = drawings_of(perplexities(tmp_path, seeds=3))["perplexity"]
    check("perplexity", drawing)
    assert sorted(broken for _, broken in list_bars(drawing.figure)) == [False, True, True]
    assert labels_of(drawing.figure) == {ITEMS, SEEDS}
    (over_seeds,) = [ends for ends, broken in list_bars(drawing.figure) if not broken]
    values = [math.exp(NLLS["AWQ"].mean() + 0.2 + 0.1 * seed) for seed in range(3)]
    expected = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    assert over_seeds[:, 0] == pytest.approx(expected)
    assert "Error bars are 95 % t-intervals over seeds." in drawing.words
    assert "Thin and broken error bars are 95 % intervals over the items" in drawing.words


def test_a_score_of_one_model_has_wilsons_interval(tmp_path: Path) -> None:
    right = {2: 30, 3: 45}
    made = [measured([1.0] * n + [0.0] * (60 - n), bits=bits) for bits, n in right.items()]
    rows, items = zip(*made, strict=True)
    drawing = drawings_of(write(tmp_path, rows, items=items))["score_vs_bits"]
    check("score_vs_bits", drawing)
    for (ends, broken), n in zip(list_bars(drawing.figure), right.values(), strict=True):
        expected = proportion_confint(n, 60, 0.05, method="wilson")
        assert broken and ends[:, 1] / 100 == pytest.approx(expected)


def test_scores_at_the_ends_of_their_range_are_drawn(tmp_path: Path) -> None:
    made = [measured([1.0] * n + [0.0] * (7 - n), bits=bits) for bits, n in ((2, 0), (3, 7))]
    rows, items = zip(*made, strict=True)
    drawing = drawings_of(write(tmp_path, rows, items=items))["score_vs_bits"]
    for (ends, _), end in zip(list_bars(drawing.figure), (0, 1), strict=True):
        assert ends[end, 1] == pytest.approx(100 * end) and ends[1, 1] - ends[0, 1] > 20


def test_a_row_of_several_models_never_has_bars_over_items(tmp_path: Path) -> None:
    """Two models that are equal by chance have no interval over seeds, and get no other."""
    made = [measured([1.0, 0.0] * 30, bits=bits, seed=seed) for bits in (2, 3) for seed in range(2)]
    rows, items = zip(*made, strict=True)
    drawing = drawings_of(write(tmp_path, rows, items=items))["score_vs_bits"]
    assert not list_bars(drawing.figure)
    assert "items" not in drawing.words and "equal ones" in drawing.words


def test_chance_stands_wherever_a_choice_task_is_drawn(tmp_path: Path) -> None:
    """With its level in every panel, and said of tasks that have none."""
    chances = {"boolq": 0.5, "piqa": 0.5, "hellaswag": 0.25, "gsm8k": None}
    rows = [
        row(label=label, bits=bits, task=task, chance=chance, value=0.3 + bits / 30)
        for label, bits in (("BF16", 16), ("RTN", 2), ("RTN", 3), ("AWQ", 2))
        for task, chance in chances.items()
    ]
    drawing = drawings_of(write(tmp_path / "slopes", rows))["slopes"]
    for axes in drawing.figure.axes:
        dotted = [line for line in axes.lines if line.get_linestyle() == ":"]
        assert sorted(line.get_ydata()[0] for line in dotted) == [25.0, 50.0]
    assert "guessing" in labels_of(drawing.figure)
    assert "Dotted: what guessing scores, in the colour of a task" in drawing.words
    assert "not known of GSM8K" in drawing.words
    unknown = [{**each, "chance": None} for each in rows]
    drawing = drawings_of(write(tmp_path / "unknown", unknown))["slopes"]
    assert "guessing" not in labels_of(drawing.figure) and "Dotted" not in drawing.words


def test_chance_stands_along_an_axis_and_against_cost(tmp_path: Path) -> None:
    folder = swept(tmp_path, "data.sequences", [256, 512, 1024], cost=True)
    path = folder / "rows.jsonl"
    path.write_text(path.read_text().replace('"metric": "acc"', '"metric": "acc", "chance": 0.25'))
    drawn = drawings_of(folder)
    for name in ("sweep", "score_vs_tokens"):
        check(name, drawn[name])
        assert "guessing" in labels_of(drawn[name].figure)
