"""Training budgets that are equal: what is counted, the steps that follow, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.core.errors import GridError
from harness.core.stage import Stage, closure
from harness.grid.expand import Grid, load
from methods.training.train import Train

GRID = """\
# Is it matched?
model: {model}
dtype: float32
method: bitdistiller
match: tokens
compare:
  - rtn
  - {name: awq-clip}
  - llm-qat
  - {name: bitdistiller, label: CE, objective: ce}
  - {name: bitdistiller, label: TSLD, objective: {name: sum, parts: [kl, tsld], weights: [1, 1]}}
defaults:
  format.group_size: 32
  init.text: testbed
  init.sequences: 2
  init.length: 16
  data.sequences: 4
  data.length: 16
  data.text: testbed
  train.steps: 8
  train.batch_size: 2
  train.dtype: float32
evaluate: [{testbed-ppl: {window: 64, limit: 2}}]
"""
TEXT = GRID.replace("method: bitdistiller", "method: {name: bitdistiller, data: ground-truth}")
N = 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128) + 64 * 300  # two layers and the head

Write = Callable[[str], Grid]


@pytest.fixture
def write(tmp_path: Path, tiny_folder: Path) -> Write:
    def written(text: str) -> Grid:
        path = tmp_path / "matched.yaml"
        path.write_text(text.replace("{model}", str(tiny_folder)))
        return load(path)

    return written


def _steps(model: Stage[object]) -> int | None:
    trained = [stage for stage in closure([model]) if isinstance(stage, Train)]
    return trained[0].training.steps if trained else None


def _count(grid: Grid) -> dict[str, tuple[int | None, float | None]]:
    for cell in grid.cells:
        assert cell.match is not None and cell.match.steps == _steps(cell.model)
    return {c.label: (c.match.steps, c.match.spent) for c in grid.cells if c.match}


def test_tokens_that_are_trained_on_and_written_are_equal(write: Write) -> None:
    # The grid's own: 8 steps of 2 sequences of 16 tokens of a text. LLM-QAT writes 4 sequences
    # first, as the other two do, whose data are the default of BitDistiller: 2 steps less.
    grid = write(TEXT)
    assert _count(grid) == {
        "BitDistiller": (8, 256),
        "RTN": (None, None),
        "AWQ-clip": (None, None),
        "LLM-QAT": (6, 256),
        "CE": (6, 256),
        "TSLD": (6, 256),
    }
    matches = {cell.label: cell.match for cell in grid.cells}
    assert (matches["LLM-QAT"].trained, matches["LLM-QAT"].written) == (192, 64)  # type: ignore[union-attr]
    assert matches["BitDistiller"].calibration == 2 * 16  # type: ignore[union-attr]
    assert matches["RTN"].why == "nothing is trained"  # type: ignore[union-attr]
    assert matches["AWQ-clip"].why == "fitted to 32 tokens of calibration text"  # type: ignore[union-attr]


def test_flops_count_the_teacher_and_what_it_writes(write: Write) -> None:
    # A token costs the student 6 N and its teacher 2 N; of 4 sequences of 16 tokens the writing
    # costs 2 N a token, and CAKLD's confidence another 2 N.
    own = 256 * 8 + 64 * 2  # of N: the grid's own reads a text
    counts = _count(write(TEXT.replace("match: tokens", "match: flops")))
    assert counts["BitDistiller"] == (8, own * N)
    assert counts["LLM-QAT"] == (8, (128 + 8 * 32 * 8) * N)
    assert counts["CE"] == (11, (128 + 11 * 32 * 6) * N)  # 10.67 would be equal
    assert counts["TSLD"] == (6, (128 + 6 * 32 * 10) * N)  # the teacher reads a batch twice: 6.4


def test_a_sum_is_for_the_grids_own_method_too(write: Write) -> None:
    counts = _count(write(TEXT.replace("match: tokens", "match: {tokens: 1e3}")))
    assert counts["BitDistiller"] == (31, 992) and counts["LLM-QAT"] == (29, 64 + 928)


def test_matched_steps_share_stages_with_the_same_steps_written_out(write: Write) -> None:
    matched = {cell.label: cell.model.key for cell in write(TEXT).cells}
    text = TEXT.replace("match: tokens\n", "").replace(
        "- llm-qat", "- {name: llm-qat, train.steps: 6}"
    )
    written = {cell.label: cell.model.key for cell in write(text).cells}
    same = {label for label, key in matched.items() if written[label] == key}
    assert same == {"BitDistiller", "RTN", "AWQ-clip", "LLM-QAT"}


def test_epochs_are_steps_of_the_sequences_asked_for(write: Write) -> None:
    text = TEXT.replace("train.steps: 8", "train.epochs: 3")
    assert _count(write(text))["BitDistiller"] == (6, 192)


def test_axes_are_matched_to_the_first_value_but_for_the_steps(write: Write) -> None:
    objectives = TEXT.replace("match: tokens", "match: flops\nvary: {objective: [kl, ce]}")
    own = [c.match for c in write(objectives).cells if c.label == "BitDistiller"]
    assert [(m.budget, m.steps) for m in own if m] == [(2048 * N, 8), (2048 * N, 11)]
    steps = TEXT.replace("match: tokens", "match: tokens\nvary: {train.steps: [8, 16]}")
    cells = [c for c in write(steps).cells if c.label == "LLM-QAT"]
    assert [(c.axes["train.steps"], _steps(c.model)) for c in cells] == [(8, 6), (16, 14)]


def test_the_plan_says_it(write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write(TEXT)
    main(["plan", str(tmp_path / "matched.yaml"), "--store", str(tmp_path / "store")])
    said = capsys.readouterr().out
    assert "matched: LLM-QAT: 6 steps, 256 of 256 tokens (192 trained on, 64 written)" in said
    assert "not matched: RTN: nothing is trained" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("match: tokens", "match: hours", ":5: match: hours are of a machine, and known once"),
        ("match: tokens", "match: {hours: 2}", "no settings follow from them; match: flops"),
        ("match: tokens", "match: words", "tokens"),
        ("match: tokens", "match: {tokens: 0}", "0 should be more than 0"),
        (
            "match: tokens",
            "match: {tokens: 70}",
            "LLM-QAT: it needs 96 tokens, 64 of them for",
        ),
        ("match: tokens", "match: {tokens: 1e29}", "match: BitDistiller: train.steps: "),
        ("- llm-qat", "- {name: llm-qat, train.steps: 3}", "and 'train.steps' says it too"),
        (
            "match: tokens",
            "match: {tokens: 900}\nvary: {train.steps: [1, 2]}",
            "'train.steps' is an axis already",
        ),
        (
            "match: tokens",
            "match: tokens\ntune: {train.steps: [1, 2], on: {text: testbed:stories}}",
            "'train.steps' is an axis already",
        ),
        ("method: {name: bitdistiller, data: ground-truth}", "method: rtn", "RTN is not trained"),
    ],
)
def test_what_cannot_be_matched_is_refused(write: Write, old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(GridError, match=r"^[^\n]*$") as error:
        write(TEXT.replace(old, new))
    assert message in str(error.value)
