"""The effect of an axis against a linear model fitted by statsmodels, and Dunnett's table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.formula.api import ols

import reports
from harness.core.errors import ReportError
from reports.numbers.effects import NO_SPREAD, ONE_MODEL, ONE_SEED, Effect, Status
from reports.numbers.wording import Wording
from tests.support.synthetic_grids import TASKS, effects_of, measured, row, write

SEEDS = {"kl": [0.50, 0.61, 0.40], "cakld": [0.55, 0.64, 0.46], "jsd": [0.41, 0.66, 0.43]}


def grid(**given: Any) -> list[dict[str, Any]]:
    return [
        row(settings={"objective": name}, seed=seed, value=value + step, task=task, **given)
        for name, values in SEEDS.items()
        for seed, value in enumerate(values)
        for step, task in ((0.0, TASKS[0]), (0.1, TASKS[1]))
    ]


def named(found: tuple[Effect, ...], setting: str, title: str) -> Effect:
    words = Wording().name_value("objective", setting)
    (effect,) = [e for e in found if e.setting == words and e.column.title == title]
    return effect


def test_a_blocked_linear_model_with_dunnett(tmp_path: Path) -> None:
    found = effects_of(write(tmp_path, reversed(grid())))  # the file's order, not the seeds'
    assert {(e.axis, e.baseline, e.label, e.context, e.bits) for e in found} == {
        ("objective", "JSD", "RTN", "", 2)
    }
    found = effects_of(write(tmp_path, grid()))
    assert {e.column.title for e in found} == {"Knowledge", "Story", "Average"}
    frame = pd.DataFrame(
        [(name, s, v) for name, values in SEEDS.items() for s, v in enumerate(values)],
        columns=["name", "seed", "score"],
    )
    model = ols("score ~ C(name, Treatment('kl')) + C(seed)", frame).fit()
    for setting in ("cakld", "jsd"):
        (name,) = [each for each in model.params.index if setting in each]
        for title, sets in (("Knowledge", 2), ("Story", 2), ("Average", 1)):
            effect = named(found, setting, title)
            assert effect.baseline == "KL" and effect.over == "seeds"
            assert effect.difference.mean == pytest.approx(model.params[name])
            assert (effect.error, effect.df) == (pytest.approx(model.bse[name]), 4)
            assert (effect.difference.n, effect.comparisons) == (3, 2 * sets)
            assert effect.p <= min(1, 2 * sets * model.pvalues[name]) + 1e-9  # Bonferroni
            half = (effect.difference.high - effect.difference.low) / 2
            # Of one set Dunnett's table: 2 comparisons, 4 degrees of freedom
            if sets == 1:
                assert half / effect.error == pytest.approx(3.31, abs=0.01)
            assert half < model.bse[name] * stats.t.isf(0.05 / 4 / sets, 4)


def test_a_large_effect_is_found_with_three_seeds(tmp_path: Path) -> None:
    """24 comparisons; paired t-tests by Holm had 0.05 / 24 to reach with 2 degrees of freedom."""
    generator = np.random.default_rng(3)
    tasks = [f"task{i}" for i in range(8)]
    rows = [
        row(
            settings={"init": name},
            seed=seed,
            task=task,
            value=0.4 + gain + float(generator.normal(0, 0.02)),
        )
        for name, gain in (("none", 0.0), ("clip", 0.32), ("awq", 0.0), ("both", 0.01))
        for task in tasks
        for seed in range(3)
    ]
    found = [e for e in effects_of(write(tmp_path, rows)) if e.column.task]
    assert {e.comparisons for e in found} == {24}
    assert {e.status for e in found if e.setting == "clipped"} == {Status.DISTINGUISHED}
    quiet = [e for e in found if e.setting != "clipped"]
    assert {e.status for e in quiet} == {Status.NOT_DISTINGUISHED}
    assert all(0.05 < e.visible < 0.32 for e in quiet)  # what could have been seen


@given(
    st.lists(st.floats(-1, 1), min_size=6, max_size=12),
    st.floats(0.001, 3),
)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_intervals_and_p_agree(tmp_path: Path, scores: list[float], scale: float) -> None:
    rows = [
        row(settings={"objective": "abc"[i % 3]}, seed=i // 3, value=scale * each)
        for i, each in enumerate(scores)
    ]
    for effect in effects_of(write(tmp_path, rows, report={"effect": "objective"})):
        difference = effect.difference
        if effect.untested:
            assert math.isnan(difference.low) and math.isnan(effect.p)
        elif abs(effect.p - 0.05) > 1e-4:
            assert (difference.low > 0 or difference.high < 0) == (effect.p < 0.05)


def test_equal_differences_are_no_certainty(tmp_path: Path) -> None:
    """Case 15: it said -2.5 [-2.5, -2.5], p 0.000."""
    rows = [
        row(settings={"objective": name}, seed=seed, value=0.5 + seed / 50 + step)
        for name, step in (("kl", 0.0), ("cakld", -0.025))
        for seed in range(3)
    ]
    (effect,) = effects_of(write(tmp_path, rows))
    assert effect.difference.mean == pytest.approx(-0.025)
    assert (effect.status, effect.untested) == (Status.UNTESTED, NO_SPREAD)
    assert all(math.isnan(x) for x in (effect.p, effect.difference.low, effect.visible))


def with_items(
    folder: Path, scores: dict[str, Sequence[Sequence[float]]], **given: Any
) -> tuple[Effect, ...]:
    made = [
        measured(list(map(float, each)), settings={"objective": name}, seed=seed, **given)
        for name, models in scores.items()
        for seed, each in enumerate(models)
    ]
    return effects_of(write(folder, [r for r, _ in made], items=[i for _, i in made]))


def test_what_the_items_say_is_the_least(tmp_path: Path) -> None:
    """Equal scores of every seed, but of items that differ: the interval is theirs."""
    generator = np.random.default_rng(1)
    base, other = generator.permutation([1.0] * 50 + [0.0] * 50), [1.0] * 45 + [0.0] * 55
    (effect,) = with_items(tmp_path, {"kl": [base] * 3, "cakld": [other] * 3})
    test = stats.ttest_rel(other, base).confidence_interval(0.95)
    assert effect.over == "items"
    assert (effect.difference.low, effect.difference.high) == (
        pytest.approx(test.low),
        pytest.approx(test.high),
    )


def test_perplexities_vary_by_window_and_seed(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    base = generator.normal(2, 0.5, 60)
    other = base + generator.normal(0.2, 0.05, 60)  # by item, the same of every seed
    shifts = {"kl": [0.0, 0.01, -0.01], "cakld": [0.0, 0.03, 0.02]}
    scores = {"kl": [base + each for each in shifts["kl"]]}
    scores["cakld"] = [other + each for each in shifts["cakld"]]
    (effect,) = with_items(tmp_path, scores, task="testbed-ppl", metric="ppl")
    # Logarithms of perplexities are mean losses, whose differences are of paired windows.
    difference = np.array(shifts["cakld"]) - shifts["kl"] + (other - base).mean()
    assert effect.column.title == "ln PPL"
    assert effect.difference.mean == pytest.approx(difference.mean())
    items = (other - base).var(ddof=1) / 60
    seeds = difference.var(ddof=1) / 3
    assert effect.error == pytest.approx(math.sqrt(items + seeds), rel=0.01)
    assert effect.over == "seeds and items"


def test_other_axes_stay_apart_and_one_width_is_one_pool(tmp_path: Path) -> None:
    rows = grid()
    for each in rows:
        each["settings"]["format.bits"] = 2
    more = [
        {**each, "settings": {**each["settings"], "format.bits": 3}, "bits": 3} for each in rows
    ]
    more = [{**e, "cell": e["cell"] + "3", "model_key": e["model_key"] + "3"} for e in more]
    folder = write(tmp_path, rows + more)
    assert effects_of(folder) == ()  # two axes: none alone
    found = effects_of(write(tmp_path, rows + more, report={"effect": "objective"}))
    assert {(e.context, e.bits) for e in found} == {("2 bits", 2), ("3 bits", 3)}
    assert {(e.difference.n, e.df) for e in found} == {(3, 4)}
    again = [
        {**e, "settings": {**e["settings"], "data": "x"}, "cell": e["cell"] + "x",
         "model_key": e["model_key"] + "x"} for e in rows
    ]  # fmt: skip
    both = [{**e, "settings": {"data": "w", **e["settings"]}} for e in rows] + again
    found = effects_of(write(tmp_path, both, report={"effect": "objective"}))
    assert {e.df for e in found} == {8}  # two contexts of one width
    across = effects_of(write(tmp_path, rows + more, report={"effect": "format.bits"}))
    assert {(e.baseline, e.setting, e.bits) for e in across} == {("2", "3", None)}
    assert all(e.untested == NO_SPREAD for e in across)


def test_missing_seeds_and_other_protocols(tmp_path: Path) -> None:
    rows = [each for each in grid() if (each["settings"]["objective"], each["seed"]) != ("kl", 2)]
    found = effects_of(write(tmp_path, rows))
    assert named(found, "cakld", "Average").difference.n == 2
    frame = pd.DataFrame(
        [
            (e["settings"]["objective"], e["seed"], e["value"])
            for e in rows
            if e["task"] == TASKS[0]
        ],
        columns=["name", "seed", "score"],
    )
    model = ols("score ~ C(name, Treatment('kl')) + C(seed)", frame).fit()
    effect = named(found, "jsd", "Knowledge")
    (name,) = [each for each in model.params.index if "jsd" in each]
    assert effect.difference.mean == pytest.approx(model.params[name])
    assert (effect.error, effect.df) == (pytest.approx(model.bse[name]), model.df_resid)
    for each in rows:
        if each["settings"]["objective"] == "jsd" and each["task"] == TASKS[0]:
            each["limit"] = 10
    found = effects_of(write(tmp_path, rows))
    odd = named(found, "jsd", "Knowledge")
    assert odd.untested == "measured by another protocol" and math.isnan(odd.difference.mean)
    assert named(found, "jsd", "Average").untested and not named(found, "jsd", "Story").untested


def test_one_seed_is_untested(tmp_path: Path) -> None:
    rows = [each for each in grid() if each["seed"] == 0]
    found = effects_of(write(tmp_path, rows, report={"effect": "objective"}))
    assert {(e.status, e.untested) for e in found} == {(Status.UNTESTED, ONE_SEED)}
    rows = [e for e in grid() if e["seed"] == (0 if e["settings"]["objective"] == "kl" else 1)]
    found = effects_of(write(tmp_path, rows))
    assert {e.untested for e in found} == {"no seed in common with KL"}


def test_nan_is_not_left_out(tmp_path: Path) -> None:
    rows = grid()
    rows[0]["value"] = math.nan
    effect = named(effects_of(write(tmp_path, rows)), "cakld", "Knowledge")
    assert math.isnan(effect.difference.mean) and not effect.better
    assert effect.untested == "KL: no finite score at seed 0"


def test_seeds_of_one_model_are_one_pair(tmp_path: Path) -> None:
    rows = [
        row(settings={"init": name}, seed=seed, value=value, model_key=name)
        for name, value in (("none", 0.4), ("clip", 0.6))
        for seed in range(3)
    ]
    (effect,) = effects_of(write(tmp_path, rows))
    assert effect.difference.n == 1 and math.isnan(effect.difference.low)
    assert effect.difference.mean == pytest.approx(0.2) and effect.untested == ONE_MODEL


def test_deterministic_settings_are_compared_by_their_items(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    base = generator.integers(0, 2, 100).astype(float)
    other = np.where(generator.random(100) < 0.3, 1.0, base)
    scores = {"kl": [base] * 3, "cakld": [other] * 3}
    made = [
        measured(list(each), settings={"objective": name}, seed=seed, model_key=name)
        for name, models in scores.items()
        for seed, each in enumerate(models)
    ]
    lines = {line["key"]: line for _, line in made}
    (effect,) = effects_of(write(tmp_path, [r for r, _ in made], items=lines.values()))
    test = stats.ttest_rel(other, base)
    assert (effect.over, effect.difference.n) == ("items", 1)
    assert (effect.p, effect.df) == (pytest.approx(test.pvalue), 99)


def test_the_report_has_a_table_of_them(tmp_path: Path) -> None:
    folder = write(tmp_path, grid())
    reports.render(folder)
    page = (folder / "report.md").read_text().partition("## The effect of objective")[2]
    effect = named(effects_of(folder), "cakld", "Knowledge")
    low, high = (
        f"{100 * x:+.1f}".replace("-", "−") for x in (effect.difference.low, effect.difference.high)
    )
    assert "simultaneous 95 % intervals by Dunnett" in page
    visible = f"{100 * effect.visible:.1f}"
    cells = f"+4.7 | \\[{low}, {high}\\] | {effect.p:.3f} | {visible} | 3 |"
    assert f"| RTN | KL → CAKLD | Knowledge ↑ | {cells}" in page


def test_an_axis_that_is_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path, grid(), report={"effect": "objektive"})
    with pytest.raises(
        ReportError, match=r"axis 'objektive' is unknown; did you mean 'objective'\?"
    ):
        effects_of(folder)
    assert effects_of(write(tmp_path, [row()])) == ()
