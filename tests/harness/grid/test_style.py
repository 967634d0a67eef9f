"""`report.style`: the file is read with the grid, and what is wrong is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.cli.main import main
from harness.core.errors import GridError
from harness.grid.reading import read_grid
from harness.grid.style import read_style

GRID = "model: testbed\nmethod: rtn\nevaluate: [testbed-ppl]\nreport: {style: paper.mplstyle}\n"


def test_the_text_of_the_file_beside_the_grid_is_read(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    (tmp_path / "paper.mplstyle").write_text("font.family: serif\n")
    document, file = read_grid(tmp_path / "grid.yaml")
    assert read_style(document, file) == "font.family: serif\n"
    assert tmp_path / "paper.mplstyle" in document.files  # a plan rests on it
    (tmp_path / "none.yaml").write_text(GRID.replace("{style: paper.mplstyle}", "{}"))
    assert read_style(*read_grid(tmp_path / "none.yaml")) is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read: No such file"),
        (b"\xff\xfe", "is not text of at most 100 kB"),
        (b"#" * 100_001, "is not text of at most 100 kB"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    tmp_path: Path, content: bytes | None, words: str
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    if content is not None:
        (tmp_path / "paper.mplstyle").write_bytes(content)
    with pytest.raises(
        GridError, match=rf"grid.yaml:4: report.style: 'paper.mplstyle' {words}"
    ) as told:
        read_style(*read_grid(tmp_path / "grid.yaml"))
    assert "\n" not in str(told.value)


def test_a_setting_that_is_none_is_refused_before_anything_is_computed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "grid.yaml").write_text(GRID)
    (tmp_path / "paper.mplstyle").write_text("# for a paper\nfont.sise: 8\n")
    assert main(["run", str(tmp_path / "grid.yaml"), "--store", str(tmp_path / "store")]) == 2
    said = "report.style, line 2: 'font.sise' is no setting of a style; did you mean 'font.size'?"
    assert capsys.readouterr().err == f"bitgrid: {said}\n"
    assert not (tmp_path / "store" / "values").exists()
