"""What a grid's seed moves, what `seeds` moves alone, and what keeps its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.core.errors import GridError
from harness.core.stage import closure
from harness.data.tokens import Sampled
from harness.evaluation.perplexity import Perplexity
from harness.grid.expand import Cell, Grid, load
from methods.quantization.rotation import Rotated
from methods.quantization.rounding import RoundBlocks
from methods.training.data import Generate
from methods.training.train import Train

GRID = """\
# What is drawn?
model: {model}
dtype: float32
method: {name: bitdistiller, init: [hadamard, clip]}
compare:
  - rtn
  - {name: gptq, rounding.text: testbed}
  - {name: signround, rounding.seed: 5, rounding.text: testbed}
  - bf16
seed: [0, 1]
defaults:
  format.group_size: 32
  format.bits: 3
  init.text: testbed
  rounding.length: 16
  data.text: testbed
  data.length: 64
  train.steps: 1
evaluate: [{testbed-ppl: {window: 64, limit: 2}}]
"""

Write = Callable[..., Grid]


@pytest.fixture
def write(tmp_path: Path, tiny_folder: Path) -> Write:
    def written(text: str = GRID, **files: str) -> Grid:
        for name, each in {"grid": text, **files}.items():
            path = tmp_path / f"{name}.yaml"
            path.write_text(each.replace("{model}", str(tiny_folder)))
        return load(tmp_path / "grid.yaml")

    return written


def _list_drawn(cell: Cell) -> dict[str, set[int]]:
    """Seeds by the kind of what they draw."""
    seeds: dict[str, set[int]] = {}
    for stage in closure([cell.model]):
        own: Any = stage.rounding if isinstance(stage, RoundBlocks) else stage
        if isinstance(stage, Train | Generate | Rotated | Sampled | RoundBlocks):
            seeds.setdefault(stage.kind, set()).update({own.seed} if hasattr(own, "seed") else ())
    return seeds


def _by_label(grid: Grid) -> dict[str, list[Cell]]:
    cells: dict[str, list[Cell]] = {}
    for cell in grid.cells:
        cells.setdefault(cell.label, []).append(cell)
    return cells


def test_a_seed_moves_all_that_is_random_and_nothing_else(write: Write) -> None:
    cells = _by_label(grid := write())
    assert grid.varies == "all"
    first, second = map(_list_drawn, cells["BitDistiller"])
    assert first == {"train": {0}, "generate": {0}, "rotated": {0}}
    assert second == {"train": {1}, "generate": {1}, "rotated": {1}, "sampled": {1}}
    assert [_list_drawn(cell) for cell in cells["SignRound"]] == [
        {"round-blocks": {5}},
        {"round-blocks": {6}, "sampled": {1}},
    ]
    same = {label: len({c.model.key for c in each}) == 1 for label, each in cells.items()}
    own = {"BitDistiller": False, "RTN": True, "GPTQ": False, "SignRound": False, "FP32": True}
    assert same == own


def test_seed_0_has_the_keys_of_a_graph_that_nobody_moved(write: Write) -> None:
    for cells in _by_label(write()).values():
        assert not any(isinstance(stage, Sampled) for stage in closure([cells[0].model]))
    alone = {cell.label: cell.model.key for cell in write(GRID.replace("[0, 1]", "0")).cells}
    assert alone == {label: cells[0].model.key for label, cells in _by_label(write()).items()}


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        ("order", {"train"}),
        ("data", {"generate"}),
        ("calibration", {"rotated", "sampled"}),
    ],
)
def test_one_kind_varies_alone(write: Write, kind: str, moved: set[str]) -> None:
    grid = write(GRID.replace("seed: [0, 1]", f"seeds: {{{kind}: [0, 1]}}"))
    first, second = _by_label(grid)["BitDistiller"]
    assert grid.varies == kind and (first.seed, second.seed) == (0, 1)
    before, after = _list_drawn(first), _list_drawn(second)
    assert {name for name in after if before.get(name) != after[name]} == moved
    cells = _by_label(grid)["SignRound"]
    assert (cells[0].model.key == cells[1].model.key) == (kind != "calibration")


def test_the_others_stay_at_what_they_are_said_to_be(write: Write) -> None:
    grid = write(GRID.replace("seed: [0, 1]", "seeds: {order: [3, 4], data: 7}"))
    drawn = [_list_drawn(cell) for cell in _by_label(grid)["BitDistiller"]]
    assert [(each["train"], each["generate"], each["rotated"]) for each in drawn] == [
        ({3}, {7}, {0}),
        ({4}, {7}, {0}),
    ]


def test_figures_are_of_the_models_that_are_scored(write: Write) -> None:
    text = GRID.replace("seed: [0, 1]", "seed: 2\ndiagnose: [weights]")
    cell = write(text).cells[0]
    assert cell.model.key in {stage.key for stage in closure([*cell.diagnostics])}


def test_a_trial_is_the_model_of_its_seed(write: Write) -> None:
    tune = "tune: {train.lr: [1e-4, 2e-4], on: {text: testbed, cut: packed, skip: 40, window: 32}}"
    text = GRID.replace("seed: [0, 1]", f"seed: 2\n{tune}")
    path = write(text).path
    grid = load(path, look=lambda score: 1.0)
    chosen = [c for c in grid.cells if c.label == "BitDistiller"]
    assert len({c.model.key for c in chosen}) == 2  # of two trials the first is the row's too
    assert [c.tuning for c in grid.cells if c.label == "SignRound"] == [None]
    assert all(isinstance(score, Perplexity) for c in chosen for score in c.scores)


def test_a_grid_says_over_its_base_how_seeds_vary(write: Write) -> None:
    for base, own, varies in (
        ("seed: [0, 1]", "seeds: {order: [0, 1]}", "order"),
        ("seeds: {order: [0, 1]}", "seed: [4, 5]", "all"),
        ("seeds: {order: [0, 1]}", "vary: {seed: [4, 5]}", "all"),
    ):
        top = GRID.replace("seed: [0, 1]", base)
        assert write(f"# Own?\nbase: top.yaml\n{own}\n", top=top).varies == varies


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ("seeds: {order: [0, 1], data: [0, 1]}", "seeds: 'order' and 'data' are both lists"),
        ("seeds: {order: []}", "seeds.order has no values"),
        ("seeds: {ordre: [0]}", "order"),
        ("seed: 1\nseeds: {order: [0, 1]}", "seeds: 'seed' says all of them already"),
        ("vary: {seed: [1]}\nseeds: {order: [0, 1]}", "seeds: 'seed' says all of them already"),
    ],
)
def test_what_contradicts_itself_is_refused(write: Write, seeds: str, message: str) -> None:
    with pytest.raises(GridError, match=r"^[^\n]*$") as error:
        write(GRID.replace("seed: [0, 1]", seeds))
    assert message in str(error.value)


@pytest.mark.parametrize("documents", [["one text alone"], ["first", "", "the second", "3rd"]])
def test_a_sample_is_the_text_from_a_drawn_place_on(documents: list[str], tmp_path: Path) -> None:
    held: Any = documents
    whole, found = "".join(documents), set()
    for seed in range(1, 9):
        parts = Sampled(held, seed).run(tmp_path)
        text = "".join(parts)
        assert len(text) == len(whole) and text in whole + whole
        assert len([each for each in documents if each not in parts]) <= 1  # the one that is cut
        found.add(text)
    assert len(found) > 3
