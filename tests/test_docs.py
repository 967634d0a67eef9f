"""What docs/ tells of grids and data is what the code knows: every key, data set and variable."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from pydantic.fields import FieldInfo

from harness.config.document import Document
from harness.config.settings import list_settings
from harness.core.report_options import ReportOptions
from harness.data.file_texts import SUFFIXES
from harness.data.hub_texts import HUB
from harness.data.sources import SPLITS
from harness.evaluation.divergence import PREFIX
from harness.evaluation.evaluations import EVALUATIONS
from harness.evaluation.lm_eval import FEWSHOT
from harness.evaluation.lm_eval_options import LmEvalCodeOptions
from harness.evaluation.perplexity import PerplexityOptions, PerplexityTask
from harness.evaluation.task_files import Task, find_splits
from harness.evaluation.weights import WeightsOptions
from harness.grid.schema import GridFile, Published
from harness.method import METHODS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


def _table(page: str, first: str) -> list[list[str]]:
    """The lines of the table whose first column is called `first`, a list of cells each."""
    lines = (DOCS / page).read_text().splitlines()
    found = [i for i, line in enumerate(lines) if line.startswith(f"| {first} |")]
    assert len(found) == 1, (page, first)
    rows = []
    for line in lines[found[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def _section(page: str, title: str) -> list[list[str]]:
    """The lines of the first table under a heading."""
    text = (DOCS / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    table = re.search(r"(?:^\|.*\n)+", f"{text}\n", re.MULTILINE)
    assert table, title
    lines = [line for line in table[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def _keys(known: type) -> dict[str, FieldInfo]:
    """The keys of a pydantic model or of a dataclass, with their defaults."""
    if issubclass(known, pydantic.BaseModel):
        return known.model_fields
    return {
        each.name: FieldInfo(
            default=each.default
            if each.default_factory is dataclasses.MISSING
            else each.default_factory()
        )
        for each in dataclasses.fields(known)
    }


@pytest.mark.parametrize(
    ("title", "known", "more"),
    [
        ("Keys", GridFile, {"base"}),
        ("`report`", ReportOptions, set()),
        ("`published`", Published, set()),
    ],
)
def test_every_key_of_a_grid_is_told_with_its_default(
    title: str, known: type, more: set[str]
) -> None:
    rows = {_names(row[0])[0]: row for row in _section("grids.md", title)}
    keys = _keys(known)
    assert set(rows) == {*keys, *more}
    for key, field in keys.items():
        told = rows[key][2]
        if field.is_required():
            assert told == "required", key
            continue
        default: Any = field.default
        if isinstance(default, ReportOptions):
            default = {} if default == ReportOptions() else default
        assert yaml.safe_load(_names(told)[0]) == default, key


def test_every_option_of_a_task_is_told() -> None:
    told = {_names(row[0])[0] for row in _section("grids.md", "Options of a task")}
    kinds = (LmEvalCodeOptions, PerplexityOptions)
    assert told == {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert [field.name for field in dataclasses.fields(WeightsOptions)] == ["layer"]


def test_every_variable_that_is_read_is_told() -> None:
    told = {_names(row[0])[0] for row in _section("grids.md", "Environment")}
    read = {
        name
        for folder in ("harness", "methods", "reports")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"\bBITGRID_[A-Z_]+\b", path.read_text())
    }
    assert {name for name in told if name.startswith("BITGRID_")} == read


def test_every_text_is_told_with_its_address_columns_and_protocols() -> None:
    rows = _table("data.md", "text")
    assert sorted(name for row in rows for name in _names(row[0])) == sorted(HUB)
    for names, path, config, splits, columns, protocols in rows:
        source = HUB[_names(names)[0]]
        assert all(HUB[name] == source for name in _names(names))
        assert _names(path) == [source.path]
        assert (_names(config) or [None]) == [source.config]
        told = dict(
            zip(SPLITS, (part.strip().strip("`") for part in splits.split(",")), strict=True)
        )
        assert {ours: theirs for ours, theirs in told.items() if theirs != "none"} == source.splits
        assert tuple(_names(columns)) == source.columns
        perplexities = [e for e in EVALUATIONS.load().values() if isinstance(e, PerplexityTask)]
        taken = [each.name for each in perplexities if each.protocol.text in _names(names)]
        assert _names(protocols) == taken


def test_the_kinds_of_a_users_file_are_told() -> None:
    told = [name for row in _table("own-data.md", "ends with") for name in _names(row[0])]
    assert sorted(told) == sorted(SUFFIXES)


@pytest.mark.parametrize("row", _table("data.md", "task"), ids=lambda row: row[0].strip("`"))
def test_what_a_task_reads_is_told(row: list[str]) -> None:
    task, path, config, splits, _ = row
    (read,) = {find_splits(Task(name), FEWSHOT.get(name)) for name in _names(task)}
    assert {split.path for split in read} == {*_names(path)}
    assert list(dict.fromkeys(split.split for split in read)) == _names(splits)
    configs = {split.config for split in read}
    if len(configs) > 1:
        assert f"of {len(configs)} " in config
    else:
        assert (_names(config) or [None]) == [*configs]


def test_the_tasks_of_the_committed_grids_are_told() -> None:
    used = set()
    for path in (ROOT / "experiments").glob("*.yaml"):
        for item in Document(path, merged=("defaults", "report")).data["evaluate"]:
            used |= {item} if isinstance(item, str) else set(item)
    told = {name for row in _table("data.md", "task") for name in _names(row[0])}
    of_text = {name for name in used if name.removeprefix(PREFIX) in EVALUATIONS.load()}
    assert told == used - of_text


def _slug(title: str) -> str:
    """The anchor of a heading: what GitHub and the site make of it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_every_link_leads_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?://)(.*?)\)", (DOCS / page).read_text()):
        file, _, heading = target.partition("#")
        if file.startswith("reference/"):  # pages that are made of the code
            continue
        path = DOCS / (file or page)
        assert path.exists(), target
        titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE) if heading else []
        assert not heading or heading in map(_slug, titles), target


def test_the_keys_that_set_bitdistiller_apart_have_the_defaults_that_are_told() -> None:
    """Each row says a key, another component, or why there is none."""
    held = dict(list_settings(METHODS.find("bitdistiller").method))
    for *_, last in _table("published.md", "what"):
        told = re.findall(r"`([a-z_]+\.[a-z_]+): ([^`]+)`", last)
        assert told or last.startswith(("none: ", "`format: "))
        for key, default in told:
            is_number = default[0].isdigit() or default in ("true", "null")
            assert held[key] == (json.loads(default) if is_number else default), key
