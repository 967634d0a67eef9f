"""Device-hours of training: from the clock of the training and the devices that shared it."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from harness.core.records import DEVICE_HOURS, SCHEMA
from reports.numbers.model_columns import compute_device_hours, list_devices
from reports.pages.sheet import markdown
from reports.pages.table import make_sheet
from reports.reading.export import Export
from reports.rendering import render
from tests.support.synthetic_grids import drawn_of, ppl, row, summary_of, write


def trained(folder: Path, columns: list[str] | None, gpus: int = 8) -> Path:
    """RTN, and three trainings that took one, two and four hours before and after a restart."""
    cells = [ppl(bits=2, value=9.0), row(bits=2)]
    curves: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    for number, sequences in enumerate([256, 512, 1024]):
        common = {"label": "BitDistiller", "bits": 2, "settings": {"data.sequences": sequences}}
        cells += [ppl(**common, value=8.0 - number), row(**common, value=0.6 + number / 10)]
        key = cells[-1]["model_key"]
        who = {name: cells[-1][name] for name in ("cell", "label", "settings", "seed", "bits")}
        for step in (1, 2):
            tokens, seconds = step * sequences * 512, step * 1800 * 2**number
            curves.append({**who, "step": step, "tokens": tokens, "loss": 1.0, "seconds": seconds})
        training = {"class": "methods.training.train.Training", "gpus": gpus}
        above = {"class": "methods.training.train.Train", "training": training}
        device = {"wall_s": 5.0, "device": "cuda", "device_name": "NVIDIA H100"}
        stages.append({"schema": SCHEMA, "key": f"t{number}", "stage": above, **device})
        made = {"class": "methods.recipe.Round", "model": {"stage": f"t{number}"}}
        stages.append({"schema": SCHEMA, "key": key, "stage": made})
    write(folder, cells, curves, report={"columns": columns, "average": []})
    (folder / "provenance.jsonl").write_text("".join(json.dumps(s) + "\n" for s in stages))
    return folder


def test_time_by_devices_restarts_included(tmp_path: Path) -> None:
    folder = trained(tmp_path, None)
    assert sorted(compute_device_hours(Export(folder))) == [8, 16, 32]
    assert list_devices(Export(folder)) == ["NVIDIA H100"]
    (folder / "provenance.jsonl").unlink()
    assert compute_device_hours(Export(folder)).empty  # how many there were is unknown


def test_a_column_and_a_figure_where_asked_for(tmp_path: Path) -> None:
    folder = trained(tmp_path, [DEVICE_HOURS, "testbed-ppl", "testbed_knowledge"])
    found = make_sheet(summary_of(folder))
    assert found.head[:5] == ("Bits", "Method", "bpw", "Device-h", "PPL ↓")
    assert [line[3].text for line in found.rows] == ["–", "8.00", "16.00", "32.00"]
    assert "(NVIDIA H100)" in found.caption and "Device-h" in markdown(found)
    assert "score_vs_hours" in drawn_of(folder)
    render(folder)
    lines = list(csv.DictReader(io.StringIO((folder / "table.csv").read_text())))
    assert [line[DEVICE_HOURS] for line in lines] == ["", "8.0", "16.0", "32.0"]


def test_nothing_of_it_where_not(tmp_path: Path) -> None:
    folder = trained(tmp_path, None)
    assert "Device-h" not in make_sheet(summary_of(folder)).head
    assert "score_vs_hours" not in drawn_of(folder)


def test_a_training_of_unknown_length_has_none(tmp_path: Path) -> None:
    folder = trained(tmp_path, [DEVICE_HOURS, "testbed-ppl"])
    lines = (folder / "curves.jsonl").read_text().splitlines()
    old = [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    assert {line[3].text for line in make_sheet(summary_of(folder)).rows} == {"–"}


@pytest.mark.parametrize("gpus", [1, 4])
def test_devices_are_those_of_the_stage(tmp_path: Path, gpus: int) -> None:
    folder = trained(tmp_path, None, gpus)
    assert sorted(compute_device_hours(Export(folder))) == [gpus, 2 * gpus, 4 * gpus]
