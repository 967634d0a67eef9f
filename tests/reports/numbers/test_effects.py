"""The effect of an axis, paired by seed, against a paired t-test done by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

import reports
from harness.core.errors import ReportError
from reports.numbers.effects import Effect
from tests.support.synthetic_grids import TASKS, effects_of, row, write

SEEDS = {"kl": [0.50, 0.61, 0.40], "cakld": [0.55, 0.64, 0.46], "jsd": [0.41, 0.66, 0.43]}


def grid(**given: Any) -> list[dict[str, Any]]:
    return [
        row(settings={"objective": name}, seed=seed, value=value + step, task=task, **given)
        for name, values in SEEDS.items()
        for seed, value in enumerate(values)
        for step, task in ((0.0, TASKS[0]), (0.1, TASKS[1]))
    ]


def named(found: tuple[Effect, ...], setting: str, title: str) -> Effect:
    (effect,) = [e for e in found if e.setting == setting and e.column.title == title]
    return effect


def test_a_paired_t_test_by_seed(tmp_path: Path) -> None:
    found = effects_of(write(tmp_path, reversed(grid())))  # the file's order, not the seeds'
    assert {(e.axis, e.baseline, e.label, e.context, e.bits) for e in found} == {
        ("objective", "jsd", "RTN", "", 2)
    }
    found = effects_of(write(tmp_path, grid()))
    assert {e.column.title for e in found} == {"Knowledge", "Story", "Average"}
    theirs = stats.ttest_rel(SEEDS["cakld"], SEEDS["kl"])
    low, high = theirs.confidence_interval(0.95)
    for title in ("Knowledge", "Story", "Average"):
        effect = named(found, "cakld", title)
        assert effect.baseline == "kl" and effect.better
        assert effect.difference.mean == pytest.approx(0.14 / 3)
        assert effect.difference.low == pytest.approx(low)
        assert effect.difference.high == pytest.approx(high)
        assert effect.difference.p == pytest.approx(theirs.pvalue)
        assert effect.difference.n == 3
        # Six comparisons; these three have the smallest p.
        assert effect.p == pytest.approx(6 * theirs.pvalue)


def test_other_axes_stay_apart(tmp_path: Path) -> None:
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
    assert {(e.context, e.bits) for e in found} == {("format.bits=2", 2), ("format.bits=3", 3)}
    assert {e.difference.n for e in found} == {3}
    across = effects_of(write(tmp_path, rows + more, report={"effect": "format.bits"}))
    assert {(e.baseline, e.setting, e.bits) for e in across} == {("2", "3", None)}
    assert all(e.difference.p == 1 for e in across)


def test_a_pair_needs_one_seed_and_one_protocol(tmp_path: Path) -> None:
    rows = [each for each in grid() if (each["settings"]["objective"], each["seed"]) != ("kl", 2)]
    found = effects_of(write(tmp_path, rows))
    assert named(found, "cakld", "Average").difference.n == 2
    for each in rows:
        if (
            each["settings"]["objective"] == "jsd"
            and each["seed"] == 0
            and each["task"] == TASKS[0]
        ):
            each["limit"] = 10
    found = effects_of(write(tmp_path, rows))
    one = named(found, "jsd", "Knowledge")
    assert one.difference.n == 1 and math.isnan(one.difference.p) and math.isnan(one.p)
    assert named(found, "jsd", "Average").difference.n == 1
    assert named(found, "jsd", "Story").difference.n == 2


def test_nan_is_not_left_out(tmp_path: Path) -> None:
    rows = grid()
    rows[0]["value"] = math.nan
    effect = named(effects_of(write(tmp_path, rows)), "cakld", "Knowledge")
    assert math.isnan(effect.difference.mean) and not effect.better


def test_seeds_of_one_model_are_one_pair(tmp_path: Path) -> None:
    rows = [
        row(settings={"init": name}, seed=seed, value=value, model_key=name)
        for name, value in (("none", 0.4), ("clip", 0.6))
        for seed in range(3)
    ]
    (effect,) = effects_of(write(tmp_path, rows))
    assert effect.difference.n == 1 and math.isnan(effect.difference.low)


def test_the_report_has_a_table_of_them(tmp_path: Path) -> None:
    folder = write(tmp_path, grid())
    reports.render(folder)
    page = (folder / "report.md").read_text().partition("## The effect of objective")[2]
    effect = named(effects_of(folder), "cakld", "Knowledge")
    low, high = (
        f"{100 * x:+.1f}".replace("-", "−") for x in (effect.difference.low, effect.difference.high)
    )
    assert "Holm-corrected for 6 comparisons" in page
    cells = f"| kl → cakld | Knowledge ↑ | +4.7 | \\[{low}, {high}\\] | {effect.p:.3f} | 3 |"
    assert f"| RTN {cells}" in page


def test_an_axis_that_is_not_there(tmp_path: Path) -> None:
    folder = write(tmp_path, grid(), report={"effect": "objektive"})
    with pytest.raises(
        ReportError, match=r"axis 'objektive' is unknown; did you mean 'objective'\?"
    ):
        effects_of(folder)
    assert effects_of(write(tmp_path, [row()])) == ()
