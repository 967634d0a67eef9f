"""What stands in the table: names, means, ±, averages, best, marks."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.core.errors import ReportError
from reports.numbers.columns import format_difference, format_number
from reports.numbers.entries import Entry
from reports.numbers.summary import Summary
from reports.pages.table import list_explanations
from tests.support.synthetic_grids import TASKS, ppl, row, summary_of, write

PUBLISHED = Path(__file__).parents[3] / "harness/published/bitdistiller-2402.10631.csv"


def published(model: str) -> tuple[list[dict[str, Any]], dict[tuple[str, str], str]]:
    """The paper's rows as exported ones, and the averages that it prints."""
    rows, averages = [], {}
    for line in csv.DictReader(PUBLISHED.read_text().splitlines()):
        if line["model"] != model or line["table"] != "general-language":
            continue
        if line["task"] == "average":
            averages[line["method"], line["bits"]] = line["value"]
            continue
        common: dict[str, Any] = {
            "label": line["method"],
            "bits": int(line["bits"]),
            "task": line["task"],
            "n": None,
        }
        value = float(line["value"])
        perplexity = line["metric"] == "ppl"
        rows.append(ppl(**common, value=value) if perplexity else row(**common, value=value / 100))
    return rows, averages


def entry(summary: Summary, name: str, title: str, bits: float = 2) -> Entry | None:
    (index,) = [i for i, column in enumerate(summary.columns) if column.title == title]
    (found,) = [each for each in summary.rows if each.name == name and each.bits == bits]
    return found.entries[index]


def sure(summary: Summary, name: str, title: str, bits: float = 2) -> Entry:
    found = entry(summary, name, title, bits)
    assert found is not None
    return found


def names(summary: Summary) -> list[str]:
    return [each.name for each in summary.rows]


def scores(label: str, values: Iterable[float], **given: Any) -> list[dict[str, Any]]:
    return [
        row(label=label, task=task, value=value, **given)
        for task, value in zip(TASKS, values, strict=False)
    ]


@pytest.mark.parametrize("model", ["LLaMA-2-7B", "LLaMA-2-13B"])
def test_averages_equal_the_printed_ones(tmp_path: Path, model: str) -> None:
    rows, averages = published(model)
    summary = summary_of(write(tmp_path, rows))
    average = summary.columns[-1]
    assert average.tasks == ("mmlu", "piqa", "hellaswag", "winogrande", "arc_challenge")
    assert len(summary.rows) == len(averages) == 13
    for each in summary.rows:
        found = each.entries[-1]
        assert found is not None
        printed = averages[each.name, f"{each.bits:g}"]
        assert format_number(found.mean, average, summary.decimals) == printed


def test_the_papers_bold_figures(tmp_path: Path) -> None:
    summary = summary_of(write(tmp_path, published("LLaMA-2-7B")[0]))
    assert [each.bits for each in summary.rows] == [16] + [3] * 6 + [2] * 6
    best = {c.title: [] for c in summary.columns}
    for each in summary.rows:
        for column, found in zip(summary.columns, each.entries, strict=True):
            if found is not None and found.best:
                best[column.title].append((each.bits, each.name))
    assert best["WinoGrande"] == [(3, "LLM-QAT"), (3, "BitDistiller"), (2, "LLM-QAT")]  # a tie
    assert best["PIQA"] == [(3, "OmniQuant"), (2, "BitDistiller")]
    assert best["WikiText-2"] == best["Average"] == [(3, "BitDistiller"), (2, "BitDistiller")]
    assert math.isnan(sure(summary, "GPTQ", "WikiText-2").mean)


@given(values=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_mean_and_sd_over_models(tmp_path: Path, values: list[list[float]]) -> None:
    rows = [r for seed, each in enumerate(values) for r in scores("A", each, seed=seed)]
    summary = summary_of(write(tmp_path, rows))
    (found,) = summary.rows
    for index, one in enumerate([*zip(*values, strict=True), [sum(v) / 3 for v in values]]):
        cell = found.entries[index]
        assert cell is not None
        assert cell.n == len(values)
        assert cell.mean == pytest.approx(statistics.fmean(one), abs=1e-12)
        if len(values) == 1:
            assert cell.sd is None
        else:
            assert cell.sd == pytest.approx(statistics.stdev(one), abs=1e-9)


def test_seeds_of_one_model_are_one_model(tmp_path: Path) -> None:
    rows = [row(seed=seed, model_key="same", value=0.4) for seed in range(3)]
    rows += [row(label="B", seed=seed, value=0.4 + seed / 10) for seed in range(3)]
    summary = summary_of(write(tmp_path, rows))
    assert sure(summary, "RTN", "Knowledge") == Entry(
        mean=pytest.approx(0.4), n=1, fixed=True, untested="its items are not known"
    )
    assert sure(summary, "B", "Knowledge").n == 3
    assert summary.several


def test_what_varies_is_in_the_name(tmp_path: Path) -> None:
    def settings(**given: object) -> dict[str, Any]:
        return {"label": "B", "settings": given}

    rows = [row(label="RTN"), row(**settings(objective="kl", lr=1e-5), seed=0)]
    rows += [
        row(**settings(objective="kl", lr=1e-5), seed=1),
        row(**settings(objective="jsd", lr=1e-5)),
    ]
    rows += [row(**settings(objective="kl", lr=1e-5), bits=3)]
    summary = summary_of(write(tmp_path, rows))
    assert names(summary) == ["B, KL", "RTN", "B, KL", "B, JSD"]
    shown = summary_of(write(tmp_path, rows, report={"rows": ["label", "lr"]}))
    assert names(shown)[-1] == "B, learning rate 1e-05, JSD"


def test_another_axis_may_be_averaged_over(tmp_path: Path) -> None:
    rows = [
        row(settings={"data.size": size}, seed=seed, value=0.5 + size / 100)
        for size in (1, 2)
        for seed in (0, 1)
    ]
    summary = summary_of(write(tmp_path, rows, report={"over": "data.size"}))
    assert names(summary) == ["RTN, seed 0", "RTN, seed 1"]
    assert sure(summary, "RTN, seed 0", "Knowledge").n == 2
    every = summary_of(write(tmp_path, rows, report={"over": None}))
    assert len(every.rows) == 4


def test_cells_that_no_axis_tells_apart_are_not_averaged(tmp_path: Path) -> None:
    rows = [row(cell="a", group_size=64), row(cell="b", group_size=128)]
    assert names(summary_of(write(tmp_path, rows))) == ["RTN, group size 64", "RTN, group size 128"]
    rows = [row(cell="a", value=0.1), row(cell="b", value=0.2)]
    assert names(summary_of(write(tmp_path, rows))) == ["RTN, cell a", "RTN, cell b"]


def test_nan_makes_the_average_nan_and_missing_makes_none(tmp_path: Path) -> None:
    rows = scores("Whole", [0.1, 0.2, 0.3])
    rows += scores("Diverged", [0.1, math.nan, 0.3]) + scores("Open", [0.9, 0.9])
    summary = summary_of(write(tmp_path, rows))
    assert math.isnan(sure(summary, "Diverged", "Average").mean)
    assert entry(summary, "Open", "Average") is None
    assert entry(summary, "Open", "Arithmetic") is None
    assert sure(summary, "Whole", "Average").mean == pytest.approx(0.2)
    assert not sure(summary, "Whole", "Average").best  # nothing to be better than


def test_one_diverged_seed_is_not_averaged_away(tmp_path: Path) -> None:
    rows = [ppl(seed=seed, value=value) for seed, value in enumerate([5.0, math.nan, 5.2])]
    summary = summary_of(write(tmp_path, rows))
    assert math.isnan(sure(summary, "RTN", "PPL").mean)


def test_only_models_with_every_task_are_averaged(tmp_path: Path) -> None:
    rows = scores("A", [0.2, 0.2, 0.2], seed=0) + scores("A", [0.8, 0.8], seed=1)
    found = sure(summary_of(write(tmp_path, rows)), "A", "Average")
    assert (found.mean, found.n) == (pytest.approx(0.2), 1)


def test_the_grid_may_choose_the_averaged_tasks(tmp_path: Path) -> None:
    rows = [*scores("A", [0.2, 0.4, 0.9]), ppl(label="A", value=9.0)]
    chosen = {"average": TASKS[:2]}
    summary = summary_of(write(tmp_path, rows, report=chosen))
    assert sure(summary, "A", "Average").mean == pytest.approx(0.3)
    with pytest.raises(ReportError, match=r"task 'testbed_stori' is unknown; did you mean"):
        summary_of(write(tmp_path, rows, report={"average": ["testbed_stori", TASKS[0]]}))
    with pytest.raises(ReportError, match="lower-is-better"):
        summary_of(write(tmp_path, rows, report={"average": ["testbed-ppl", TASKS[0]]}))
    hole = {"cell": "x", "label": "X", "settings": {}, "seed": 0, "reason": "not run yet"}
    waiting = {"average": [*TASKS, "later"]}
    open_grid = summary_of(write(tmp_path, rows, report=waiting, holes=[hole]))
    assert entry(open_grid, "A", "Average") is None


def test_ties_are_those_that_look_equal(tmp_path: Path) -> None:
    rows = [row(label=name, value=v) for name, v in [("A", 0.5001), ("B", 0.5), ("C", 0.3)]]
    summary = summary_of(write(tmp_path, rows))
    best = {name: sure(summary, name, "Knowledge").best for name in "ABC"}
    assert best == {"A": True, "B": True, "C": False}


def test_another_protocol_is_marked_and_does_not_compete(tmp_path: Path) -> None:
    rows = scores("A", [0.3, 0.3]) + scores("B", [0.4, 0.4])
    rows += scores("C", [0.9], n=20, limit=20) + scores("C", [0.0, 0.1])[1:]
    summary = summary_of(write(tmp_path, rows))
    assert dict(summary.notes) == {
        "a": "measured otherwise than its column: limit 20 (column: null), n 20 (column: 200)"
    }
    odd, average = sure(summary, "C", "Knowledge"), sure(summary, "C", "Average")
    assert odd.marks == average.marks == ("a",)
    assert not odd.best
    assert not average.best
    assert sure(summary, "B", "Knowledge").best
    assert sure(summary, "C", "Story").marks == ()


@pytest.mark.parametrize(
    "change", [{"bos": True}, {"protocol": "words"}, {"lm_eval": "0.5"}, {"task_version": None}]
)
def test_every_part_of_the_protocol_counts(tmp_path: Path, change: dict[str, Any]) -> None:
    rows = [row(label="A"), row(label="B"), row(label="C", **change)]
    summary = summary_of(write(tmp_path, rows))
    assert sure(summary, "C", "Knowledge").marks == ("a",)


def test_seeds_measured_differently_are_marked(tmp_path: Path) -> None:
    rows = [row(seed=0), row(seed=1), row(seed=2, limit=5)]
    summary = summary_of(write(tmp_path, rows))
    assert "some of its seeds with limit 5" in summary.notes[0][1]


def test_what_was_not_rounded_is_said(tmp_path: Path) -> None:
    """The share is rounded down: what is not all is never shown as all."""
    rows = [
        row(label="A", value=0.2, rounded=1.0),
        row(label="B", value=0.9, rounded=0.99999, kept="mlp.gate"),
    ]
    summary = summary_of(write(tmp_path, rows))
    text = "99.99 % of the weights of its blocks are rounded; kept: mlp.gate"
    assert summary.notes == (("a", text),)
    assert [row.entries[0].marks for row in summary.rows if row.entries[0]] == [(), ("a",)]


def test_a_rounded_head_is_said(tmp_path: Path) -> None:
    ends = "lm_head to int-asym of 8 bits, 8.75 a weight; 2.6 a weight with the blocks"
    rows = [row(label="A", value=0.2, ends=ends), row(label="B", value=0.9)]
    summary = summary_of(write(tmp_path, rows))
    assert summary.notes == (("a", f"rounded outside of its blocks: {ends}"),)


def test_stale_is_marked_and_competes(tmp_path: Path) -> None:
    rows = [row(label="A", value=0.2), row(label="B", value=0.9, stale="train.py changed")]
    summary = summary_of(write(tmp_path, rows))
    assert summary.notes == (("a", "stale: train.py changed"),)
    assert sure(summary, "B", "Knowledge").best
    assert summary.stale == ("B, 2 bits, testbed_knowledge acc, seed 0: train.py changed",)


def test_titles_name_the_metric_where_a_task_has_two(tmp_path: Path) -> None:
    rows = [row(task="piqa"), row(task="piqa", metric="acc_norm"), ppl(value=3.0)]
    rows += [row(task="my_task", primary=True), row(task="mmlu", primary=False)]
    titles = [column.title for column in summary_of(write(tmp_path, rows)).columns]
    assert titles == ["PPL", "PIQA (acc)", "PIQA (acc_norm)", "my_task", "Average"]


def test_numbers_look_as_in_the_paper(tmp_path: Path) -> None:
    perplexity, score = summary_of(write(tmp_path, [ppl(value=3.0), row()])).columns
    given = [5.472, 999.0, 3453.2, 2.2e5, math.nan, math.inf]
    assert [format_number(v, perplexity, 2) for v in given] == [
        *("5.47", "999.00", "3453", "2.2e5", "NaN", "inf")
    ]
    assert format_number(0.49184, score, 2) == "49.18"
    assert format_number(0.49184, score, 1) == "49.2"


def test_what_rounds_to_zero_has_no_sign(tmp_path: Path) -> None:
    perplexity, score = summary_of(write(tmp_path, [row(), ppl()])).columns
    for zero in (0.0, -0.0, -4e-5, 4e-5):
        assert format_number(zero, score, 1) == "0.0" and format_number(zero, score, 2) == "0.00"
        assert format_number(zero, perplexity, 2) == "0.00"
        assert format_difference(zero, 1) == "0.0" and format_difference(zero, 3) == "0.000"
    shown = [format_difference(value, 1) for value in (-0.06, 0.06, -12.34, math.inf)]
    assert shown == ["−0.1", "+0.1", "−12.3", "+inf"]


def test_a_filter_is_part_of_what_a_column_measures(tmp_path: Path) -> None:
    asked = {"task": "gsm8k", "metric": "exact_match"}
    rows = [
        row(**asked, filter="flexible-extract", value=0.3),
        row(**asked, filter="strict-match", value=0.2, primary=False),
        row(**asked, label="Other", filter="flexible-extract", value=0.1),
    ]
    summary = summary_of(write(tmp_path, rows))
    (column,) = summary.columns
    assert column.name == "gsm8k.exact_match,flexible-extract"
    assert column.title == "GSM8K"
    assert [entry.mean for each in summary.rows for entry in each.entries if entry] == [0.3, 0.1]


def test_models_that_do_something_as_they_run_have_rows_of_their_own(tmp_path: Path) -> None:
    rows = [row(label="RTN", bits=2, cell="plain")]
    for attachments in ("A8KV4", "A8"):
        rows.append(row(label="RTN", bits=2, cell=attachments, attachments=attachments))
    rows.append(row(label="GPTQ", bits=2, cell="other"))
    rows += [row(label="BF16", bits=16, cell="base")]
    rows += [row(label="BF16", bits=16, cell="run", attachments="A4")]
    summary = summary_of(write(tmp_path, rows))
    assert [[each.name for each in group] for group in summary.groups()] == [
        ["BF16"],
        ["BF16 W16A4"],
        ["RTN", "GPTQ"],
        ["RTN W2A8KV4"],
        ["RTN W2A8"],
    ]
    assert [each.width for each in summary.rows] == ["16", "W16A4", "2", "2", "W2A8KV4", "W2A8"]
    assert [each.reference for each in summary.rows] == [True, *[False] * 5]
    assert any("KV4 keys and values to 4" in each for each in list_explanations(summary))
    plain = summary_of(write(tmp_path / "plain", rows[:1]))
    assert not any("KV4" in each for each in list_explanations(plain))


def test_an_axis_over_them_names_its_rows_once(tmp_path: Path) -> None:
    chosen: list[Any] = [[], [{"name": "activations"}]]
    rows = [
        row(label="RTN", bits=2, cell=str(n), settings={"attach": chosen[n]}, attachments=known)
        for n, known in enumerate((None, "A8"))
    ]
    assert names(summary_of(write(tmp_path, rows))) == ["RTN", "RTN W2A8"]


def test_what_differs_between_seeds_is_said_where_it_is_known(tmp_path: Path) -> None:
    def say(name: str, seeds: int, varies: str | None) -> list[str]:
        rows = [ppl(seed=seed, value=5.0 + seed) for seed in range(seeds)]
        summary = summary_of(write(tmp_path / name, rows, varies=varies))
        return [each.text for each in summary.remarks if each.heading == "Seeds"]

    assert say("order", 2, "order") == ["they differ in the order of training data alone."]
    assert "calibration text begins" in say("all", 2, "all")[0]
    assert say("one", 1, "all") == say("unknown", 2, None) == []
