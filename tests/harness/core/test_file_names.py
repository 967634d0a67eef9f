"""What files, folders and jobs are called by is a name, and leads nowhere else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli.main import main
from harness.cluster.launches import ids_in
from harness.core.errors import GridError, ReportError
from harness.core.paths import check_file_name
from harness.grid.expand import load
from tests.support.hostile_texts import hostile
from tests.support.synthetic_grids import row, write

WRONG = ["", ".", "..", "-rf", "a/b", "../a", "/a", "a\0", "a\nb", "a\x1b[31m", "\u202ea", "\ud800"]


@pytest.mark.parametrize("name", WRONG)
def test_what_leads_elsewhere_is_refused(name: str) -> None:
    with pytest.raises(ReportError, match="nothing can be called so"):
        check_file_name(name, ReportError)


@given(st.one_of(hostile, st.text()))
def test_a_name_that_is_taken_is_one_entry_of_its_folder(name: str) -> None:
    try:
        check_file_name(name, ReportError)
    except ReportError:
        return
    path = Path("/store/launches") / name
    assert path.parent == Path("/store/launches") and path.name == name
    assert not name.startswith("-") and len(name.splitlines()) == 1


@pytest.mark.parametrize("name", ["...yaml", "-x.yaml", "a\nb.yaml"])
def test_a_grid_s_name_is_one(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("model: testbed\nmethod: bf16\nevaluate: [testbed-ppl]\n")
    with pytest.raises(GridError, match="nothing can be called so; rename the file"):
        load(tmp_path / name)


def test_what_is_published_stays_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "runs" / "other", [row()])
    head = json.loads((folder / "grid.json").read_text())
    (folder / "grid.json").write_text(json.dumps({**head, "name": "../../evil"}))
    assert main(["publish", str(folder), "--to", str(tmp_path / "a" / "results")]) == 2
    assert "'../../evil' has the character U+002F" in capsys.readouterr().err
    assert not (tmp_path / "evil").exists() and not (tmp_path / "a").exists()


def test_a_job_of_others_names_no_folder() -> None:
    names = ["g:20261123-061917-ab12:0", "a:b:20261123-061917-cd34:1", "x:../../evil:0", "x", "a:b"]
    assert ids_in((name, 0) for name in names) == {"20261123-061917-ab12", "20261123-061917-cd34"}
