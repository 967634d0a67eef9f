"""An exported grid: `grid.json` and the files of lines beside it, read when they are needed.

Not here: choosing, averaging and sorting (`reports.numbers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import pandas as pd

from harness.core.errors import ReportError
from harness.core.record_lines import from_json, from_text
from harness.core.records import (
    DIAGNOSTICS,
    PROTOCOL,
    CurvePoint,
    Diagnostic,
    GridHead,
    Row,
    RowItems,
    StageRecord,
)
from harness.core.report_options import rows_digest
from reports.reading.frames import make_frame
from reports.reading.items import ItemIndex, make_index
from reports.reading.lines import read_objects, read_records

Stages = dict[str, StageRecord]
"""Stage key -> its line of provenance.jsonl."""


class Export:
    """The files of one grid in `folder`.

    Every property raises ReportError for a file that is wrong.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    @cached_property
    def grid(self) -> GridHead:
        """What was asked, and what is not finished."""
        path = self.folder / "grid.json"
        if not path.exists():
            raise ReportError(f"{path} is missing: {self.folder} is not an exported grid")
        return from_text(GridHead, path.read_text(encoding="utf-8"), f"{path}")

    @cached_property
    def rows(self) -> pd.DataFrame:
        """One row a (cell, task, metric, filter), in the file's order: the fields of `Row`.

        Beside them `settings.<path>` for each varied setting, and `line` in the file.
        """
        path, lines = self.folder / "rows.jsonl", self._row_lines
        frame = make_frame(Row, [row for _, row in lines])
        frame["line"] = pd.Series([line for line, _ in lines], dtype="int64")
        _check_directions(path, frame)
        frame = _drop_repeats(path, frame)
        for name in dict.fromkeys(name for settings in frame["settings"] for name in settings):
            values = [settings.get(name) for settings in frame["settings"]]
            frame[f"settings.{name}"] = pd.Series(values, index=frame.index, dtype="object")
        return frame

    @cached_property
    def rows_digest(self) -> str:
        """What a finding about these rows names them by."""
        return rows_digest(vars(row) for _, row in self._row_lines)

    @cached_property
    def items(self) -> ItemIndex:
        """The items behind the rows; empty where none were exported."""
        path = self.folder / "items.jsonl.gz"
        lines = ((f"{path}:{number}", line) for number, line in read_records(path, RowItems))
        return make_index(lines, [row for _, row in self._row_lines])

    @cached_property
    def curves(self) -> pd.DataFrame:
        """One row a (trained model, step): the fields of `CurvePoint`."""
        path = self.folder / "curves.jsonl"
        return make_frame(CurvePoint, [point for _, point in read_records(path, CurvePoint)])

    @cached_property
    def diagnostics(self) -> list[Diagnostic]:
        """What `diagnose:` asked for, each as its record of `DIAGNOSTICS`."""
        return list(_read_diagnostics(self.folder / "diagnostics.jsonl"))

    @cached_property
    def stages(self) -> Stages:
        """The stages behind the rows; empty where the export has none."""
        path = self.folder / "provenance.jsonl"
        known = {each.name for each in fields(StageRecord)} | {"schema"}
        stages = {}
        for number, line in read_objects(path):
            more = {name: fact for name, fact in dict(line).items() if name not in known}
            record = from_json(StageRecord, {**line, "more": more}, f"{path}:{number}")
            stages[record.key] = record
        return stages

    @cached_property
    def _row_lines(self) -> list[tuple[int, Row]]:
        path = self.folder / "rows.jsonl"
        if not path.exists():
            raise ReportError(f"{path} is missing: nothing of this grid was exported yet")
        return list(read_records(path, Row))

    def error(self, file: str, message: str) -> ReportError:
        """An error that names one of the files."""
        return ReportError(f"{self.folder / file}: {message}")


def _read_diagnostics(path: Path) -> Iterator[Diagnostic]:
    for number, line in read_objects(path):
        where = f"{path}:{number}"
        common = from_json(Diagnostic, line, where)
        yield from_json(DIAGNOSTICS.get(common.diagnostic, Diagnostic), line, where)


def _check_directions(path: Path, frame: pd.DataFrame) -> None:
    directions = frame.groupby(["task", "metric"])["higher_is_better"].nunique()
    for task, metric in directions[directions > 1].index:
        raise ReportError(f"{path}: {task} {metric} is better higher in one row, lower in another")


def _drop_repeats(path: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """A row that is repeated counts once; two of one cell and metric that disagree are an error."""
    identity = ["cell", "task", "metric", "filter"]
    repeated = frame[frame.duplicated(identity, keep=False)]
    for (cell, task, metric, _), same in repeated.groupby(identity, sort=False):
        for name in ["value", *PROTOCOL, "model_key"]:
            if same[name].nunique(dropna=False) > 1:
                values = zip(same[name], same["line"], strict=True)
                raise ReportError(
                    f"{path}: cell {cell} has {task} {metric} twice with a different {name}: "
                    + ", ".join(f"{value} (line {line})" for value, line in values)
                )
    return frame.drop_duplicates(identity).reset_index(drop=True)
