"""Settings that are chosen by trials: which trials there are, which one wins, what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.core.errors import GridError
from harness.core.records import ALL_FAILED, WAITS
from harness.core.store import Store
from harness.evaluation.divergence import Divergence
from harness.evaluation.perplexity import Perplexity
from harness.grid.expand import Grid, load
from harness.grid.tuning import Look
from harness.run import remembering
from harness.run.plan import build
from methods.training.train import Train, _Loop

GRID = """\
# Is it tuned?
model: {model}
dtype: float32
method: bitdistiller
vary: {format.bits: [2, 3]}
compare: [rtn, bf16]
seed: [0, 1]
tune:
  train.lr: [1e-4, 4e-4, 1.6e-3]
  on: {text: testbed, cut: packed, window: 32, skip: 40, limit: 2}
defaults:
  format.group_size: 32
  init.text: testbed
  init.sequences: 2
  init.length: 16
  data: ground-truth
  data.text: testbed
  data.sequences: 4
  data.length: 16
  train.steps: 1
  train.batch_size: 2
  train.dtype: float32
evaluate: [{testbed-ppl: {window: 64, limit: 2}}]
"""

Write = Callable[..., Grid]


@pytest.fixture
def write(tmp_path: Path, tiny_folder: Path) -> Write:
    def written(text: str = GRID, look: Look = lambda score: None) -> Grid:
        path = tmp_path / "tuned.yaml"
        path.write_text(text.replace("{model}", str(tiny_folder)))
        return load(path, look=look)

    return written


def _rate(model: Any) -> float:
    """The learning rate that made a model; that of one which was not trained is NaN."""
    while model is not None and not isinstance(model, Train):
        model = getattr(model, "model", None)
    return math.nan if model is None else float(model.training.lr)


def test_trials_come_first_and_the_cells_that_need_none_are_there(write: Write) -> None:
    grid = write()
    trials = [cell for cell in grid.cells if cell.is_trial]
    assert [(c.axes["format.bits"], c.axes["train.lr"], c.seed) for c in trials] == [
        (bits, rate, 0) for bits in (2, 3) for rate in (1e-4, 4e-4, 1.6e-3)
    ]
    assert [_rate(c.model) for c in trials] == 2 * [1e-4, 4e-4, 1.6e-3]
    assert all(isinstance(c.scores[0], Perplexity) and c.scores[0].skip == 40 for c in trials)
    assert {c.label for c in grid.cells if not c.is_trial} == {"RTN", "FP32"}
    assert [(c.axes, c.seed, c.awaits) for c in grid.awaiting] == [
        ({"format.bits": bits}, seed, WAITS) for bits in (2, 3) for seed in (0, 1)
    ]


def test_the_least_score_wins_for_every_seed(write: Write) -> None:
    scores = {1e-4: 3.0, 4e-4: 2.0, 1.6e-3: 2.5}
    grid = write(look=lambda score: scores[_rate(score.model)])
    assert not grid.awaiting
    tuned = [c for c in grid.cells if c.label == "BitDistiller" and not c.is_trial]
    assert [(_rate(c.model), c.seed) for c in tuned] == [(4e-4, 0), (4e-4, 1)] * 2
    trials = {c.model.key for c in grid.cells if c.is_trial}
    assert [c.model.key in trials for c in tuned] == [True, False] * 2  # the first seed is there
    tuning = tuned[0].tuning
    assert tuning is not None and (tuning.trials, tuning.combinations, tuning.score) == (3, 3, 2.0)
    assert (tuning.chosen, tuning.at_end) == ({"train.lr": 4e-4}, [])
    assert tuning.on == "nll on testbed (heldout), 2 windows of 32 after the first 40"
    assert "train.lr" not in tuned[0].axes and "train.lr" not in tuned[0].id
    assert [c.tuning for c in grid.cells if c.label == "RTN"] == [None] * 4


def test_failed_trials_lose_and_ties_go_to_the_first(write: Write) -> None:
    scores = {1e-4: math.inf, 4e-4: 2.0, 1.6e-3: 2.0}
    grid = write(look=lambda score: scores[_rate(score.model)])
    tuning = next(c.tuning for c in grid.cells if c.tuning)
    assert (tuning.chosen, tuning.failed) == ({"train.lr": 4e-4}, 1)
    assert tuning.at_end == []
    grid = write(look=lambda score: math.inf)
    assert {c.awaits for c in grid.awaiting} == {ALL_FAILED}


def test_the_end_of_what_was_tried_is_said(write: Write) -> None:
    tuning = next(c.tuning for c in write(look=lambda s: -_rate(s.model)).cells if c.tuning)
    assert tuning.at_end == ["train.lr"]


def test_a_budget_gives_every_method_the_same_trials(write: Write) -> None:
    text = GRID.replace("  on:", "  train.warmup: [0, 1, 2]\n  budget: 4\n  on:")
    grid = write(text, look=lambda score: _rate(score.model))
    counts = {c.tuning.trials for c in grid.cells if c.tuning}
    assert counts == {4} and sum(c.is_trial for c in grid.cells) == 2 * 4
    assert next(c.tuning.combinations for c in grid.cells if c.tuning) == 9
    again = write(text, look=lambda score: _rate(score.model))
    assert [c.id for c in again.cells] == [c.id for c in grid.cells]


HALVED = GRID.replace("[2, 3]", "[2]").replace("train.steps: 1", "train.steps: 8")
HALVED = HALVED.replace("  on:", "  early: halving\n  on:", 1)


def _halve(write: Write, rates: list[float], look: Callable[[float, int | None], Any]) -> Grid:
    text = HALVED.replace("[1e-4, 4e-4, 1.6e-3]", str(rates))
    return write(text, look=lambda score: look(_rate(score.model), _until(score.model)))


def _until(model: Any) -> int | None:
    while not isinstance(model, Train):
        model = model.model
    return model.until


def _count_rungs(grid: Grid) -> list[tuple[int | None, str, float]]:
    return [
        (_until(c.model), c.axes.get("trained", "1"), c.axes["train.lr"])
        for c in grid.cells
        if c.is_trial
    ]


def test_the_worse_half_of_the_trials_ends_early(write: Write) -> None:
    rates = [1e-4, 2e-4, 3e-4, 4e-4, 5e-4]
    waiting = _halve(write, rates, lambda rate, until: None)
    assert _count_rungs(waiting) == [(2, "1/4", rate) for rate in rates]
    # The least is best early, and behind in the end.
    found = _halve(write, rates, lambda rate, until: rate if until == 2 else None)
    assert _count_rungs(found)[5:] == [(4, "1/2", rate) for rate in rates[:3]]
    assert {len(cell.scores) for cell in found.awaiting} == {3}
    grid = _halve(write, rates, lambda rate, until: rate if until else -rate)
    assert _count_rungs(grid)[8:] == [(None, "1", rate) for rate in rates[:2]]
    tuned = [c for c in grid.cells if c.label == "BitDistiller" and not c.is_trial]
    assert [(_rate(c.model), _until(c.model)) for c in tuned] == [(2e-4, None)] * 2
    trials = {c.model.key for c in grid.cells if c.is_trial}
    assert [c.model.key in trials for c in tuned] == [True, False]
    tuning = tuned[0].tuning
    assert tuning is not None and (tuning.trials, tuning.failed) == (5, 0)
    assert tuning.parts == {"1/4": 5, "1/2": 3, "1": 2} and len(set(tuning.models)) == 5
    assert len({c.id for c in grid.cells}) == len(grid.cells)


def test_trials_that_fail_early_go_no_further(write: Write) -> None:
    rates = [1e-4, 2e-4, 3e-4, 4e-4]
    grid = _halve(write, rates, lambda rate, until: rate if rate > 3.5e-4 else math.inf)
    assert _count_rungs(grid)[4:] == [(None, "1", 4e-4)]
    tuning = next(c.tuning for c in grid.cells if c.tuning)
    assert (tuning.failed, tuning.parts) == (3, {"1/2": 4, "1": 1})


def test_two_trials_and_what_has_no_steps_are_whole(write: Write) -> None:
    grid = _halve(write, [1e-4, 2e-4], lambda rate, until: rate)
    assert [until for until, _, _ in _count_rungs(grid)] == [None] * 2
    tuning = next(c.tuning for c in grid.cells if c.tuning)
    assert tuning.parts == {}


def test_a_method_that_sets_it_itself_is_said_to_be_untuned(write: Write) -> None:
    own = "{name: llm-qat, data: ground-truth, train.lr: 2e-4}"
    grid = write(GRID.replace("[rtn, bf16]", f"[rtn, {own}]"))
    tuning = next(c.tuning for c in grid.cells if c.label == "LLM-QAT")
    assert tuning is not None and (tuning.trials, tuning.chosen) == (0, {"train.lr": 2e-4})


def test_a_divergence_can_choose(write: Write) -> None:
    grid = write(GRID.replace("  on:", "  metric: kl\n  on:"))
    assert all(isinstance(c.scores[0], Divergence) for c in grid.cells if c.is_trial)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("train.lr: [1e-4", "train.ls: [1e-4", "9: 'train.ls' is not a setting of any method here"),
        ("train.lr: [1e-4, 4e-4, 1.6e-3]", "train.lr: []", "9: axis 'train.lr' has no values"),
        ("train.lr: [1e-4, 4e-4", "train.lr: [1e-4, none", "9: train.lr: 'none' should be"),
        (
            "train.lr: [1e-4, 4e-4, 1.6e-3]",
            "train.lr: 1e-4",
            "9: tune.train.lr: 1e-4 should be a list",
        ),
        (
            "train.lr: [1e-4",
            "format.bits: [1e-4",
            "tune: 'format.bits' is an axis of `vary` already",
        ),
        ("train.lr: [1e-4", "seed: [1e-4", "tune: 'seed' cannot be tuned"),
        ("skip: 40", "skip: 3", "skip: 3 should be at least 4: 'testbed-ppl' scores the windows"),
        ("cut: packed", "cut: joined", "'joined' should be 'packed', as 'testbed-ppl' cuts it"),
        (", limit: 2}}]", "}}]", "'testbed-ppl' may read any of 'testbed' (heldout)"),
        (
            "{testbed-ppl:",
            "{testbed-ppl-stories:",
            "'testbed-ppl-stories' may read any of 'testbed'",
        ),
        ("{testbed-ppl:", "{kl:testbed-ppl-stories:", "'kl:testbed-ppl-stories' may read any of"),
        ("cut: packed", "split: train", "BitDistiller itself reads 'testbed' (train)"),
        ("cut: packed", "split: calibration", "BitDistiller itself reads 'testbed' (calibration)"),
        ("text: testbed, cut", "text: testbde, cut", "text 'testbde' is unknown"),
        ("window: 32", "window: 4096", "tune.on.window: 4096, but the context is"),
        ("skip: 40", "skp: 40", "tune.on: key 'skp' is unknown; did you mean 'skip'?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    write: Write, old: str, new: str, words: str
) -> None:
    assert GRID.count(old) == 1
    with pytest.raises(GridError) as error:
        write(GRID.replace(old, new))
    assert words in str(error.value) and "\n" not in str(error.value)


SPLITS = GRID.replace("{testbed-ppl: {window: 64, limit: 2}}", "wikitext2: {window: 64, limit: 2}")


@pytest.mark.usefixtures("known_commits")
def test_two_splits_of_a_data_set_are_apart(write: Write, tmp_path: Path) -> None:
    """On the hub, and in a mirror at a commit, both have the data set's commit as their digest."""
    own = SPLITS.replace("{text: testbed, cut", '{text: "wikitext2:validation", cut')
    assert write(own).cells
    with pytest.raises(GridError, match="'packed' should be 'joined'"):
        write(own.replace("wikitext2:validation", "wikitext2:test"))
    rows = {"test": "one", "validation": "other"}
    folder = tmp_path / "mirror" / "Salesforce" / "wikitext"
    (folder / "wikitext-2-raw-v1").mkdir(parents=True)
    (folder / "REVISION").write_text("c0ffee\n")
    for split, text in rows.items():
        write_split(folder / "wikitext-2-raw-v1" / f"{split}.jsonl", text)
    mirrored = f"mirror: {tmp_path / 'mirror'}\n{own}"
    assert write(mirrored).cells
    write_split(folder / "wikitext-2-raw-v1" / "validation.jsonl", "one")
    with pytest.raises(GridError, match="'wikitext2' may read any of 'wikitext2:validation'"):
        write(mirrored)


def write_split(path: Path, text: str) -> None:
    path.write_text(json.dumps({"text": f"{text} word " * 400}) + "\n")


def test_a_run_makes_the_trials_then_what_they_chose(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    grid = GRID.replace("{model}", str(tiny_folder)).replace("[2, 3]", "[2]")
    (tmp_path / "tuned.yaml").write_text(grid.replace("[rtn, bf16]", "[rtn]"))
    assert main(["plan", "tuned.yaml"]) == 0
    assert "4 and 3 trials, for which 2 cells wait" in capsys.readouterr().out
    store = Store.default()
    waiting = remembering.remembered(Path("tuned.yaml"), store)
    assert waiting is not None and len(waiting.awaiting) == 2
    assert main(["run", "tuned.yaml"]) == 0
    told = capsys.readouterr()
    assert "Learning rate chosen for each row among 3 trials by the least nll" in _join(told.out)
    rows = [json.loads(line) for line in Path("runs/tuned/rows.jsonl").read_text().splitlines()]
    trials = [
        json.loads(line) for line in Path("runs/tuned/trials/rows.jsonl").read_text().splitlines()
    ]
    best = min(trials, key=lambda row: row["value"])
    tuned = [row for row in rows if row["label"] == "BitDistiller"]
    chosen = {"train.lr": best["settings"]["train.lr"]}
    assert [row["tuning"]["chosen"] for row in tuned] == [chosen] * 2
    assert tuned[0]["model_key"] == best["model_key"]
    assert tuned[0]["tuning"]["tokens"] == 3 * 2 * 15 and tuned[0]["tuning"]["device_hours"] > 0
    known = {row["label"]: (row["text"], row["trained_on"], row["calibrated_on"]) for row in rows}
    assert known == {"BitDistiller": ("testbed", ["testbed"], []), "RTN": ("testbed", [], [])}
    assert "In-domain: PPL reads testbed. Trained on it: BitDistiller." in _join(told.out)
    plan = remembering.remembered(Path("tuned.yaml"), store)
    assert plan is not None and not plan.awaiting and len(plan.rows) == 4
    assert main(["run", "tuned.yaml"]) == 0
    assert "were done already" in capsys.readouterr().err
    assert main(["report", "runs/tuned/trials"]) == 0
    assert main(["publish", "runs/tuned", "--to", "kept"]) == 0
    kept = Path("kept/tuned/trials/rows.jsonl").read_bytes()
    assert kept == Path("runs/tuned/trials/rows.jsonl").read_bytes()
    assert plan == build(load(Path("tuned.yaml"), look=lambda s: _read(s, store)))


def test_what_ended_early_goes_on_where_it_ended(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    begun: list[tuple[int | None, int]] = []
    run = _Loop.run

    def spy(loop: _Loop, until: int | None = None) -> Any:
        begun.append((until, loop.done))
        return run(loop, until)

    monkeypatch.setattr(_Loop, "run", spy)
    grid = HALVED.replace("{model}", str(tiny_folder)).replace("seed: [0, 1]", "seed: 0")
    (tmp_path / "tuned.yaml").write_text(grid.replace("[rtn, bf16]", "[]"))
    assert main(["run", "tuned.yaml"]) == 0
    assert begun == [(4, 0)] * 3 + [(None, 4)] * 2
    said = _join(capsys.readouterr().out)
    assert "Of the trials the worse half ended after 1/2 of the steps." in said
    assert "3 to 1/2, 2 to the end" in _join(Path("runs/tuned/report.md").read_text())
    row = json.loads(Path("runs/tuned/rows.jsonl").read_text())
    assert row["tuning"]["tokens"] == (4 + 8 + 8) * 2 * 15
    # As without trials, in a store of its own.
    tune = grid[grid.index("tune:") : grid.index("defaults:")]
    rate = row["tuning"]["chosen"]["train.lr"]
    plain = grid.replace(tune, "").replace("defaults:", f"defaults:\n  train.lr: {rate}")
    plain = plain.replace("[rtn, bf16]", "[]")
    (tmp_path / "plain.yaml").write_text(plain)
    assert main(["run", "plain.yaml", "--store", "other"]) == 0
    other = json.loads(Path("runs/plain/rows.jsonl").read_text())
    assert (other["key"], other["value"]) == (row["key"], row["value"])


def _read(score: Any, store: Store) -> float:
    return float(store.manifest(score.key)["value"]["rows"][0]["value"])


def _join(text: str) -> str:
    return " ".join(text.split())
