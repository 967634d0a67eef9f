"""The rendered folder: what is in it, that it is stable, and that nothing is done twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import reports
from tests.support.synthetic_grids import TASKS, ppl, quickstart, row, write

ROOT = Path(__file__).parents[3]
PLOTS = ("score_vs_bits", "perplexity", "perplexity_differences", "slopes", "training_loss")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = quickstart(tmp_path_factory.mktemp("grid"))
    reports.render(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def python(code: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_everything_is_written(rendered: Path) -> None:
    plots = [f"plots/{name}.{suffix}" for name in PLOTS for suffix in ("png", "pdf")]
    expected = [
        "report.md",
        "table.md",
        "table.tex",
        "table.html",
        "table.csv",
        "table.txt",
        *plots,
    ]
    assert [str(path.relative_to(rendered)) for path in reports.render(rendered)] == expected
    inputs = ["grid.json", "rows.jsonl", "curves.jsonl", ".rendered.json"]
    assert sorted(files(rendered)) == sorted(expected + inputs)


def test_pictures_are_whole(rendered: Path) -> None:
    for path in (rendered / "plots").glob("*.png"):
        data = path.read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert 700 < width < 1600
        assert 300 < height < 1600
        assert b"Software" not in data
    for path in (rendered / "plots").glob("*.pdf"):
        assert path.read_bytes().startswith(b"%PDF")
        assert b"CreationDate" not in path.read_bytes()


def test_the_page_says_what_is_needed(rendered: Path) -> None:
    page = (rendered / "report.md").read_text()
    for part in (
        "# quickstart",
        "Which method keeps the most",
        "> **Testbed rows: an invented miniature world",
        (rendered / "table.md").read_text().rstrip(),
        "| Knowledge | testbed\\_knowledge | acc | 5 | no | 200 | – | multiple choice | 1 |",
        "| GPTQ | 2 bits | 0 | failed: NaN at step 12 in layer model.layers.3 |",
        "BitDistiller, 2 bits, testbed\\_arithmetic exact\\_match, seed 2: methods/training/",
    ):
        assert part in page
    for name in PLOTS:
        assert f"(plots/{name}.png)" in page


def test_equal_input_gives_equal_bytes_in_another_process(rendered: Path, tmp_path: Path) -> None:
    for name in ("grid.json", "rows.jsonl", "curves.jsonl"):
        shutil.copy(rendered / name, tmp_path / name)
    code = "import sys, reports; reports.render(sys.argv[1])"
    python(code, tmp_path, PYTHONHASHSEED="12345", TZ="Asia/Tokyo")
    assert files(tmp_path) == files(rendered)


def test_a_second_run_does_nothing_and_loads_nothing(rendered: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in rendered.rglob("*")}
    code = """
import sys, time
import reports
start = time.process_time()
reports.render(sys.argv[1])
print(time.process_time() - start)
print(sorted({"pandas", "matplotlib", "numpy", "torch", "seaborn"} & set(sys.modules)))
"""
    took, heavy = python(code, rendered).splitlines()
    assert float(took) < 0.2
    assert heavy == "[]"
    assert {path: path.stat().st_mtime_ns for path in rendered.rglob("*")} == before


def test_import_and_text_are_light(rendered: Path) -> None:
    code = """
import sys
import reports
print(sorted({"pandas", "matplotlib", "numpy", "torch"} & set(sys.modules)))
reports.text(sys.argv[1])
print(sorted({"pandas", "matplotlib", "torch", "lm_eval", "seaborn"} & set(sys.modules)))
reports.text(sys.argv[1], 80)
print(sorted({"matplotlib", "torch", "lm_eval", "seaborn"} & set(sys.modules)))
print(sorted(name for name in sys.modules if name.startswith(("harness", "methods"))))
"""
    names = ("errors", "lineage", "model_names", "record_lines", "records", "report_options")
    core = ("", *(f".{name}" for name in (*names, "secrets")))
    assert python(code, rendered).splitlines() == [
        "[]",
        "[]",
        "[]",
        str(["harness", *(f"harness.core{name}" for name in core)]),
    ]


def test_a_change_is_rendered_and_what_is_gone_is_removed(tmp_path: Path) -> None:
    curve = {
        "cell": "c",
        "label": "RTN",
        "settings": {},
        "seed": 0,
        "bits": 2,
        "step": 1,
        "loss": 1.0,
    }
    folder = write(tmp_path, [row(cell="c")], [curve])
    reports.render(folder)
    assert (folder / "plots/training_loss.png").exists()
    assert not (folder / "plots/perplexity.png").exists()
    write(folder, [row(cell="c", value=0.75)], [])
    reports.render(folder)
    assert not (folder / "plots/training_loss.png").exists()
    assert "75.0" in (folder / "table.md").read_text()
    (folder / "table.md").write_text("by hand")
    reports.render(folder)
    assert "75.0" in (folder / "table.md").read_text()
    (folder / ".rendered.json").write_text("[")
    assert folder / "table.md" in reports.render(folder)


@pytest.mark.filterwarnings("error")
def test_odd_grids_can_be_drawn(tmp_path: Path) -> None:
    nothing_finite = write(tmp_path / "a", [ppl(value=float("nan")), row(value=float("nan"))])
    assert "report.md" in files(nothing_finite) or reports.render(nothing_finite)
    reference = write(tmp_path / "b", [row(label="BF16", bits=16), ppl(bits=16, value=5.0)])
    reports.render(reference)
    assert not (reference / "plots").exists()
    rows = [
        row(label="M", settings={"objective": f"long objective name {i}"}, bits=bits, value=i / 20)
        for i in range(12)
        for bits in (2, 3, 4)
    ]
    reports.render(write(tmp_path / "c", rows + [ppl(**_identity(r), value=9.0) for r in rows]))
    unknown = {"cell": "new", "label": "Z", "settings": {}, "seed": None, "bits": 2, "loss": None}
    curves = [{**unknown, "step": 1}, {**unknown, "step": 2, "loss": -0.5}]
    reports.render(write(tmp_path / "d", [row(task=task) for task in TASKS], curves))
    assert (tmp_path / "d/plots/training_loss.pdf").exists()


def _identity(given: dict[str, object]) -> dict[str, object]:
    return {key: given[key] for key in ("label", "settings", "bits", "seed")}


def test_dollar_signs_in_names_are_no_mathematics(tmp_path: Path) -> None:
    name = "$^{b$ and $\\frac$"
    reports.render(write(tmp_path, [row(label=name), ppl(label=name, value=9e6)]))
    assert json.loads((tmp_path / ".rendered.json").read_text())["files"]


def test_published_figures_stand_below_as_printed(tmp_path: Path) -> None:
    from harness.grid import published as figures

    file = figures.find("bitdistiller-2402.10631", "LLaMA-2-7B")
    lines = figures.figures(file, "LLaMA-2-7B")
    folder = write(tmp_path / "g", [ppl(value=9.0)], published=lines, report={"note": "In-domain."})
    reports.render(folder)
    page = (folder / "report.md").read_text()
    below = page.partition("## As published")[2]
    assert "LLaMA-2-7B, as printed in BitDistiller arXiv 2402.10631" in below
    assert "| 16 | BF16 | – | 5.47 | 46.45 | 77.86 | 57.14 | 68.35 | 43.34 | 58.63 |" in below
    printed = {line["value"] for line in lines}
    assert printed <= set(re.split(r"[| *]+|</?u>", below))
    assert "Note: In-domain." in page
    assert "In-domain." in (folder / "table.tex").read_text()
