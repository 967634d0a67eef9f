"""The numbers behind the figures against plain computations, and when a figure is not drawn."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from harness.core.errors import ReportError
from harness.core.record_lines import from_json
from harness.core.records import Weights
from reports.numbers.budgets import count_tokens
from reports.numbers.wording import Wording
from reports.plots import PLOTS, data, inside
from reports.reading.export import Export
from tests.support.synthetic_grids import (
    TASKS,
    drawings_of,
    drawn_of,
    ppl,
    quickstart,
    row,
    summary_of,
    write,
)

RNG = np.random.default_rng(0)


def trained(cell: dict[str, Any], tokens: int, steps: int = 30) -> list[dict[str, Any]]:
    keys = ("cell", "label", "settings", "seed", "bits")
    return [
        {
            **{key: cell[key] for key in keys},
            "step": step,
            "tokens": tokens * step / steps,
            "loss": 1 + math.exp(-step / 5) + 0.1 * cell["seed"],
        }
        for step in range(1, steps + 1)
    ]


def swept(folder: Path, axis: str, values: list[Any], cost: bool = False, **grid: Any) -> Path:
    """Three seeds along an axis, for a method that trains and one that does not."""
    found, curves = [], []
    for index, value in enumerate(values):
        for seed in range(3):
            kept = 0.5 + 0.05 * index + 0.01 * seed
            one = row(label="BitDistiller", settings={axis: value}, seed=seed, value=kept)
            found += [one, ppl(**identity(one), value=9 - kept)]
            curves += trained(one, 1000 * 2**index if cost else 1000)
    found.append(row(label="RTN", value=0.4))
    found.append(ppl(label="RTN", value=12.0))
    return write(folder, found, curves, **grid)


def identity(given: dict[str, Any]) -> dict[str, Any]:
    return {key: given[key] for key in ("label", "settings", "seed", "bits")}


@pytest.mark.parametrize("higher", [True, False])
def test_pareto_front_against_brute_force(higher: bool) -> None:
    for _ in range(50):
        points = [(float(x), float(y)) for x, y in RNG.integers(0, 6, (12, 2))]
        points += [(2.0, math.nan), (math.inf, 9.0)]

        def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
            better = a[1] >= b[1] if higher else a[1] <= b[1]
            return a != b and a[0] <= b[0] and better

        finite = {p for p in points if all(map(math.isfinite, p))}
        expected = sorted(p for p in finite if not any(beats(q, p) for q in finite))
        assert data.find_pareto_front(points, higher) == expected


def test_intervals_are_scipys() -> None:
    values = RNG.normal(size=5)
    low, high = scipy_stats.t.interval(0.95, 4, values.mean(), scipy_stats.sem(values))
    found = data.compute_mean(values)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.n, found.over) == (5, "models")
    assert data.compute_mean(values, (-9.0, 9.0)) == found  # of several, never over items
    assert data.compute_mean([0.25], (0.2, 0.4)) == (0.25, 0.2, 0.4, 1, "items")
    assert data.compute_mean([0.25]).over is None
    assert data.compute_mean([0.25] * 3).over is None  # models that do not differ have none
    assert math.isnan(data.compute_mean([0.25, math.nan]).mean)


def test_bands_over_seeds_against_numpy() -> None:
    losses = RNG.normal(size=(3, 120))
    lines = [
        pd.DataFrame({"step": range(1, 121), "tokens": np.arange(1, 121) * 10 + seed, "loss": loss})
        for seed, loss in enumerate(losses)
    ]
    found = data.make_band(lines, "tokens")
    half = 120 // 25  # of a window of 9 steps
    reach = [min(half, i, 119 - i) for i in range(120)]
    smooth = np.array(
        [[loss[i - r : i + r + 1].mean() for i, r in enumerate(reach)] for loss in losses]
    )
    assert found.mean == pytest.approx(smooth.mean(0))
    assert found.low == pytest.approx(smooth.min(0))
    assert found.high == pytest.approx(smooth.max(0))
    assert found.at == pytest.approx(np.arange(1, 121) * 10 + 1)
    assert (found.seeds, found.gaps) == (3, 0)


def test_losses_that_are_not_finite_are_gaps_and_are_counted(tmp_path: Path) -> None:
    line = pd.DataFrame({"step": range(1, 11), "tokens": range(1, 11), "loss": np.ones(10)})
    broken = line.assign(loss=[1, 1, math.inf, 1, 1, math.nan, 1, 1, 1, 1])
    found = data.make_band([line, broken], "step")
    assert found.gaps == 2
    assert np.flatnonzero(np.isnan(found.mean)).tolist() == [2, 5]
    shorter = data.make_band([line, line.iloc[:4]], "step")
    assert shorter.at.tolist() == [1, 2, 3, 4]  # no jump where a seed ends


def test_a_component_with_its_parts_is_words_and_numbers() -> None:
    axes = {"objective": "cakld gamma=0.25", "format.bits": 2, "teacher": None, "fast": True}
    numbers, words = data.split_settings(axes)
    assert numbers == {"objective.gamma": 0.25, "format.bits": 2.0}
    assert words == {"objective": "cakld", "teacher": "null", "fast": "true"}
    assert data.split_settings({"a": "cakld confidence=max"}) == (
        {},
        {"a": "cakld confidence=max"},
    )


def test_gamma_is_swept_and_the_rest_are_level_lines(tmp_path: Path) -> None:
    values = [f"cakld gamma={gamma}" for gamma in (0, 0.25, 0.5, 1)]
    folder = swept(tmp_path, "objective", [*values, "cakld confidence=label"])
    found = summary_of(folder)
    (sweep,) = data.find_sweeps(data.list_models(Export(folder).rows, found), Wording())
    assert sweep.axis == "objective.gamma"
    (points,) = sweep.series.values()
    index = data.find_main_score(found)
    assert index is not None
    assert {
        at: data.average_models(p, index, 1.0).mean for at, p in points.items()
    } == pytest.approx({0: 0.51, 0.25: 0.56, 0.5: 0.61, 1: 0.66})
    assert len(points[0.25]) == 3
    assert list(sweep.level) == ["BitDistiller, CAKLD (confidence label)", "RTN"]
    assert {"sweep", "perplexity"} <= drawn_of(folder)


def test_averages_over_tasks_are_the_tables(tmp_path: Path) -> None:
    folder = quickstart(tmp_path)
    found = summary_of(folder)
    models = data.list_models(Export(folder).rows, found)
    index = data.find_main_score(found)
    assert index is not None and found.columns[index].task is None
    means = data.average_by_row(models, index, 1.0)
    for each in found.rows:
        entry = each.entries[index]
        assert entry is not None
        assert means[each.name, each.bits].mean == pytest.approx(entry.mean)


def test_an_average_of_tasks_without_columns_is_drawn_too(tmp_path: Path) -> None:
    folder = quickstart(tmp_path)
    told = json.loads((folder / "grid.json").read_text())
    told["report"] = {"columns": ["testbed-ppl", "average"], "average": TASKS[:2]}
    (folder / "grid.json").write_text(json.dumps(told))
    assert "score_vs_bits" in drawn_of(folder)
    models = data.list_models(Export(folder).rows, summary_of(folder))
    assert models[1].notna().all()


def test_tokens_are_found_through_the_model_where_cells_share_a_training(tmp_path: Path) -> None:
    shared = {"bits": 2, "model_key": "m"}
    found = [row(label="A", cell="a", **shared), row(label="B", cell="b", **shared)]
    folder = write(tmp_path, found, trained({**found[0], "cell": "a"}, 500))
    frame = Export(folder).rows
    models = data.list_models(frame, summary_of(folder))
    assert count_tokens(models, Export(folder).curves, frame).tolist() == [500, 500]


def test_each_figure_is_drawn_only_where_its_data_are(tmp_path: Path) -> None:
    assert drawn_of(write(tmp_path / "a", [row(), row(label="AWQ", value=0.6)])) == set()
    assert drawn_of(write(tmp_path / "b", [row(bits=2), row(bits=3, value=0.6)])) == {
        "score_vs_bits"
    }
    two = swept(tmp_path / "c", "init.shrink", [0.1, 0.5])
    assert drawn_of(two) == {"perplexity", "training_loss", "ablation"}
    three = swept(tmp_path / "d", "init.shrink", [0.1, 0.5, 0.9])
    assert drawn_of(three) == {"perplexity", "training_loss", "ablation", "sweep"}
    cost = swept(tmp_path / "e", "data.sequences", [256, 512, 1024], cost=True)
    assert drawn_of(cost) == drawn_of(three) | {"score_vs_tokens"}
    everything = drawn_of(quickstart(tmp_path / "f"))
    assert everything == {
        *("score_vs_bits", "perplexity", "perplexity_differences", "slopes", "training_loss")
    }
    assert everything <= {plot.name for plot in PLOTS}


@pytest.mark.filterwarnings("error")
def test_values_that_are_not_finite_do_not_hide_the_others(tmp_path: Path) -> None:
    values = [0.1, 0.25, 0.5, 0.75]
    folder = swept(tmp_path, "init.shrink", values)
    lines = (folder / "rows.jsonl").read_text().splitlines()
    broken = [line.replace('"value": 8.5', '"value": Infinity') for line in lines]
    broken = [line.replace('"value": 0.56', '"value": NaN') for line in broken]
    assert broken != lines
    (folder / "rows.jsonl").write_text("\n".join(broken))
    with np.errstate(invalid="ignore"):  # of the table: ± of an infinite number
        assert {"sweep", "perplexity"} <= drawn_of(folder)
    assert plt.get_fignums() == []  # no global state


def test_names_lose_what_they_share() -> None:
    names = ["BitDistiller, W2, a b", "BitDistiller, W2, a c"]
    assert data.shorten(names) == ("BitDistiller, W2", ["a b", "a c"])
    assert data.shorten(["RTN", "AWQ"]) == ("", ["RTN", "AWQ"])
    assert data.shorten(["RTN, W2", "RTN, W2"]) == ("RTN", ["W2", "W2"])  # never to nothing
    assert data.shorten(["RTN"]) == ("", ["RTN"])


def test_the_ablation_leaves_out_bits_whose_cost_is_another_figure(tmp_path: Path) -> None:
    several = [
        row(settings={"format.bits": b}, bits=b, seed=s, value=0.2 * b)
        for b in (2, 3)
        for s in (0, 1)
    ]
    assert drawn_of(write(tmp_path, several)) == {"score_vs_bits"}


def weights(cell: dict[str, Any], step: str, key: str, error: float = 0.5) -> dict[str, Any]:
    told = {name: cell[name] for name in ("schema", "cell", "label", "settings", "seed", "bits")}
    errors = [
        {
            "layer": f"layers.{b}.mlp.{p}_proj",
            "block": b,
            "projection": f"mlp.{p}_proj",
            "error": error,
            "rounding": 0.1,
        }
        for b in range(3)
        for p in ("up", "down")
    ]
    levels = [{"place": p, "share": 1.0, "quartiles": [p - 0.1, p, p + 0.1]} for p in (-1, 0, 1)]
    shown = {"layer": "layers.1.mlp.down_proj", "low": -1.0, "high": 1.0, "counts": [1, 5, 2]}
    histogram = {**shown, "outside": 0, "levels": levels}
    kind = {"diagnostic": "weights", "step": step, "key": key}
    return {**told, **kind, "errors": errors, "histogram": histogram}


def confidence(cell: dict[str, Any], step: str, loss: list[float]) -> dict[str, Any]:
    told = {name: cell[name] for name in ("schema", "cell", "label", "settings", "seed", "bits")}
    kind = {"diagnostic": "confidence", "step": step, "key": step, "objective": "kl"}
    return {**told, **kind, "tokens": [20, 5, 100], "loss": loss, "unbounded": 1}


def test_steps_have_the_name_of_the_row_whose_result_they_are(tmp_path: Path) -> None:
    ours, rtn, wide = row(label="Ours"), row(label="RTN"), row(label="RTN", bits=3)
    records = [
        weights(ours, "full precision", "a"),
        weights(ours, "clip", "b"),
        weights(ours, "kl", "c"),
        weights(rtn, "full precision", "a"),
        weights(wide, "full precision", "d"),
    ]
    names = {each["cell"]: each["label"] for each in (ours, rtn, wide)}
    found = inside.list_steps([from_json(Weights, each, "") for each in records], names)
    assert [step.title for step in found] == ["RTN", "Ours: clip", "Ours"]
    folder = write(tmp_path, [ours, rtn, wide])
    records += [
        confidence(ours, when, [0.1, 0.2, 0.3]) for when in ("before training", "after training")
    ]
    (folder / "diagnostics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert {"weights", "errors", "confidence"} <= drawn_of(folder)


@pytest.mark.filterwarnings("error")
def test_diagnostics_that_are_not_finite_are_drawn_around(tmp_path: Path) -> None:
    one = row()
    records = [
        weights(one, "full precision", "a", error=math.nan),
        confidence(one, "after training", [0.0, 0.0, 0.0]),
    ]
    folder = write(tmp_path, [one])
    (folder / "diagnostics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert drawn_of(folder) == {"weights", "errors", "confidence"}


def test_a_broken_diagnostic_is_one_line(tmp_path: Path) -> None:
    broken = weights(row(), "clip", "a")
    broken["histogram"]["levels"] = [[0.1, 0.2]]
    folder = write(tmp_path, [row()])
    (folder / "diagnostics.jsonl").write_text(json.dumps(broken) + "\n")
    with pytest.raises(
        ReportError,
        match=r"diagnostics.jsonl:1: histogram.levels: ",
    ):
        _ = Export(folder).diagnostics
    del broken["errors"]
    (folder / "diagnostics.jsonl").write_text(json.dumps(broken) + "\n")
    with pytest.raises(ReportError, match="key 'errors' is missing"):
        _ = Export(folder).diagnostics


def test_lines_that_are_left_out_of_a_sweep_are_counted_in_the_caption(tmp_path: Path) -> None:
    rows = [
        row(settings={"lr": lr, "width": width}, value=0.5)
        for width in range(26)
        for lr in range(3)
    ]
    folder = write(tmp_path, rows, report={"rows": ["lr", "width"]})
    drawing = drawings_of(folder)["sweep"]
    assert "2 of 26 lines along learning rate not drawn: those after the first 24 of the table" in (
        drawing.words
    )
    assert "along width not drawn" not in drawing.words
    assert "2 of 26 lines along learning rate" in drawing.figure.get_suptitle().replace("\n", " ")
    assert max(len(axes.lines) for axes in drawing.figure.axes) == 24
