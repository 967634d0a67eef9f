"""Figures of benchmarks: what is kept, compared and said of their growth."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.record import Figure, Record, compare, measure_growth, time_in_turn


def test_forms_run_in_turn_and_the_first_run_of_each_does_not_count() -> None:
    calls: list[str] = []
    forms = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    seconds = time_in_turn(forms, 2)
    assert calls == ["a", "b"] * 3
    assert {form: len(values) for form, values in seconds.items()} == {"a": 2, "b": 2}


@pytest.mark.parametrize(("ours", "said"), [(0.5, "0.5 ×"), (3.0, "3 ×"), (0.005, "1/200")])
def test_a_figure_is_compared_with_the_median_of_its_baseline(ours: float, said: str) -> None:
    assert compare(Figure("", "", "s", [ours]), Figure("", "", "s", [0.1, 1.0, 9.0])) == said


def test_the_growth_is_the_power_that_costs_follow() -> None:
    figures = [Figure("", "", "s", [3 * size**1.5], {"tokens": size}) for size in (1, 4, 16)]
    assert measure_growth(figures, "tokens") == pytest.approx(1.5)
    assert measure_growth(figures[:2], "tokens") is None
    assert measure_growth(figures, "words") is None


@pytest.mark.parametrize("values", [[], [float("nan")], [1.0, float("inf")]])
def test_a_figure_that_is_none_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match=r"speed: case, ours: no finite figures"):
        Record("speed").add("case", "ours", "s", values)


def test_a_file_has_every_repetition_and_the_page_is_made_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "FOLDER", tmp_path)
    kept = Record("speed", baseline="plain")
    for size in (1, 2, 4):
        kept.add(f"{size} tokens", "plain", "s", [size, 3 * size, 2 * size], tokens=size)
        kept.add(f"{size} tokens", "ours", "s", [size], tokens=size)
    kept.finish()
    assert not list(tmp_path.iterdir())
    kept.finish(write=True)
    assert "| 4 tokens | ours | 4 s | 4 to 4 | 1 | 0.5 × |" in capsys.readouterr().out
    file = json.loads((tmp_path / "speed.json").read_text())
    assert file["figures"][0]["values"] == [1.0, 3.0, 2.0]
    assert file["versions"]["torch"] and file["threads"] and file["commit"]
    page = "\n".join(record.write_page())
    assert "| anything on a GPU | see `benchmarks/gpu.py` | not measured |" in page
    assert "## speed" in page and "| 2 tokens | plain | 4 s | 2 to 6 | 3 | – |" in page
    assert "`ours` (s) grows with tokens to the power of 1.00." in page


def test_the_page_says_what_was_measured() -> None:
    assert record.PAGE.read_text() == "\n".join(record.write_page()) + "\n"
    assert all(goal.say() for goal in record.GOALS)
