"""The benchmark for GPUs runs; what it measures here, on a CPU and on small models, is no speed."""

from __future__ import annotations

import pytest

from benchmarks import gpu
from benchmarks.gpu import PARTS, SMALL, Record


def test_every_part_but_that_of_several_processes_gives_its_figures() -> None:
    record = Record("gpu", baseline="plain")
    for name, part in PARTS.items():
        if name != "together":
            part(record, SMALL)
    forms = {figure.form for figure in record.figures}
    assert forms >= {"plain", "int2", "nf3", "published form", "clip search", "GPTQ"}
    assert all(value > 0 for figure in record.figures for value in figure.values)


def test_it_is_refused_where_there_is_no_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--small runs the same code on a CPU" in capsys.readouterr().err
