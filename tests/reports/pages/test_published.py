"""A paper's tables alone, digit for digit, and beside what was measured."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import reports
from harness.core.errors import ReportError
from reports.pages.latex import write_latex
from reports.pages.published import Theirs, compare, make_comparison, make_sheets
from reports.pages.sheet import Sheet, html, markdown, plain
from reports.reading.export import Export
from tests.support.synthetic_grids import ppl, row, summary_of, write

FILE = Path(__file__).parents[3] / "harness/published/bitdistiller-2402.10631.csv"
LINES = list(csv.DictReader(FILE.read_text().splitlines()))
GENERAL = ("wikitext2", "mmlu", "piqa", "hellaswag", "winogrande", "arc_challenge", "average")
# Written out here once more, so that a slip in the file does not pass unseen.
PRINTED = {
    ("LLaMA-2-7B", "2", "RTN"): "3453 24.12 53.43 26.33 49.96 21.58 35.08",
    ("LLaMA-2-7B", "2", "GPTQ"): "NaN 23.12 49.51 25.04 49.57 22.69 33.99",
    ("LLaMA-2-7B", "2", "BitDistiller"): "8.08 29.25 73.61 48.70 61.09 33.27 49.18",
    ("LLaMA-2-13B", "2", "AWQ"): "1.2e5 27.04 53.16 25.82 51.70 23.04 36.15",
}


def lines_of(found: Sheet) -> dict[tuple[str, str], list[str]]:
    return {(r[0].text, r[1].text): [cell.text for cell in r[3:]] for r in found.rows}


def test_three_tables_with_every_printed_digit() -> None:
    seven, thirteen, reasoning = make_sheets(LINES)
    shown = []
    for model, found in (("LLaMA-2-7B", seven), ("LLaMA-2-13B", thirteen)):
        assert found.head[3:] == (
            *("WikiText-2 ↓", "MMLU ↑", "PIQA ↑", "HellaSwag ↑", "WinoGrande ↑", "ARC-c ↑"),
            "Average ↑",
        )
        assert [len(group) for group in found.groups] == [1, 6, 6]
        for (bits, method), values in lines_of(found).items():
            shown += [(model, bits, method, t, v) for t, v in zip(GENERAL, values, strict=True)]
    models = [re.sub(r" (HumanEval|GSM8K) ↑", "", title) for title in reasoning.head[3:]]
    assert models[0] == "WizardCoder-3B" and len(models) == 7
    for (bits, method), values in lines_of(reasoning).items():
        for model, value in zip(models, values, strict=True):
            task = "gsm8k" if model.startswith("MetaMath") else "humaneval"
            shown.append((model, bits, method, task, value))
    keys = ("model", "bits", "method", "task", "value")
    assert sorted(shown) == sorted(tuple(line[key] for key in keys) for line in LINES)
    assert len(shown) == 273


@pytest.mark.parametrize(("place", "values"), PRINTED.items())
def test_rows_of_the_paper(place: tuple[str, str, str], values: str) -> None:
    model, bits, method = place
    (found,) = [each for each in make_sheets(LINES) if each.caption.startswith(f"{model},")]
    assert lines_of(found)[bits, method] == values.split()


def test_best_and_second_of_the_printed() -> None:
    seven = make_sheets(LINES)[0]
    best = {
        (r[0].text, seven.head[i]): r[1].text for r in seven.rows for i, c in enumerate(r) if c.best
    }
    assert best["2", "WikiText-2 ↓"] == "BitDistiller" and best["3", "PIQA ↑"] == "OmniQuant"
    second = {(r[0].text, r[1].text) for r in seven.rows if r[-1].second}
    assert second == {("3", "LLM-QAT"), ("2", "LLM-QAT")}
    assert not any(cell.best or cell.second for cell in seven.groups[0][0])


def test_every_form_has_the_digits() -> None:
    values = {line["value"] for line in LINES}
    for form in ("text", "markdown", "latex", "html", "csv"):
        words = reports.as_printed(LINES, form).replace(r" \times 10^{5}", "e5")
        assert values <= set(re.findall(r"NaN|\d[\d.e]*", words)), form
    records = list(csv.reader(io.StringIO(reports.as_printed(LINES[:91], "csv"))))
    assert [dict(zip(records[0], line, strict=True)) for line in records[1:]] == LINES[:91]
    page = ElementTree.fromstring(f"<div>{reports.as_printed(LINES, 'html')}</div>")
    assert len(list(page.iter("table"))) == 3
    with pytest.raises(ReportError, match="no published figure"):
        reports.as_printed([])


LLAMA = {"model": "meta-llama/Llama-2-7b-hf", "caveat": None, "limit": None, "n": 1000}


def measured(label: str = "RTN", bits: int = 2, **change: Any) -> list[dict[str, Any]]:
    common = {**LLAMA, "label": label, "bits": bits, **change}
    made = [ppl(**{"window": 2048, **common}, task="wikitext2", value=3400.0)]
    made.append(row(**{"num_fewshot": 5, **common}, task="mmlu", value=0.2412))
    for task, value in (("piqa", 0.54), ("hellaswag", 0.2633), ("winogrande", 0.5)):
        made.append(row(**{**common, "num_fewshot": 0}, task=task, value=value))
    made.append(row(**{**common, "num_fewshot": 0}, task="arc_challenge", value=0.2158))
    return made


def compared(folder: Path, rows: list[dict[str, Any]], **grid: Any) -> dict[str, Theirs]:
    folder = write(folder, rows, **{"published": LINES, **grid})
    summary = summary_of(folder)
    found = compare(summary, Export(folder).rows)
    return {summary.columns[c].task or "average": theirs for (_, c), theirs in found.items()}


def test_ours_theirs_and_the_difference(tmp_path: Path) -> None:
    found = compared(tmp_path, measured(), tolerance={"": 0.1, "ppl": 100, "winogrande": 0.01})
    assert found["wikitext2"] == Theirs("3453", pytest.approx(-53.0), near=True)
    assert found["mmlu"] == Theirs("24.12", pytest.approx(0.0), near=True)
    assert found["piqa"] == Theirs("53.43", pytest.approx(0.57), near=False)
    assert found["winogrande"] == Theirs("49.96", pytest.approx(0.04), near=False)
    ours = (24.12 + 54 + 26.33 + 50 + 21.58) / 5
    assert found["average"] == Theirs("35.08", pytest.approx(ours - 35.08), near=False)
    summary = summary_of(tmp_path)
    shown = make_comparison(summary, compare(summary, Export(tmp_path).rows))
    assert shown is not None
    (line,) = shown.rows
    assert [f"{c.text} {c.after}" for c in line[2:4]] == [
        "3400 / 3453 (−53)",
        "24.12 / 24.12 (0.00)",
    ]
    assert "✓ within the stated tolerance (0.1, ppl 100, winogrande 0.01" in shown.caption


def test_without_a_tolerance_nothing_is_coloured(tmp_path: Path) -> None:
    found = compared(tmp_path, measured())
    assert {theirs.near for theirs in found.values()} == {None}
    assert found["piqa"].difference is not None


@pytest.mark.parametrize(
    ("change", "task", "why"),
    [
        ({"group_size": 64}, "piqa", "group size 64, theirs 128"),
        ({"limit": 100}, "piqa", "only 100 items were scored"),
        ({"num_fewshot": 0}, "mmlu", "0 few-shot examples, theirs 5"),
        ({"num_fewshot": 0}, "average", "0 few-shot examples, theirs 5"),
        ({"window": 4096}, "wikitext2", "window 4096, theirs 2048"),
        ({"window": None}, "wikitext2", "window not recorded, theirs 2048"),
    ],
)
def test_another_quantity_is_not_subtracted(
    tmp_path: Path, change: dict[str, Any], task: str, why: str
) -> None:
    found = compared(tmp_path, measured(**change), tolerance={"": 99})
    assert (found[task].why, found[task].difference, found[task].near) == (why, None, None)


def test_an_average_of_other_tasks_is_not_subtracted(tmp_path: Path) -> None:
    found = compared(tmp_path, measured(), report={"average": ["piqa", "mmlu"]})
    assert found["average"].why is not None and found["average"].why.startswith(
        "theirs is over ARC-c"
    )
    assert found["piqa"].difference is not None


def test_figures_of_exports_before_they_had_a_window_are_subtracted(tmp_path: Path) -> None:
    old = [{k: v for k, v in line.items() if k != "window"} for line in LINES]
    assert (
        compared(tmp_path, measured(window=None), published=old)["wikitext2"].difference is not None
    )


CODE = {"model": "WizardLM/WizardCoder-Python-7B-V1.0", "caveat": None, "label": "BitDistiller"}


def code(folder: Path, **grid: Any) -> dict[str, Theirs]:
    """HumanEval in the wording of its instruct variant, which no paper prints under that name."""
    rows = [row(**CODE, task="humaneval_instruct", metric="pass@1", value=0.36, bits=2)]
    printed = [line for line in LINES if line["model"] == "WizardCoder-7B"]
    return compared(folder, rows, published=printed, published_model="WizardCoder-7B", **grid)


def test_a_task_that_stands_for_another_is_subtracted_with_a_remark(tmp_path: Path) -> None:
    alias = {"humaneval_instruct": {"task": "humaneval", "why": "another prompt"}}
    found = code(tmp_path, published_tasks=alias, tolerance={"pass@1": 1})
    remark = "humaneval_instruct for humaneval: another prompt"
    assert found["humaneval_instruct"] == Theirs("36.59", pytest.approx(-0.59), True, remark=remark)
    reports.render(tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "/ 36.59 (−0.59) ✓ <sup>a</sup>" in page
    assert "<sup>a</sup> humaneval\\_instruct for humaneval: another prompt" in page


def test_figures_that_nothing_was_measured_of_are_said_to_be(tmp_path: Path) -> None:
    assert code(tmp_path) == {}
    reports.render(tmp_path, html=True)
    for name in ("report.md", "index.html"):
        words = (tmp_path / name).read_text().replace("\\", "")
        assert "None of these figures is of what was measured. Published: humaneval of" in words
        assert "measured: humaneval_instruct of" in words, name


def test_nan_is_not_subtracted(tmp_path: Path) -> None:
    assert compared(tmp_path, measured("GPTQ"))["wikitext2"] == Theirs("NaN")


def test_another_model_or_method(tmp_path: Path) -> None:
    other = {"model": "meta-llama/Llama-2-13b-hf"}
    assert compared(tmp_path, measured(**other))["piqa"].printed == "57.56"
    folder = tmp_path / "none"
    assert compared(folder, measured(model="testbed")) == {}
    reports.render(folder)
    page = (folder / "report.md").read_text()
    assert "None of these figures is of" in page and "Beside the published" not in page
    named = [line for line in LINES if line["model"] == "LLaMA-2-7B"]
    own = compared(
        tmp_path, measured(model="./my-llama"), published=named, published_model="LLaMA-2-7B"
    )
    assert own["piqa"].printed == "53.43"
    assert compared(tmp_path, measured("QuIP")) == {}


def test_the_report_has_both(tmp_path: Path) -> None:
    write(
        tmp_path, measured(group_size=64) + measured("BF16", 16, group_size=None), published=LINES
    )
    reports.render(tmp_path)
    for name in ("report.md", "table.md", "table.tex", "table.html"):
        text = (tmp_path / name).read_text()
        assert "not subtracted: group size 64, theirs 128" in text, name
    record = next(csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text())))
    assert record["piqa.acc.published"] == "77.86"
    assert float(record["piqa.acc.difference"]) == pytest.approx(54 - 77.86)


def beside(folder: Path) -> Sheet:
    summary = summary_of(folder)
    found = make_comparison(summary, compare(summary, Export(folder).rows))
    assert found is not None
    return found


SEVEN = [line for line in LINES if line["model"] == "LLaMA-2-7B"]


@pytest.mark.parametrize(
    ("ours", "same", "caption"),
    [
        ("meta-llama/Llama-2-7b-hf@main", True, ""),
        ("./LLaMA-2-7B", True, ""),
        ("meta-llama/Llama-2-7b-chat-hf", True, "Llama-2-7b-chat-hf is their LLaMA-2-7B is what"),
        ("meta-llama/Llama-2-13b-hf", False, "ours of meta-llama/Llama-2-13b-hf: nothing is"),
        ("testbed", False, "Theirs are of LLaMA-2-7B, ours of testbed: nothing is subtracted."),
        ("mistralai/Mistral-7B-v0.1", False, "nothing is subtracted"),
    ],
)
def test_a_stated_model_is_checked_against_the_grids(
    tmp_path: Path, ours: str, same: bool, caption: str
) -> None:
    stated = {"published": SEVEN, "published_model": "LLaMA-2-7B", "model": ours}
    found = compared(tmp_path, measured(model=ours), tolerance={"": 99}, **stated)
    assert found["piqa"].printed == "53.43" and found["average"].printed == "35.08"
    for task in ("piqa", "average"):
        assert (found[task].difference is not None) == same, task
        assert (found[task].near is not None) == same, task
    assert caption in beside(tmp_path).caption
    reports.render(tmp_path, html=True)
    for name in ("report.md", "index.html"):
        text = (tmp_path / name).read_text()
        assert ("published figures of another model, LLaMA-2-7B" in text) == (not same), name


def test_items_are_counted_and_not_read_off_the_limit(tmp_path: Path) -> None:
    """Two of each of MMLU's 57 subjects are 114."""
    rows = measured(limit=2, n=2)
    rows[1] |= {"n": 114, "aggregation": "macro_mean"}
    found = compared(tmp_path, rows)
    assert found["mmlu"].why == "only 114 items were scored (limit 2)"
    assert found["piqa"].why == "only 2 items were scored"
    unknown = [each | {"n": None} for each in rows]
    assert compared(tmp_path / "u", unknown)["mmlu"].why == "only 2 items were scored"


@pytest.mark.parametrize("label", ["FP32", "FP16", "BF16", "The model itself"])
def test_a_reference_is_matched_by_being_one(tmp_path: Path, label: str) -> None:
    rows = measured(label, 16, group_size=None, bits_per_weight=16.0) + measured()
    found = compare(
        summary_of(folder := write(tmp_path, rows, published=LINES)), Export(folder).rows
    )
    summary = summary_of(folder)
    assert summary.rows[0].label == label
    piqa = [column.task for column in summary.columns].index("piqa")
    first = found[0, piqa]
    assert (first.printed, first.difference) == ("77.86", pytest.approx(54 - 77.86))
    assert first.remark == (None if label == "BF16" else f"ours is {label}, theirs BF16")


def test_a_reference_of_fewer_bits_is_not_theirs(tmp_path: Path) -> None:
    rows = measured("Q4_1 (as published)", 16, group_size=None, bits_per_weight=5.0)
    found = compared(tmp_path, rows)
    assert found["piqa"].printed == "77.86" and found["piqa"].difference is None
    assert found["piqa"].why == "ours was published in 5.00 bits a weight, theirs is 16-bit"


def test_what_has_no_partner_says_why(tmp_path: Path) -> None:
    rows = [*measured(), *measured("QuIP"), *measured(bits=4)]
    rows += [row(**LLAMA, label=label, task="boolq", value=0.5) for label in ("RTN", "QuIP")]
    write(tmp_path, rows, published=SEVEN)
    sheet = beside(tmp_path)
    notes = dict(sheet.notes)
    at = {(r[0].text, r[1].text): r for r in sheet.rows}

    def told(cell: Any) -> list[str]:
        return [notes[mark] for mark in cell.marks]

    assert told(at["2", "QuIP"][1]) == ["no published figure of this method"]
    assert told(at["4", "RTN"][1]) == ["published at 3, 2 bits only"]
    boolq = next(i for i, title in enumerate(sheet.head) if title.startswith("BoolQ"))
    assert told(at["2", "RTN"][boolq]) == ["no published figure of this method and task"]
    assert told(at["2", "QuIP"][boolq]) == []  # the row says it
    assert "Printed and not measured here: BF16, GPTQ, AWQ, OmniQuant, " in sheet.caption
    for text in (markdown(sheet), html(sheet), write_latex(sheet), plain(sheet, 100)):
        assert "no published figure of this method" in text


def test_more_notes_than_letters_have_marks_of_their_own(tmp_path: Path) -> None:
    rows = [row(**LLAMA, label="RTN", group_size=size, task="piqa") for size in range(1, 30)]
    rows = [{**r, "settings": {"size": n}, "cell": f"c{n}"} for n, r in enumerate(rows)]
    write(tmp_path, rows, published=SEVEN)
    marks = [mark for mark, _ in beside(tmp_path).notes]
    assert len(marks) == len(set(marks)) == 29 and marks[26] == "aa"


def test_less_is_better_where_a_figure_has_a_window() -> None:
    lines = [
        {**SEVEN[0], "method": m, "bits": "2", "metric": "bits_per_byte", "value": v}
        for m, v in (("A", "0.9"), ("B", "1.1"))
    ]
    (sheet,) = make_sheets(lines)
    assert sheet.head[-1].endswith("↓")
    assert [r[-1].best for r in sheet.rows] == [True, False]
