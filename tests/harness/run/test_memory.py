"""How many GPUs a stage needs, what a run holds, and the table of the command."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import harness.evaluation.memory
import harness.run.runner
from harness.cli.main import main
from harness.core.stage import Stage
from harness.core.store import Store
from harness.evaluation.perplexity import Perplexity
from harness.grid import expand as grids
from harness.models import (
    Model,
    Pretrained,
    pretrained,
)
from harness.models.dry_run import Memory, estimate_memory
from harness.run import plan as plans
from harness.run.compute import Values
from harness.run.memory import count_gpus, fits, table
from methods.training.data import Generate
from methods.training.memory import of_training
from methods.training.settings import Training
from tests.support.memory import (
    WIDE,
    build_training,
)


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Pretrained:
    return pretrained(str(tiny_folder), "bfloat16")


def test_count_gpus(base: Pretrained) -> None:
    training = build_training(base, Training(micro_batch=1, batch_size=64), length=8)
    alone, eight = of_training(training, 1), of_training(training, 8)
    assert count_gpus(training, 3 + 1.1 * alone.total / 2**30) == 1
    assert count_gpus(training, 3 + 1.01 * eight.total / 2**30) == 8
    assert count_gpus(training, 3 + alone.total / 2**40) is None
    generation = Generate(base, None, 8, 32)
    assert estimate_memory(generation, 2) == estimate_memory(generation)
    assert count_gpus(generation, 2**-20) is None


@pytest.mark.parametrize(("gib", "free"), [(24, 3), (80, 8), (141, 14.1)])
def test_what_is_left_free_of_a_device(gib: float, free: float) -> None:
    assert fits(Memory(parameters=int((gib - free - 0.01) * 2**30)), gib)
    assert not fits(Memory(parameters=int((gib - free + 0.01) * 2**30)), gib)


def test_no_latent_weights_are_at_hand_while_a_model_is_scored(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the base, in a grid that needs it no more; whether trained in this run or before it."""
    file, store = tmp_path / "grid.yaml", Store(tmp_path / "store")
    settings = {
        "format.group_size": 32, "init": "none", "data": "ground-truth", "data.text": "testbed",
        "data.length": 32, "data.sequences": 8, "train.steps": 1, "train.batch_size": 4,
        "objective": "kl",
    }  # fmt: skip
    content = {"model": str(tiny_folder), "dtype": "bfloat16", "method": "bitdistiller"}
    content |= {"defaults": settings, "evaluate": [{"testbed-ppl": {"limit": 1, "window": 32}}]}
    file.write_text("# What is held?\n" + yaml.safe_dump(content))
    seen: list[list[Model]] = []

    class Seeing(Values):
        def release(self, stage: Stage[Any]) -> None:
            if isinstance(stage, Perplexity):
                seen.append([held for held in self.held.values() if isinstance(held, Model)])
            super().release(stage)

    monkeypatch.setattr(harness.run.runner, "Values", Seeing)
    grid = grids.load(file)
    for _ in range(2):
        assert harness.run.runner.run(plans.build(grid), store, Quiet()).failed == []
        shutil.rmtree(store.path(grid.cells[0].scores[0].key))
    assert [[(m.latent, m.network.dtype) for m in each] for each in seen] == [
        [(False, torch.bfloat16)]
    ] * 2


class Quiet:
    def begin(self, key: str) -> None: ...
    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None: ...
    def end(self, key: str, state: str, words: str) -> None: ...
    def waiting(self, owners: list[str]) -> None: ...


def test_the_table_collapses_equal_stages(base: Pretrained) -> None:
    rates = [build_training(base, replace(WIDE, lr=rate)) for rate in (1e-3, 1e-4, 1e-5)]
    printed = table([*rates, build_training(base, length=32)], [24, 141])
    assert printed.count("train") == 2 and "train ×3" in printed
    assert "10% and at least 3 GiB free" in printed.splitlines()[-1]
    assert max(map(len, printed.splitlines())) <= 100


def test_plan_prints_the_memory(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"# How much?\nmodel: {tiny_folder}\ndtype: bfloat16\nmethod: bitdistiller\n"
        "vary: {train.lr: [1e-4, 1e-5]}\ncompare: [rtn]\n"
        "defaults: {format.group_size: 64, init.text: testbed, init.length: 64,\n"
        "           data.text: testbed, data.length: 64}\n"
        "evaluate: [{testbed-ppl: {window: 64}}]\n"
    )
    asked = ["plan", str(grid), "--store", str(tmp_path / "store"), "--memory"]
    assert main([*asked, "--gpu-gib", "24,0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "parameters" in line)
    assert head.split()[-4:] == ["total", "host", "24", "0.001"]
    for kind in ("clip-search", "generate", "confidence", "train ×2", "perplexity ×3"):
        row = next(line for line in lines if line.startswith(kind))
        assert row.split()[-2:] == ["1", "–"], row
    with pytest.raises(SystemExit):
        main([*asked, "--gpu-gib", "-1"])
