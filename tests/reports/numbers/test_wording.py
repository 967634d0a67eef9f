"""What settings are called: by the grid, by default, and never two alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.core.errors import ReportError
from harness.core.report_options import find_misnamed
from reports.numbers.effects import compute_effects
from reports.numbers.wording import Wording, tell_apart
from reports.pages.html_provenance import FACTS, list_measurements, make_data
from reports.pages.table import make_sheet
from reports.plots.data import find_sweeps, list_models
from reports.reading.export import Export
from tests.support.synthetic_grids import row, summary_of, write

PLAIN = Wording()


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.lr", "0.0004", "learning rate 0.0004"),
        ("data.sequences", "256", "256 sequences"),
        ("format.bits", "2", "2 bits"),
        ("format.group_size", "0", "a group a channel"),
        ("format.group_size", "64", "group size 64"),
        ("objective", "cakld gamma=0.5", "CAKLD (gamma 0.5)"),
        ("format", "nf asymmetric=True bits=3", "NF (asymmetric, 3 bits)"),
        ("format", "nf asymmetric=False", "NF (symmetric)"),
        ("attach", "activations bits=8 + kv-cache bits=4", "activations (8 bits) + KV cache"),
        ("init", "hadamard + clip", "Hadamard + clipped"),
        ("objective", "mine", "objective mine"),
        ("objective", "mine beta=2", "objective mine (beta 2)"),
        ("mine.fast_path", "true", "fast path"),
        ("mine.fast_path", "false", "no fast path"),
        ("mine.limit", "null", "no limit"),
        ("mine.text", "a = b + c", "text a = b + c"),  # a text that is no component
    ],
)
def test_settings_are_words_without_being_named(path: str, value: str, words: str) -> None:
    assert PLAIN.name_setting(path, value).startswith(words)


def test_the_grids_names_come_before_all_others() -> None:
    named = Wording(
        {
            "train.lr": "rate",
            "format=int-sym": "sym.",
            "data.sequences": "{} rows",
            "objective=cakld gamma=0.5": "half",
            "objective.gamma": "γ",
        }
    )
    assert named.name_setting("train.lr", "0.1") == "rate 0.1"
    assert named.name_value("train.lr", "0.1") == "0.1"
    assert named.name_setting("format", "int-sym") == "sym."
    assert named.name_setting("data.sequences", "8") == "8 rows"
    assert named.name_axis("data.sequences") == "rows"
    assert named.name_setting("objective", "cakld gamma=0.5") == "half"
    assert named.name_setting("objective", "cakld gamma=0.7") == "CAKLD (γ 0.7)"


def test_what_is_called_alike_stays_apart(tmp_path: Path) -> None:
    assert tell_apart({1: "a", 2: "a", 3: "b", 4: "b"}, {1: "x", 2: "y", 3: "z", 4: "z"}) == {
        1: "x",
        2: "y",
        3: "b",
        4: "b",
    }
    # A name that another value has by default; at other seeds, so that no cell tells them apart.
    rows = [row(settings={"format": f}, seed=s) for s, f in enumerate(("int-sym", "int-asym"))]
    given = {"names": {"format=int-sym": "asymmetric"}}
    summary = summary_of(write(tmp_path, rows, report=given))
    assert [each.name for each in summary.rows] == ["RTN format=int-sym", "RTN format=int-asym"]
    assert [each.models for each in summary.rows] == [1, 1]


def test_table_effects_plots_and_page_have_the_names(tmp_path: Path) -> None:
    rows = [
        row(settings={"a.rate": rate, "objective": "kl"}, seed=seed, value=0.5 + rate + seed / 50)
        for rate in (0.1, 0.2, 0.3)
        for seed in (0, 1, 2)
    ]
    names = {"a.rate": "pace", "a.rate=0.1": "slow", "testbed_knowledge": "Facts"}
    folder = write(tmp_path, rows, report={"names": names, "effect": "a.rate"})
    summary, export = summary_of(folder), Export(folder)
    sheet = make_sheet(summary)
    assert [line[1].text for line in sheet.rows] == ["RTN, slow", "RTN, pace 0.2", "RTN, pace 0.3"]
    assert "Facts ↑" in sheet.head
    effect = compute_effects(export)[0]
    assert (effect.axis, effect.baseline, effect.setting) == ("pace", "slow", "0.2")
    assert effect.context == "KL"
    (sweep,) = find_sweeps(list_models(export.rows, summary), Wording(names))
    assert list(sweep.series) == ["RTN"]
    data = make_data(summary, list_measurements(export.rows, summary), {}, export.items)
    assert data["rows"][0]["facts"][list(FACTS.values()).index("Varied settings")] == "slow, KL"


@pytest.mark.parametrize(
    ("names", "key", "words"),
    [
        ({"train.rl": "x"}, "train.rl", "'train.rl' is unknown; did you mean 'train.lr'?"),
        ({"train.lr=0.2": "x"}, "train.lr=0.2", "did you mean 'train.lr=0.1'?"),
        (
            {"format=nf bits=3": "x", "format=int-sym": "x"},
            "format=int-sym",
            "'format=nf bits=3' and 'format=int-sym' are both called 'x'",
        ),
        ({"format=nf": "x", "format.bits": "x", "format.bits=3": "x", "piqa": "y"}, None, ""),
    ],
)
def test_names_of_nothing(names: dict[str, str], key: str | None, words: str) -> None:
    settings = [{"train.lr": 0.1, "format": "nf bits=3"}, {"format": "int-sym"}]
    wrong = find_misnamed(names, settings, ["piqa"])
    assert (None if wrong is None else wrong[0]) == key
    assert wrong is None or words in wrong[1]


def test_a_report_of_edited_records_refuses_them_too(tmp_path: Path) -> None:
    folder = write(tmp_path, [row(settings={"lr": 1})], report={"names": {"lt": "rate"}})
    with pytest.raises(ReportError, match=r"grid.json: report.names: axis, value or task 'lt' is"):
        summary_of(folder)
