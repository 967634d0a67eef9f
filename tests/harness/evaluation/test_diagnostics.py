"""Diagnostics: what they count against plain computations, and how a grid asks for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.core.errors import GridError
from harness.core.stage import closure
from harness.core.store import Store
from harness.evaluation.weights import Weights, group_levels, histogram, middle
from harness.grid.expand import Grid, load
from harness.models import Quantized, matrices
from harness.run import export as rows
from harness.run.compute import Values, compute
from harness.run.plan import build
from harness.run.states import needed
from methods.quantization.formats import NF, IntAsym, IntSym
from methods.quantization.rounding import Round
from methods.training.contribution import BINS, Contribution

GRID = """\
# What is inside?
model: {model}
dtype: float32
method: bitdistiller
compare: [bf16, rtn, awq-clip, awq]
seed: [3, 4]
defaults:
  format.group_size: 32
  init.text: testbed
  init.sequences: 8
  init.length: 64
  data: ground-truth
  data.text: testbed
  data.sequences: 16
  data.length: 48
  train.steps: 2
  train.batch_size: 4
  train.micro_batch: 4
  train.dtype: float32
evaluate: [{testbed-ppl: {limit: 1, window: 64}}]
diagnose: [weights, confidence]
"""


@pytest.fixture
def write(tmp_path: Path, tiny_folder: Path):  # type: ignore[no-untyped-def]
    def written(old: str = "", new: str = "") -> Grid:
        path = tmp_path / "grid.yaml"
        text = GRID.replace("{model}", str(tiny_folder))
        assert old in text
        path.write_text(text.replace(old, new) if old else text)
        return load(path)

    return written


def test_levels_of_a_group_are_numbered_from_zero() -> None:
    weight = torch.tensor(
        [
            [-0.5, 0.0, 0.5, 1.0] * 2,  # zero is its second level
            [-1.0, -0.5, 0.0, 0.5] * 2,  # and here its third
            [0.0, 0.0, 0.5, 0.5] * 2,  # does not use all: left out
        ]
    )
    found = {each["place"]: each for each in group_levels(weight, 4)}
    assert {place: each["share"] for place, each in found.items()} == {
        -2: 0.5,
        -1: 1,
        0: 1,
        1: 1,
        2: 0.5,
    }
    assert found[-1]["quartiles"] == [-0.5, -0.5, -0.5]
    assert found[2]["quartiles"] == [1.0, 1.0, 1.0]
    no_zero = group_levels(torch.tensor([[-3.0, -1.0, 1.0, 3.0]]), 0)
    assert [(each["place"], each["quartiles"][1]) for each in no_zero] == [
        (-2, -3.0),
        (-1, -1.0),
        (1, 1.0),
        (2, 3.0),
    ]


@pytest.mark.parametrize("format", [IntAsym(2, 32), IntAsym(3, 32), IntSym(2, 32), NF(3, 32)])
def test_levels_of_real_formats(format: Any) -> None:
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    after = format.quantize(weight)
    found = group_levels(after, 32)
    distinct = [np.unique(group) for group in after.reshape(-1, 32).numpy()]
    full = [levels for levels in distinct if len(levels) == max(map(len, distinct))]
    above = [levels[levels > 0][0] for levels in full if (levels > 0).any()]
    first = next(each for each in found if each["place"] == 1)
    assert first["quartiles"] == pytest.approx(np.quantile(above, [0.25, 0.5, 0.75]), rel=1e-5)
    assert first["share"] == pytest.approx(len(above) / len(full))
    assert next(each for each in found if each["place"] == 0)["quartiles"] == [0, 0, 0]


def test_histograms_count_every_weight_once() -> None:
    weight = torch.randn(100, 200, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = 50.0
    found = histogram(weight, weight, Quantized("toy", 2, 8, 2.0))
    edges = np.linspace(found["low"], found["high"], len(found["counts"]) + 1)
    expected, _ = np.histogram(weight.numpy(), edges)
    assert np.abs(np.array(found["counts"]) - expected).max() <= 1  # a weight on an edge
    assert sum(found["counts"]) + found["outside"] == weight.numel()
    assert found["high"] < 5
    constant = histogram(torch.zeros(4, 4), torch.zeros(4, 4), None)
    assert (constant["counts"], constant["outside"], constant["levels"]) == ([], 16, [])


def test_the_layer_shown_is_the_last_of_the_middle_block() -> None:
    names = [f"model.layers.{i}.{part}" for i in range(11) for part in ("attn.q", "mlp.down")]
    assert middle(names) == "model.layers.5.mlp.down"


def test_the_first_seed_is_diagnosed_and_steps_are_shared(write: Any) -> None:
    grid = write()
    assert {cell.seed for cell in grid.cells if cell.diagnostics} == {3}
    steps = {
        cell.label: [s.step for s in cell.diagnostics if isinstance(s, Weights)]
        for cell in grid.cells
        if cell.seed == 3
    }
    assert steps == {
        "BitDistiller": ["full precision", "clip", "cakld"],
        "FP32": [],
        "RTN": ["full precision"],
        "AWQ-clip": ["full precision", "clip"],
        "AWQ": ["full precision", "awq"],
    }
    stages = {s.key for cell in grid.cells for s in cell.diagnostics if isinstance(s, Weights)}
    assert len(stages) == 4  # of the 8 above
    for cell in grid.cells:  # the last step is the model that is evaluated
        last = [s for s in cell.diagnostics if isinstance(s, Weights)][-1:]
        assert [s.after.key for s in last] == [cell.model.key] * len(last)
    plain = write("diagnose: [weights, confidence]\n", "")
    assert [cell.model.key for cell in plain.cells] == [cell.model.key for cell in grid.cells]


@pytest.mark.parametrize(
    ("diagnose", "words"),
    [
        ("[weight]", "no method here has the diagnostic 'weight'; did you mean 'weights'?"),
        (
            "[{weights: {layer: model.layers.0.mlp.up}}]",
            "did you mean 'model.layers.0.mlp.up_proj'",
        ),
        (
            "[{weights: {layers: x}}]",
            "diagnose.weights: key 'layers' is unknown; did you mean 'layer'?",
        ),
        ("[{confidence: {layer: x}}]", "diagnose.confidence: key 'layer' is unknown"),
        ("[weights, weights]", "diagnose: 'weights' is given twice"),
    ],
)
def test_errors_name_the_line_and_the_nearest_name(write: Any, diagnose: str, words: str) -> None:
    with pytest.raises(GridError) as caught:
        write("[weights, confidence]", diagnose)
    assert words in str(caught.value)
    assert "grid.yaml:21" in str(caught.value)


def test_what_is_exported_is_what_the_weights_say(write: Any, tmp_path: Path) -> None:
    grid = write("seed: [3, 4]", "seed: 3")
    store = Store(tmp_path / "store")
    plan, values = build(grid), Values(store)
    wanted = needed(plan, store)
    assert {key for cell in plan.cells for key in cell.diagnostics} <= set(wanted)
    for stage in closure([root for cell in grid.cells for root in cell.roots]):
        if stage.stored:
            values.held[stage.key] = compute(stage, values)
    rows.export(plan, store, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/diagnostics.jsonl").open()]
    assert len(lines) == 8 + 2
    awq = next(line for line in lines if line["label"] == "AWQ" and line["step"] == "awq")
    (stage,) = [
        s
        for cell in grid.cells
        for s in cell.diagnostics
        if isinstance(s, Weights) and s.key == awq["key"]
    ]
    origin, before, after = (
        matrices(values.of(part).network) for part in (stage.origin, stage.before, stage.after)
    )
    for line in awq["errors"]:
        w, b, a = (part[line["layer"]].weight.numpy() for part in (origin, before, after))
        assert line["error"] == pytest.approx(np.linalg.norm(a - w) / np.linalg.norm(w), rel=1e-4)
        assert line["rounding"] == pytest.approx(
            np.linalg.norm(a - b) / np.linalg.norm(b), rel=1e-4
        )
    assert {(line["block"], line["projection"]) for line in awq["errors"]} >= {
        (0, "self_attn.q_proj"),
        (1, "mlp.down_proj"),
    }
    assert (awq["bits"], awq["seed"], awq["histogram"]["layer"]) == (
        2,
        3,
        "model.layers.1.mlp.down_proj",
    )


def test_loss_by_confidence_adds_up_to_the_objective(write: Any, tmp_path: Path) -> None:
    grid = write("seed: [3, 4]", "seed: 3")
    stage = next(s for c in grid.cells for s in c.diagnostics if isinstance(s, Contribution))
    assert isinstance(stage.student, Round)
    values = Values(Store(tmp_path / "store"))
    for above in closure([stage])[:-1]:
        if above.stored:
            values.held[above.key] = compute(above, values)
    found = compute(stage, values)
    teacher, student = values.of(stage.teacher), values.of(stage.student)
    tokens = values.of(stage.tokens)
    gamma = values.of(stage.statistic)
    with torch.no_grad():
        guide = teacher.network(tokens.ids).logits
        loss = stage.objective.batch_loss(
            student.network(tokens.ids).logits, guide, tokens.ids, tokens.mask, gamma
        )
        labels = tokens.ids[:, 1:]
        sure = guide[:, :-1].softmax(-1).gather(-1, labels[..., None])[..., 0][tokens.mask[:, 1:]]
    assert sum(found["loss"]) == pytest.approx(float(loss), rel=1e-3)
    expected, _ = np.histogram(sure.numpy(), np.linspace(0, 1, BINS + 1))
    assert np.abs(np.array(found["tokens"]) - expected).sum() <= 2
    assert found["unbounded"] == 0
