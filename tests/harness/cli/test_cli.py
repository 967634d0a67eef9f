"""The command, as a user meets it: end to end on the testbed, one-line errors, exit codes."""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import harness
import reports
from harness.cli.main import VERBS, main, make_parser
from harness.cli.verb import Verb
from harness.core.records import ITEM_KEY
from tests.support.forked import ForkedPopen, run_forked

ROOT = Path(__file__).parents[3]

WILD = {"train.lr": 10, "train.weight_decay": 10, "train.steps": 30}  # NaN within some steps


def _bitgrid(
    *words: str | Path, cwd: Path = ROOT, code: int = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "harness.cli", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, **options
    )
    assert done.returncode == code, done.stderr
    return done


def _forked(
    *words: str | Path, cwd: Path = ROOT, code: int = 0, **options: Any
) -> subprocess.CompletedProcess[str]:
    """In a fork, since imports take longest; what it plans is not for others: see `run_forked`."""
    done = run_forked([*map(str, words)], cwd, **options)
    assert done.returncode == code, done.stderr
    return done


def _facts(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    return dict(re.split("  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines()[1:])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a wide grid in a reduced form."""
    folder = tmp_path_factory.mktemp("place")
    grid = yaml.safe_load((ROOT / "tests/support/wide_grid.yaml").read_text())
    grid["model"] = "testbed-small"
    grid["vary"] = {"format.bits": [2]}
    grid["defaults"] |= {
        "train.steps": 2,
        "data.sequences": 16,
        "data.length": 64,
        "init.sequences": 8,
    }
    kept = ("testbed-ppl", "testbed_knowledge", "testbed_arithmetic", "testbed_code")
    grid["evaluate"] = [{name: {"limit": 4}} for name in kept]
    grid["report"] = {"average": ["testbed_knowledge"]}
    (folder / "quick.yaml").write_text("# Does it run?\n" + yaml.safe_dump(grid))
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> subprocess.CompletedProcess[str]:
    return _bitgrid("run", "quick.yaml", cwd=place)


def test_a_reduced_grid_runs_end_to_end(
    place: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    rows = [json.loads(line) for line in (place / "runs/quick/rows.jsonl").open()]
    assert {row["label"] for row in rows} == {"BF16", "RTN", "AWQ-clip", "LLM-QAT", "BitDistiller"}
    assert sum(row["primary"] for row in rows) == 5 * 4
    assert all(row["caveat"] and row["n"] > 0 and row["stale"] is None for row in rows)
    by_label = {row["label"]: row["value"] for row in rows if row["task"] == "testbed-ppl"}
    assert by_label["BF16"] < by_label["BitDistiller"]
    assert by_label["BF16"] * 1.5 < by_label["RTN"]
    items = reports.load_items(place / "runs/quick").groupby(list(ITEM_KEY))["score"]
    for row in rows:
        mean = items.get_group(tuple(row[name] for name in ITEM_KEY)).mean()
        value = math.exp(mean) if row["aggregation"] == "exp_mean" else mean
        assert value == pytest.approx(row["value"])
    for row in rows:
        assert row["bits"] == (16 if row["label"] == "BF16" else 2)
    for label in by_label:
        assert label in finished.stdout
    for name in ("report.md", "table.md", "table.tex", "table.csv"):
        assert (place / "runs/quick" / name).stat().st_size > 0
        assert name in finished.stdout
    assert {path.name for path in place.iterdir()} == {"quick.yaml", "runs", ".bitgrid"}
    pictures = {path.suffix for path in (place / "runs/quick/plots").iterdir()}
    assert pictures == {".png", ".pdf"}
    curves = [json.loads(line) for line in (place / "runs/quick/curves.jsonl").open()]
    assert sorted((c["label"], c["step"]) for c in curves) == [
        (label, step) for label in ("BitDistiller", "LLM-QAT") for step in (1, 2)
    ]


def test_a_second_run_computes_nothing_and_is_quick(
    place: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    before = (place / "runs/quick/rows.jsonl").read_bytes()
    again = _bitgrid("run", "quick.yaml", cwd=place)
    assert "done already" in again.stderr
    assert again.stdout == finished.stdout
    assert (place / "runs/quick/rows.jsonl").read_bytes() == before


def test_status_report_and_plan_of_a_finished_grid(
    place: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    status = _bitgrid("status", "quick.yaml", cwd=place).stdout
    assert "5 cells, 5 models" in status
    assert "queued" not in status
    assert _facts(_bitgrid("plan", "quick.yaml", cwd=place))["stages to compute"] == "0"
    latex = _forked("report", "quick.yaml", "--format", "latex", cwd=place).stdout
    assert "\\toprule" in latex
    assert "index.html" not in _forked("report", place / "runs/quick", cwd=place).stdout
    assert "index.html" in _forked("report", "quick.yaml", "--html", cwd=place).stdout
    page = (place / "runs/quick/index.html").read_text()
    assert "bitgrid run quick.yaml" in page
    assert "export the grid again" not in page  # every number leads to its model's revision


def test_a_table_is_written_to_a_file(
    place: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    for form, start in (("latex", "% needs"), ("html", "<table"), ("markdown", "| Bits")):
        _forked("report", "quick.yaml", "--format", form, "--out", f"table.{form}", cwd=place)
        assert (place / f"table.{form}").read_text().startswith(start)
    nowhere = ["report", "quick.yaml", "--format", "csv", "--out", "no/table.csv"]
    words = _forked(*nowhere, cwd=place, code=2).stderr
    assert words == "bitgrid: no/table.csv: cannot be written: No such file or directory\n"


def test_rows_are_published_and_rendered_elsewhere(
    place: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    folder = tmp_path / "results/quick"
    _forked("publish", "quick.yaml", "--to", tmp_path / "results", cwd=place)
    report = (folder / "report.md").read_text()
    pictures = set(re.findall(r"plots/\w+\.png", report))
    records = {"grid.json", "rows.jsonl", "items.jsonl.gz", "curves.jsonl", "provenance.jsonl"}
    published = _files(folder)
    assert {path.relative_to(folder).as_posix() for path in published} == {
        "report.md",
        *records,
        *pictures,
    }
    for path, data in published.items():
        assert (place / "runs/quick" / path.relative_to(folder)).read_bytes() == data

    shown = _forked("report", "results/quick", "--html", cwd=tmp_path).stdout
    assert "runs/results/quick/index.html" in shown
    assert (tmp_path / "runs/results/quick/rows.jsonl").is_file()  # which the page links to
    _forked("report", "results/quick", "--format", "csv", "--out", "table.csv", cwd=tmp_path)
    assert (tmp_path / "table.csv").is_file()
    _forked("report", folder, "--out", "elsewhere", cwd=tmp_path)
    assert (tmp_path / "elsewhere/table.tex").is_file()
    assert _files(folder) == published

    _forked("publish", "results/quick", cwd=tmp_path)  # as after a change of what reports say
    assert _files(folder) == published
    (folder / "diagnostics.jsonl").write_text("")  # of an earlier state of the grid
    (folder / "plots/errors.png").write_bytes(b"")
    (folder / "remarks.txt").write_text("mine")
    _forked("publish", "quick.yaml", "--to", tmp_path / "results", cwd=place)
    assert _files(folder) == published | {folder / "remarks.txt": b"mine"}
    message = _forked("publish", tmp_path / "results", cwd=tmp_path, code=2).stderr
    assert "results has no rows.jsonl: it is not the folder of an exported grid" in message


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_published_figures_alone(tmp_path: Path) -> None:
    file = ROOT / "harness/published/bitdistiller-2402.10631.csv"
    table = _forked("report", file).stdout
    assert "3453" in table
    assert _forked("report", file.stem, cwd=tmp_path).stdout == table  # by name, from anywhere
    words = _forked("report", "bitdistiler-2402.10631", code=2, cwd=tmp_path).stderr
    assert "did you mean 'bitdistiller-2402.10631'" in words
    assert _forked("report", file, "--format", "latex").stdout.count(r"\toprule") == 3
    good = file.read_text()
    head, first, *_ = good.splitlines()
    for text, words in (
        (
            good.replace("num_fewshot", "num_fewshots", 1),
            "column 'num_fewshots' is unknown; did you",
        ),
        (good.replace(",value", "", 1), "column 'value' is missing"),
        (f"{head},value\n", "column 'value' is there twice"),
        (f"{head}\n{first.replace('5.47', 'five')}\n", "bad.csv:2: value 'five' is no number"),
        (f"{head}\n{first},1\n", "bad.csv:2: not 11 fields"),
        (f"{head}\n", "there is no published figure to show"),
    ):
        (tmp_path / "bad.csv").write_text(text)
        stderr = _forked("report", tmp_path / "bad.csv", code=2).stderr
        assert words in stderr and stderr.count("\n") == 1


def test_gc_keeps_what_a_grid_needs(
    place: Path, finished: subprocess.CompletedProcess[str]
) -> None:
    assert "0 entries" in _forked("gc", cwd=place).stdout
    extra = place / ".bitgrid/values/unknown"
    extra.mkdir()
    (extra / "manifest.json").write_text("{}")
    assert "values/unknown" in _forked("gc", cwd=place).stdout
    assert extra.exists()
    _forked("gc", "--yes", cwd=place)
    assert not extra.exists()
    assert _facts(_bitgrid("plan", "quick.yaml", cwd=place))["stages to compute"] == "0"


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_help_explains_each_argument_and_has_an_example_that_is_understood(
    verb: Verb, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb.name, "--help"])
    shown = capsys.readouterr().out
    assert verb.help in " ".join(shown.split())
    assert shown.split("example:\n")[1].strip() == verb.example
    command, *words = shlex.split(verb.example)
    assert command == "bitgrid" and words[0] == verb.name
    assert make_parser().parse_args(words).verb is verb
    parser = argparse.ArgumentParser()
    verb.add_arguments(parser)
    assert all(action.help for action in parser._actions)


def test_help_lists_every_verb_and_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(f"{verb.name} {verb.help}" in shown for verb in VERBS)
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"bitgrid {harness.__version__}\n"


def test_status_without_torch(place: Path, finished: subprocess.CompletedProcess[str]) -> None:
    """The remembered plan serves: nothing heavy is imported to read rows, or to launch."""
    (place / "here.yaml").write_text("cluster: local\n")
    code = (
        "import sys; from harness.cli.main import main; main(['status', 'quick.yaml']);"
        "main(['launch', 'quick.yaml', '--cluster', 'here.yaml']);"
        "assert not {'torch', 'transformers', 'lm_eval', 'pandas'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=place, env=environment, check=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run", "zzz/qqq"), "zzz/qqq: there is no such file\n"),
        (("run", "experiments/quickstrt.yaml"), "did you mean 'experiments/quickstart.yaml'?"),
        (
            ("run", "experiments/quickstart.yaml", "--store", "/nowhere", "--device", "cudda"),
            "device 'cudda' is not there",
        ),
        (("methods", "bitdistil"), "did you mean 'bitdistiller'?"),
        (("status", "README.md"), "README.md:"),
        (("report", "tests"), "tests"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words: tuple[str, ...], message: str) -> None:
    done = _forked(*words, code=2)
    assert done.stderr.startswith("bitgrid: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert message in done.stderr


def _without_roots_privilege() -> None:
    """Has permissions of files hold for root too, in a fork."""
    version, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(version, none) == 0


def test_a_store_that_can_only_be_read(
    place: Path, finished: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    shutil.copytree(place / ".bitgrid", tmp_path / "kept")
    shutil.copy(place / "quick.yaml", tmp_path)
    # A claim of another host, whose age the file system's clock tells where it can be asked.
    (tmp_path / "kept/claims").mkdir(exist_ok=True)
    owner = {"host": "other", "place": "elsewhere", "pid": 1, "started": 0.0}
    (tmp_path / "kept/claims/launch.0").write_text(json.dumps(owner))
    for path in [tmp_path / "kept", *(tmp_path / "kept").rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)

    def bitgrid(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        whole = (*words, "--store", "kept")
        return _forked(*whole, cwd=tmp_path, code=code, before=_without_roots_privilege)

    assert "done" in bitgrid("status", "quick.yaml").stdout
    assert _facts(bitgrid("plan", "quick.yaml"))["stages to compute"] == "0"
    assert "BitDistiller" in bitgrid("report", "quick.yaml").stdout
    assert "to remove" in bitgrid("gc").stdout
    for verb in ("run", "launch"):
        more = tmp_path / "quick.yaml"
        more.write_text(more.read_text().replace("limit: 4", "limit: 3"))
        done = bitgrid(verb, "quick.yaml", code=2)
        assert re.fullmatch(r"bitgrid: the store .*/kept cannot be written: .*\n", done.stderr)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_computed(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for words, problem in (
        (("--store", "file"), "read"),
        (("--store", "file/store"), "read"),
        (("--store", "/proc/store"), "written"),
        (("--store", "new", "--out", "file/out"), "written"),
    ):
        command = ("run", place / "quick.yaml", *words)
        said = _forked(*command, cwd=tmp_path, code=2).stderr
        assert re.fullmatch(rf"bitgrid: [^\n]*{words[-1]} cannot be {problem}: [^\n]*\n", said)
    assert not list((tmp_path / "new/values").glob("*"))
    said = _forked("status", place / "quick.yaml", "--store", "file", cwd=tmp_path, code=2).stderr
    assert said.endswith("/file cannot be read: Not a directory\n")


def test_ctrl_c_says_that_nothing_is_lost_and_the_next_run_goes_on(place: Path) -> None:
    command = [sys.executable, "-m", "harness.cli", "run", "quick.yaml", "--store", "stopped"]
    child = ForkedPopen(
        [*command, "--out", "stopped-out"],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((place / "stopped/values").glob("*/manifest.json")):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "finished stages are kept" in said
    assert "Traceback" not in said
    kept = {path.parent.name for path in (place / "stopped/values").glob("*/manifest.json")}
    status = _forked("status", "quick.yaml", "--store", "stopped", cwd=place).stdout
    assert "done" in status
    assert "running" not in status
    assert kept


def test_a_failing_cell_exits_1_and_shows_the_hole(place: Path, tmp_path: Path) -> None:
    text = (place / "quick.yaml").read_text()
    grid = yaml.safe_load(text)
    grid |= {"compare": ["rtn"], "evaluate": [{"testbed-ppl": {"limit": 2}}], "report": {}}
    grid["defaults"] |= WILD
    (tmp_path / "nan.yaml").write_text(
        "# Does a failing cell stand alone?\n" + yaml.safe_dump(grid)
    )
    done = _forked("run", "nan.yaml", cwd=tmp_path, code=1)
    assert "RTN" in done.stdout
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: train")]
    assert len(failed) == 1
    assert "step" in failed[0]
    report = (tmp_path / "runs/nan/report.md").read_text()
    assert "BitDistiller" in report


def test_where_every_cell_fails_the_failures_are_listed(place: Path, tmp_path: Path) -> None:
    grid = yaml.safe_load((place / "quick.yaml").read_text())
    grid |= {"compare": [], "evaluate": [{"testbed-ppl": {"limit": 2}}], "report": {}}
    grid["defaults"] |= WILD
    (tmp_path / "nan.yaml").write_text("# Does nothing work?\n" + yaml.safe_dump(grid))
    for _ in range(2):  # and of a failure that stands
        done = _forked("run", "nan.yaml", cwd=tmp_path, code=1)
        assert "Traceback" not in done.stderr
        assert [line for line in done.stderr.splitlines() if line.startswith("failed: train")]
