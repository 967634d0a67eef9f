"""Several grids on one page: each by itself, and what of them compares."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.core.errors import ReportError
from harness.core.records import PROTOCOL
from reports import render_together
from reports.numbers.summary import summarise
from reports.pages.comparable import make_sheet
from reports.pages.page import PROTOCOL_TITLES
from reports.reading.export import Export
from tests.support.synthetic_grids import TASKS, ppl, quickstart, row, write

OTHER = {
    "bos": True,
    "chat_template": True,
    "n": 7,
    "num_fewshot": 3,
    "limit": 5,
    "protocol": "generated",
    "tokenizer": "another",
    "task_version": "2",
    "lm_eval": "0.5",
}


def with_revision(folder: Path, digest: str, source: str = "testbed") -> Path:
    stage = {"class": "harness.models.Pretrained", "source": source, "digest": digest}
    line = {"schema": 2, "key": "published", "stage": stage}
    (folder / "provenance.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def lines_of(*folders: Path) -> list[list[str]]:
    exports = [Export(folder) for folder in folders]
    sheet = make_sheet([(each.grid.name, each, summarise(each)) for each in exports])
    return [[cell.text for cell in line] for line in sheet.rows]


def test_numbers_measured_alike_share_a_line(tmp_path: Path) -> None:
    a, b = (
        with_revision(write(tmp_path / name, [row(), ppl(value=3.0)], name=name), "d1")
        for name in "ab"
    )
    assert lines_of(a, b) == [
        ["testbed-ppl ppl", "a, b", "all alike"],
        [f"{TASKS[0]} acc", "a, b", "all alike"],
    ]


@pytest.mark.parametrize("field", PROTOCOL)
def test_each_field_of_a_protocol_keeps_numbers_apart(tmp_path: Path, field: str) -> None:
    given: dict[str, Any] = {field: OTHER[field]}
    a = with_revision(write(tmp_path / "a", [row()], name="a"), "d1")
    b = with_revision(write(tmp_path / "b", [row(**given)], name="b"), "d1")
    found = lines_of(a, b)
    assert [line[1] for line in found] == ["a", "b"]
    assert all(line[2].startswith(f"{PROTOCOL_TITLES[field]}: ") for line in found)
    assert all(";" not in line[2] for line in found)


def test_models_of_other_or_unknown_revisions_do_not_compare(tmp_path: Path) -> None:
    a, b = (with_revision(write(tmp_path / n, [row()], name=n), f"of-{n}") for n in "ab")
    c, d = (write(tmp_path / n, [row()], name=n) for n in "cd")
    assert [line[1:] for line in lines_of(a, b, c, d)] == [
        ["a", "Model: testbed (of-a)"],
        ["b", "Model: testbed (of-b)"],
        ["c", "Model: testbed (of c, revision not recorded)"],
        ["d", "Model: testbed (of d, revision not recorded)"],
    ]


def test_grids_of_other_tasks_do_not_compare_at_all(tmp_path: Path) -> None:
    a = write(tmp_path / "a", [row()], name="a")
    b = write(tmp_path / "b", [ppl(value=3.0)], name="b")
    exports = [Export(each) for each in (a, b)]
    sheet = make_sheet([(each.grid.name, each, summarise(each)) for each in exports])
    assert sheet.rows == [] and "no numbers compare" in sheet.caption


class Places(HTMLParser):
    """The ids of a page and what refers to them; the addresses of its pictures and links."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.named: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            elif name in ("aria-labelledby", "data-table"):
                self.named.append(str(value))
            elif name in ("href", "src"):
                own = str(value).startswith("#")
                (self.named if own else self.sources).append(str(value).removeprefix("#"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two grids of one name: the second with other methods and a hostile title."""
    first = quickstart(tmp_path_factory.mktemp("first"), seeds=2)
    rows = [row(label="Only here", value=0.5), ppl(label="Only here", value=3.0)]
    report = {"title": "<script>alert(1)</script>", "note": "A note of its own."}
    folder = tmp_path_factory.mktemp("second")
    return [first, write(folder, rows, name="quickstart", report=report)]


def test_a_page_of_several_grids_is_one_file_without_collisions(
    folders: list[Path], tmp_path: Path
) -> None:
    text = render_together(folders, tmp_path / "page.html").read_text(encoding="utf-8")
    places = Places(text)
    assert len(places.ids) == len(set(places.ids))
    assert set(places.named) <= set(places.ids)
    assert all(each.startswith("data:") for each in places.sources)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    first, second = re.findall(r'<article data-grid="([^"]*)"', text)
    assert [first, second] == ["quickstart-", "quickstart-2-"]
    parts = text.split("<article ")[1:]
    assert "Only here" not in parts[0] and "Only here" in parts[1]
    assert "A note of its own." in parts[1] and "BitDistiller" not in parts[1].split("</main>")[0]
    assert "<script>alert" not in text
    held = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert held is not None
    one, other = json.loads(held[1])["grids"]
    assert [len(one["rows"]), len(other["rows"])] == [
        len((each / "rows.jsonl").read_text().splitlines()) for each in folders
    ]
    assert list(one["charts"]) == ["training_loss"] and other["charts"] == {}


def test_the_command_writes_one_page_and_refuses_the_rest(
    folders: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = list(map(str, folders))
    assert main(["report", *names, "--html"]) == 0
    assert capsys.readouterr().out == "runs/grids.html\n"
    assert (tmp_path / "runs/grids.html").is_file()
    refused = {
        (*names,): "give --html",
        (*names, "--html", "--format", "csv"): "no --format",
        (*names, "--html", "--out", "."): "is a folder",
        (names[0], "none", "--html"): "there is no such file",
        (names[0], "bitdistiller-2402.10631", "--html"): "there is no such file",
    }
    for words, why in refused.items():
        assert main(["report", *words]) == 2
        assert why in capsys.readouterr().err
    with pytest.raises(ReportError, match="named twice"):
        render_together([folders[0], folders[0]], "page.html")
