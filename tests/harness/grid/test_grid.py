"""Grids: expansion, collapsing axes, and one-line errors that name file, line and nearest name."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from torch import Tensor

from harness import models
from harness.config.document import Document
from harness.core.errors import GridError
from harness.core.registry import Unavailable
from harness.core.stage import closure
from harness.grid import points
from harness.grid.expand import Grid, load
from harness.grid.names import check_names
from harness.grid.schema import GridFile
from harness.method import METHODS
from harness.models import stage as model_stage
from methods.quantization.formats import FullPrecision, Grouped
from methods.training.data import SelfGenerated
from methods.training.train import Train

BASE = """\
# Does it expand?
model: {model}
method: bitdistiller
vary:
  format.bits: [2, 3]
  objective: [cakld, kl, reverse-kl, jsd]
  seed: [0, 1, 2]
compare: [rtn, awq-clip]
defaults:
  format.group_size: 64
  init.text: testbed
  data.text: testbed
  data.length: 128
evaluate: [testbed-ppl]
"""


@pytest.fixture
def write(tmp_path: Path, tiny_folder: Path):  # type: ignore[no-untyped-def]
    def written(text: str = BASE, **options: bool) -> Grid:
        path = tmp_path / "grid.yaml"
        path.write_text(text.replace("{model}", str(tiny_folder)))
        return load(path, **options)

    return written


def test_axes_that_a_compared_method_lacks_collapse(write) -> None:  # type: ignore[no-untyped-def]
    grid = write()
    by_label = {
        label: [cell for cell in grid.cells if cell.label == label]
        for label in ("BitDistiller", "RTN", "AWQ-clip")
    }
    # 2 bits x 4 objectives x 3 seeds; and, as they have no objective, 2 bits x 3 seeds each.
    assert {label: len(cells) for label, cells in by_label.items()} == {
        "BitDistiller": 24,
        "RTN": 6,
        "AWQ-clip": 6,
    }
    # RTN knows no seed, and the clip search reads another text each: 24 trained models, and 2 + 6.
    assert len({cell.model.key for cell in grid.cells}) == 32
    assert grid.question == "Does it expand?"
    assert by_label["RTN"][0].axes == {"format.bits": 2}
    assert by_label["BitDistiller"][0].axes == {"format.bits": 2, "objective": "cakld"}
    assert len({cell.id for cell in grid.cells}) == len(grid.cells)


def test_cells_share_their_stages(write) -> None:  # type: ignore[no-untyped-def]
    kinds: dict[str, int] = {}
    for stage in closure([cell.model for cell in write().cells]):
        kinds[stage.kind] = kinds.get(stage.kind, 0) + 1
    assert kinds["clip-search"] == 6  # one a bit width and seed, for 30 cells
    assert kinds["confidence"] == 3
    assert kinds["generate"] == 3
    assert kinds["train"] == 24


def test_seeds_pair_cells(write) -> None:  # type: ignore[no-untyped-def]
    trained = [
        stage for stage in closure([cell.model for cell in write().cells]) if stage.kind == "train"
    ]
    assert {stage.seed for stage in trained} == {0, 1, 2}  # type: ignore[attr-defined]
    tokens = {(stage.seed, stage.tokens.key) for stage in trained}  # type: ignore[attr-defined]
    assert len(tokens) == 3  # one of each seed, whatever the objective and the bits


def test_a_method_is_configured_once_for_all_its_seeds(  # type: ignore[no-untyped-def]
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = points._configure, []

    def configure(*given: Any) -> points.Configured:
        seen.append(given)
        return before(*given)

    monkeypatch.setattr(points, "_configure", configure)
    assert len(write().cells) == 36
    assert len(seen) == 3 * 2 * 4  # methods, bits, objectives


def test_a_compared_method_keeps_what_it_sets_itself(write) -> None:  # type: ignore[no-untyped-def]
    grid = write(
        BASE.replace(
            "[rtn, awq-clip]", "[{name: rtn, label: NF3, format: nf, format.bits: 3}, rtn]"
        )
    )
    nf3 = [cell for cell in grid.cells if cell.label == "NF3"]
    assert len(nf3) == 3
    assert {cell.axes.get("format.bits") for cell in nf3} == {None}
    assert {(c.model.format.name, c.model.format.bits) for c in nf3} == {("nf", 3)}  # type: ignore[attr-defined]


def test_scalars_are_those_of_yaml_1_2(write) -> None:  # type: ignore[no-untyped-def]
    grid = write(
        BASE.replace("seed: [0, 1, 2]", "seed: [010]\n  train.lr: [1e-4, 2.0E-5]")
        .replace("format.bits: [2, 3]", "format.bits: [0o2]")
        .replace(
            "compare: [rtn, awq-clip]",
            "compare: [{name: rtn, label: 1.10}, {name: awq-clip, label: 007, init.text: testbed}]",
        )
        .replace("data.length: 128", "train.steps: 1e3\n  data.length: 0x40")
    )
    assert {cell.seed for cell in grid.cells} == {10}
    assert {cell.label for cell in grid.cells} == {"BitDistiller", "1.10", "007"}
    trained = [cell for cell in grid.cells if cell.label == "BitDistiller"]
    assert {cell.axes["train.lr"] for cell in trained} == {1e-4, 2e-5}
    # Names do not depend on how a number was written.
    assert "format.bits=2 objective=kl train.lr=0.0001 seed=10" in trained[2].id
    train = next(s for s in closure([trained[0].model]) if isinstance(s, Train))
    assert repr(train.training.steps) == "1000"


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        (
            "[rtn, awq-clip]",
            "\n- rtn\n- {name: rtn, format: nf, format.bits: 3}",
            10,
            "'RTN' is the name of another method already (grid.yaml:9), which differs in format "
            "(int-asym, here nf): give this one a 'label' of its own",
        ),
        (
            "[rtn, awq-clip]",
            "\n- {name: rtn, label: X}\n- {name: rtn, label: X, format.group_size: 32}",
            10,
            "'X' is the name of another method already (grid.yaml:9), which differs in "
            "format.group_size (64, here 32)",
        ),
        (
            "[rtn, awq-clip]",
            "[{name: rtn, label: ' X  y'}, {name: awq-clip, label: X y}]",
            8,
            "'X y' is the name of another method already (grid.yaml:8), which differs in method "
            "(rtn, here awq-clip), init ([none], here [clip text='testbed'])",
        ),
        # Its cells would be told apart by axes that the main method has and it has not.
        (
            "[rtn, awq-clip]",
            "[{name: llm-qat, label: BitDistiller, format: nf}]",
            8,
            "'BitDistiller' is the name of another method already (grid.yaml:3), which differs in",
        ),
        # Label and axes may say the same in two ways.
        (
            "[rtn, awq-clip]",
            "[{name: rtn, label: BitDistiller format.bits=2 objective=kl, format.bits: 2}]",
            8,
            "'BitDistiller format.bits=2 objective=kl seed=0' is the name of another method",
        ),
    ],
)
def test_a_name_is_of_one_thing(write, old, new, line, words, tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GridError) as caught:
        write(BASE.replace(old, new))
    assert str(caught.value).startswith(f"{tmp_path}/grid.yaml:{line}: ")
    assert words in str(caught.value)


def test_equal_methods_may_share_a_label(write) -> None:  # type: ignore[no-untyped-def]
    own = "[rtn, {name: rtn, format.bits: 2}, {name: rtn, format.bits: 3, label: RTN}]"
    cells = write(BASE.replace("[rtn, awq-clip]", own)).cells
    assert [c.axes for c in cells if c.label == "RTN" and c.seed == 0] == [
        {"format.bits": 2},
        {"format.bits": 3},
    ]


@dataclass(frozen=True)
class Micro(Grouped):
    """Blocks of 32 that share a scale, as another package may have it."""

    name = "test-micro"
    bits: int = 4
    group_size: int = 32

    widths = (4,)

    def overhead(self) -> int:
        return 8

    def quantize_dequantize(self, groups: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return groups.clone()


@dataclass(frozen=True)
class Lone(FullPrecision):
    """Blocks of 32 in a class that shares none with other formats of groups."""

    name = "test-lone"
    bits: int = 4
    group_size: int = 32


def _formats(grid: Grid) -> list[tuple[str, int, int]]:
    formats = [cell.model.format for cell in grid.cells]  # type: ignore[attr-defined]
    return [(f.name, f.bits, f.group_size) for f in formats]


SIMPLE = "# Does it?\nmodel: {model}\nmethod: rtn\nevaluate: [testbed-ppl]\n"


@pytest.mark.parametrize(
    ("more", "formats"),
    [
        # Its own settings, not those of the format that it replaces.
        ("vary: {format: [test-micro]}", [("test-micro", 4, 32)]),
        ("vary: {format: [{name: test-micro}]}", [("test-micro", 4, 32)]),
        ("vary: {format: [nf]}\ndefaults: {format.group_size: 64}", [("nf", 3, 64)]),
        # What is said of formats in general is for those whose group size is that of all.
        (
            "vary: {format: [int-asym, test-micro]}\ndefaults: {format.group_size: 64}",
            [("int-asym", 2, 64), ("test-micro", 4, 32)],
        ),
        (
            "vary: {format: [int-asym, test-micro], format.group_size: [16, 64]}",
            [("int-asym", 2, 16), ("int-asym", 2, 64), ("test-micro", 4, 32)],
        ),
        (
            "compare: [{name: rtn, label: M, format: test-micro}]\n"
            "defaults: {format.group_size: 64}",
            [("int-asym", 2, 64), ("test-micro", 4, 32)],
        ),
        (
            "vary: {format: [int-asym, test-lone]}\n"
            "defaults: {format.group_size: 64, format.bits: 3}",
            [("int-asym", 3, 64), ("test-lone", 4, 32)],
        ),
        # What is said of it is: beside its name, or by the method that chose it.
        (
            "vary: {format: [{name: test-micro, group_size: 16}, int-asym]}\n"
            "defaults: {format.group_size: 64}",
            [("test-micro", 4, 16), ("int-asym", 2, 64)],
        ),
        (
            "compare: [{name: rtn, label: M, format: test-micro, format.group_size: 16}]\n"
            "defaults: {format.group_size: 64}",
            [("int-asym", 2, 64), ("test-micro", 4, 16)],
        ),
        # Beside a name of any format it wins over what is said in general.
        (
            "compare: [{name: rtn, label: M, format: {name: nf, bits: 4, group_size: 16}}]\n"
            "vary: {format.bits: [2, 3]}\ndefaults: {format.group_size: 64}",
            [("int-asym", 2, 64), ("int-asym", 3, 64), ("nf", 4, 16)],
        ),
        # A format that another method keeps is not made one of blocks.
        (
            "vary: {format: [{name: test-micro, group_size: 16}]}\n"
            "compare: [{name: rtn, label: M, format: int-sym}]\ndefaults: {format.group_size: 64}",
            [("test-micro", 4, 16), ("int-sym", 2, 64)],
        ),
    ],
)
def test_a_component_has_its_own_settings_and_those_said_of_it(  # type: ignore[no-untyped-def]
    write, more: str, formats: list[tuple[str, int, int]]
) -> None:
    assert _formats(write(SIMPLE + more)) == formats


def test_what_is_not_taken_is_said(write, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    write(SIMPLE + "vary: {format: [int-asym, test-micro]}\ndefaults:\n  format.group_size: 64\n")
    assert (
        "grid.yaml:7: format.group_size: 64 is not for 'test-micro', whose own is 32; "
        "'format: {name: test-micro, group_size: 64}' would say it of that one"
    ) in capsys.readouterr().err
    for more in ("defaults: {format.group_size: 64}", "vary: {format.group_size: [16, 64]}"):
        text = SIMPLE.replace("rtn", "{name: rtn, format: test-micro}") + more
        with pytest.raises(GridError, match="is not for 'test-micro', whose own is 32"):
            write(text)


def test_generated_text_is_as_its_kind_has_it(write) -> None:  # type: ignore[no-untyped-def]
    """LLM-QAT's own temperature, not that of the data which BitDistiller would have had."""
    cells = write(BASE.replace("bitdistiller", "{name: bitdistiller, data: self-generated}")).cells
    trained = next(s for s in closure([cells[0].model]) if isinstance(s, Train))
    assert cast(Any, trained.tokens).temperature == SelfGenerated().temperature == 1.0


def test_an_axis_value_may_be_a_mapping(write) -> None:  # type: ignore[no-untyped-def]
    text = BASE.replace(
        "format.bits: [2, 3]", "format: [{name: nf, bits: 3}, {name: int-sym, bits: 2}]"
    )
    shown = {cell.axes["format"] for cell in write(text).cells}
    assert shown == {"nf bits=3", "int-sym bits=2"}


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("vary:", "varry:", 4, "key 'varry' is unknown; did you mean 'vary'?"),
        ("method: bitdistiller", "method: bitdistill", 3, "did you mean 'bitdistiller'?"),
        ("[rtn, awq-clip]", "[rtn, awq-klip]", 8, "did you mean 'awq-clip'?"),
        ("jsd]", "jds]", 6, "objective: 'jds' is unknown; did you mean 'jsd'?"),
        ("format.bits: [2, 3]", "format.bit: [2, 3]", 5, "did you mean 'format.bits'?"),
        ("format.bits: [2, 3]", "format.bits: [2, 5]", 5, "5"),
        (
            "format.bits: [2, 3]",
            "format.bits: [2, two]",
            5,
            "format.bits: 'two' should be a whole number",
        ),
        ("format.bits: [2, 3]", "format.bits: []", 5, "has no values"),
        (
            "objective: [cakld, kl, reverse-kl, jsd]",
            "format: [{name: nf, bits: 3}]",
            5,
            "'format.bits' is said by the values of the axis 'format' already",
        ),
        (
            "compare: [rtn, awq-clip]",
            "  formt: [{name: nf}]\ncompare: [{name: rtn, formt: nf}]",
            8,
            "'formt' is not a setting of any method here; did you mean 'format'?",
        ),
        ("data.length: 128", "train.steps: 1:30", 13, "steps: '1:30' should be a whole number"),
        (
            "data.length: 128",
            "train.steps: 1_000",
            13,
            "train.steps: '1_000' should be a whole number; did you mean 1000?",
        ),
        ("data.length: 128", "train.steps: true", 13, "train.steps: true should be a whole"),
        (
            "compare:",
            "trust_remote_code: yes\ncompare:",
            8,
            "trust_remote_code: 'yes' should be true or false; did you mean true?",
        ),
        ("[rtn, awq-clip]", "[{name: rtn, label: ~}]", 8, "label: null should be text"),
        ("seed: [0, 1, 2]", "seed: [0, x]", 7, "vary.seed: 'x' should be a whole number"),
        ("format.group_size: 64", "format.groupsize: 64", 10, "did you mean 'format.group_size'?"),
        ("init.text: testbed", "init.text: testbad", 3, "did you mean 'testbed'?"),
        ("[testbed-ppl]", "[testbed-pl]", 14, "did you mean 'testbed-ppl'?"),
        (
            "[testbed-ppl]",
            "[pile-val]",
            14,
            "'pile-val' is a text, not a task; perplexities: c4, c4-new",
        ),
        ("[testbed-ppl]", "[wikitext2:validation]", 14, "is a text, not a task"),
        ("[testbed-ppl]", "[file:mine.txt]", 14, "'file:mine.txt' is a text, not a task"),
        ("[testbed-ppl]", "[testbed]", 14, "'testbed' is a text, not a task"),
        ("[testbed-ppl]", "[{testbed-ppl: {limt: 3}}]", 14, "did you mean 'limit'?"),
        ("[testbed-ppl]", "[testbed-ppl, testbed-ppl]", 14, "given twice"),
        ("[testbed-ppl]", "[]", 14, "names no task"),
        ("[testbed-ppl]", "[testbed_code]", 14, "allow_code_execution: true"),
        ("evaluate: [testbed-ppl]", "seed: 1", 2, "key 'evaluate' is missing"),
        (
            "[testbed-ppl]",
            "[{testbed-ppl: {limit: 0}}]",
            14,
            "testbed-ppl.limit: 0 should be more than 0",
        ),
        ("[testbed-ppl]", "[{testbed-ppl: {window: 1}}]", 14, "window: 1 should be at least 2"),
        ("[testbed-ppl]", "[{testbed-ppl: 3}]", 14, "evaluate.testbed-ppl: 3 should be a mapping"),
        ("[testbed-ppl]", "[3]", 14, "task '3' is unknown"),
        ("evaluate:", "evalute:", 14, "key 'evalute' is unknown; did you mean 'evaluate'?"),
        (
            "seed: [0, 1, 2]",
            f"seed: [0, {10**23}]",
            7,
            f"vary.seed: {10**23} should be at most 92",
        ),
        ("  seed: [0, 1, 2]", f"seed: {10**23}", 7, f"seed: {10**23} should be at most 92"),
        ("  seed: [0, 1, 2]", "seed: abc", 7, "seed: 'abc' should be a whole number or a list"),
        ("  seed: [0, 1, 2]", "seed: [0, abc]", 7, "seed: 'abc' should be a whole number"),
        ("  seed: [0, 1, 2]", "  3: [1]", 7, "'3' is not a setting of any method here"),
        (
            "compare:",
            "report: {decimals: -1}\ncompare:",
            8,
            "report.decimals: -1 should be at least 0",
        ),
        (
            "compare:",
            "report: {decimals: {testbed-ppl: x}}\ncompare:",
            8,
            "report.decimals.testbed-ppl: 'x' should be a whole number",
        ),
        (
            "compare:",
            "published: {name: bitdistiller-2402.10631, tolerance: .inf}\ncompare:",
            8,
            "published.tolerance: .inf should be a finite number or text or a mapping",
        ),
        ("data.length: 128", "data.temperature: .inf", 13, "temperature: .inf should be a finite"),
        ("data.length: 128", "train.lr: -1", 13, "train.lr: -1 should be more than 0"),
        ("data.length: 128", "train.betas: [0.9, 1]", 13, "train.betas: 1 should be less than 1"),
        ("data.length: 128", "train.lr: .nan", 13, "train.lr: .nan should be a finite number"),
        (
            "data.length: 128",
            "data: {name: ground-truth, text: testbed, sequences: many}",
            13,
            "data.sequences: 'many' should be a whole number",
        ),
        ("seed: [0, 1, 2]", "seed: [0, true]", 7, "vary.seed: true should be a whole number"),
        ("seed: [0, 1, 2]", "model: [true]", 7, "vary.model: true should be text"),
        ("compare:", "report: {row: x}\ncompare:", 8, "key 'row' is unknown; did you mean 'rows'?"),
        (
            "compare:",
            "report: {spread: se}\ncompare:",
            8,
            "'se' should be 'sd', 'interval' or 'items'",
        ),
        (
            "compare:",
            "report: {average: [pica]}\ncompare:",
            8,
            "report.average: task 'pica' is unknown; choices: testbed-ppl",
        ),
        (
            "compare:",
            "report: {columns: [average, device_hours, x]}\ncompare:",
            8,
            "columns: task 'x' is unknown",
        ),
        ("compare:", "report: {columns: averag}\ncompare:", 8, "did you mean 'average'?"),
        (
            "compare:",
            "report: {average: [testbed-ppl]}\ncompare:",
            8,
            "'testbed-ppl' cannot join a mean of scores: lower is better",
        ),
        (
            "compare:",
            "report:\n  caption: x\n  rows: objektive\ncompare:",
            10,
            "report.rows: axis 'objektive' is unknown; did you mean 'objective'?",
        ),
        ("compare:", "report: {rows: [label, objektive]}\ncompare:", 8, "mean 'objective'?"),
        (
            "compare:",
            "report: {over: sed}\ncompare:",
            8,
            "over: axis 'sed' is unknown; did you",
        ),
        (
            "compare:",
            "report: {over: label}\ncompare:",
            8,
            "report.over: axis 'label' is unknown",
        ),
        ("compare:", "report: {effect: objektive}\ncompare:", 8, "mean 'objective'?"),
        ("compare:", "report: {names: {objektive: x}}\ncompare:", 8, "mean 'objective'?"),
        ("compare:", "report: {names: {objective: ''}}\ncompare:", 8, "names.objective: '' "),
        (
            "compare:",
            "report:\n  names:\n    objective=cakl: x\ncompare:",
            10,
            "report.names: axis, value or task 'objective=cakl' is unknown; did you mean "
            "'objective=cakld'?",
        ),
        ("compare:", "report: {effect: seed}\ncompare:", 8, "effect: axis 'seed' is unknown"),
        (
            "compare:",
            "report:\n  decimals:\n    testbed-pp: 2\ncompare:",
            10,
            "report.decimals: task 'testbed-pp' is unknown; did you mean 'testbed-ppl'?",
        ),
        (
            "compare:",
            "published: {name: bitdistiller-2402.10631, tolerance: {pp: 0.1}}\ncompare:",
            8,
            "published.tolerance: method, task or metric 'pp' is unknown; did you mean 'ppl'?",
        ),
        ("compare:", "published: {name: bitdistill}\ncompare:", 8, "did you mean 'bitdistiller-"),
        (
            "compare:",
            "published: {name: bitdistiller-2402.10631, model: LLaMA-2-7}\ncompare:",
            8,
            "model 'LLaMA-2-7' is unknown; did you mean 'LLaMA-2-7B'?",
        ),
        (
            "compare:",
            "published: {name: bitdistiller-2402.10631,\n"
            "  tasks: {testbed-ppl: {task: wikitext, why: x}}}\ncompare:",
            9,
            "task 'wikitext' has no published figure; did you mean 'wikitext2'?",
        ),
        (
            "compare:",
            "published: {name: bitdistiller-2402.10631,\n"
            "  tasks: {testbed-pl: {task: wikitext2, why: x}}}\ncompare:",
            9,
            "task 'testbed-pl' is unknown; did you mean 'testbed-ppl'?",
        ),
        ("data.length: 128", "data.length: 4000", 3, "data.length: 4000 tokens, but the model's"),
        (
            "data.length: 128",
            "init.length: 4000",
            3,
            "length (of calibration text): 4000 tokens, but",
        ),
        ("model: {model}", "model: ./nowhere", 2, "no folder or .gguf file lies at"),
    ],
)
def test_errors_are_one_line(write, tmp_path, old, new, line, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GridError) as caught:
        write(BASE.replace(old, new))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{tmp_path}/grid.yaml:{line}: ")
    assert words in message


def test_a_method_whose_file_cannot_be_imported_gives_the_reason(  # type: ignore[no-untyped-def]
    write, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = Unavailable(
        "omni", "methods/omni.py", "ModuleNotFoundError: No module named 'omnilib'"
    )
    monkeypatch.setitem(METHODS._unavailable, "omni", missing)
    assert write().cells
    words = r"grid.yaml:8: method 'omni' is unavailable: methods/omni.py: ModuleNotFoundError: No"
    with pytest.raises(GridError, match=words):
        write(BASE.replace("[rtn,", "[omni,"))


def test_a_group_size_that_does_not_divide_names_layer_and_sizes(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(GridError, match=r"model\.layers\.0.*groups of 48 do not divide its 64"):
        write(BASE.replace("group_size: 64", "group_size: 48"))
    grid = write(BASE.replace("group_size: 64", "group_size: 48\n  format.tail: true"))
    assert len(grid.cells) == 36


def test_published_figures_by_name_alone_or_with_a_tolerance(write) -> None:  # type: ignore[no-untyped-def]
    name = "bitdistiller-2402.10631"
    short = write(BASE.replace("compare:", f"published: {name}\ncompare:")).file.published
    assert short is not None and (short.name, short.model, short.tolerance) == (name, None, None)
    told = f"published: {{name: {name}, tolerance: {{ppl: 0.1}}}}\ncompare:"
    long = write(BASE.replace("compare:", told)).file.published
    assert long is not None and long.tolerance == {"ppl": 0.1}


@pytest.mark.parametrize(
    ("model", "theirs", "words"),
    [
        ("meta-llama/Llama-2-7b-hf", "LLaMA-2-7B", None),
        ("WizardLM/WizardCoder-Python-7B-V1.0", "WizardCoder-7B", None),
        ("testbed", "LLaMA-2-7B", None),  # the report says so
        ("meta-llama/Llama-2-13b-hf", "LLaMA-2-7B", "figures of 'LLaMA-2-13B' are there"),
        ("mistralai/Mistral-7B-v0.1", "LLaMA-2-7B", "it has none of this model"),
        ("codellama/CodeLlama-7b-hf", "LLaMA-2-7B", "it has none of this model"),
    ],
)
def test_figures_of_another_model_on_the_hub_are_refused(
    tmp_path: Path, model: str, theirs: str, words: str | None
) -> None:
    path = tmp_path / "grid.yaml"
    published = f"published: {{name: bitdistiller-2402.10631, model: {theirs}}}\n"
    path.write_text(BASE.replace("{model}", model) + published)
    document = Document(path, merged=("defaults", "report"))
    file = GridFile.model_validate(document.data)
    if words is None:
        check_names(document, file, [], [])
        return
    with pytest.raises(GridError, match=f"grid.yaml:15: published.model: .*{words}"):
        check_names(document, file, [], [])


def test_a_task_without_options_and_a_negative_seed(write) -> None:  # type: ignore[no-untyped-def]
    text = BASE.replace("[testbed-ppl]", "[{testbed-ppl: }]").replace("[0, 1, 2]", "[-1, 0]")
    assert {cell.seed for cell in write(text).cells} == {-1, 0}


def test_a_report_of_what_the_grid_has(write) -> None:  # type: ignore[no-untyped-def]
    text = BASE.replace("  format.bits: [2, 3]\n", "")
    text = text.replace("objective: [cakld, kl, reverse-kl, jsd]", "format: [{name: nf, bits: 3}]")
    spec = "rows: [format, seed, label, method], over: seed, effect: format, columns: testbed-ppl"
    told = f"report: {{{spec}, decimals: {{testbed-ppl: 1, average: 2}}}}\ncompare:"
    assert write(text.replace("compare:", told)).file.report.effect == "format"
    several = "report: {rows: objective, over: format.bits, decimals: 2, average: []}\ncompare:"
    assert write(BASE.replace("compare:", several)).file.report.over == "format.bits"
    constant = "report: {rows: [model, label, format.group_size]}\ncompare:"  # of a shared base
    assert write(BASE.replace("compare:", constant)).file.report.rows[0] == "model"


def test_code_runs_only_with_leave(write) -> None:  # type: ignore[no-untyped-def]
    text = BASE.replace("[testbed-ppl]", "[testbed_code]")
    assert write(text, allow_code_execution=True).cells
    assert write(text + "allow_code_execution: true\n").cells


def test_hyper_parameters_without_training_are_no_axis_of_rtn(write) -> None:  # type: ignore[no-untyped-def]
    text = BASE.replace("objective: [cakld, kl, reverse-kl, jsd]", "train.lr: [1e-5, 2e-5]")
    cells = write(text).cells
    assert len([cell for cell in cells if cell.label == "RTN"]) == 6
    assert len([cell for cell in cells if cell.label == "BitDistiller"]) == 12


def test_an_objective_without_data_is_refused(write) -> None:  # type: ignore[no-untyped-def]
    text = """\
model: {model}
method: {name: rtn, objective: kl, format.group_size: 64}
evaluate: [testbed-ppl]
"""
    with pytest.raises(GridError, match=r"grid.yaml:2: RTN: objective 'kl' trains, so .* 'train'"):
        write(text)


def test_a_format_axis_leaves_a_compared_format_but_sets_its_bits(write) -> None:  # type: ignore[no-untyped-def]
    text = BASE.replace(
        "format.bits: [2, 3]", "format: [{name: nf, bits: 3}, {name: int-asym, bits: 2}]"
    ).replace("[rtn, awq-clip]", "[{name: rtn, format: int-asym}]")
    formats = {
        (cell.label, cell.model.format.name, cell.model.format.bits)  # type: ignore[attr-defined]
        for cell in write(text).cells
    }
    assert formats == {
        ("BitDistiller", "nf", 3),
        ("BitDistiller", "int-asym", 2),
        ("RTN", "int-asym", 3),
        ("RTN", "int-asym", 2),
    }


def test_a_grid_builds_on_another(write, tmp_path: Path, tiny_folder: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "base.yaml").write_text(BASE.replace("{model}", str(tiny_folder)))
    grid = write("# Twin?\nbase: base.yaml\nvary: {seed: [5]}\ndefaults: {format.bits: 3}\n")
    assert grid.question == "Twin?"
    assert {(c.seed, c.model.format.bits) for c in grid.cells} == {(5, 3)}
    assert all(cell.model.format.group_size == 64 for cell in grid.cells)
    assert [path.name for path in grid.files] == ["grid.yaml", "base.yaml"]
    wrong = BASE.replace("{model}", str(tiny_folder)).replace(": 64", ": x")
    (tmp_path / "base.yaml").write_text(wrong)
    with pytest.raises(GridError, match=r"base.yaml:10: format.group_size: 'x'"):
        write("base: base.yaml\n")


def test_another_teacher(write, tiny_folder: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = tmp_path / "teacher"
    shutil.copytree(tiny_folder, other)
    grid = write(
        BASE.replace("objective: [cakld, kl, reverse-kl, jsd]", f"teacher: [null, {other}]")
    )
    taught = {
        (cell.axes["teacher"], cast(models.Pretrained, stage.teacher).source)
        for cell in grid.cells
        for stage in closure([cell.model])
        if isinstance(stage, Train)
    }
    assert taught == {(None, str(tiny_folder)), (str(other), str(other))}

    words = json.loads((other / "tokenizer.json").read_text())
    last = max(words["model"]["vocab"], key=words["model"]["vocab"].get)
    words["model"]["vocab"]["elsewhere"] = words["model"]["vocab"].pop(last)
    words["model"]["merges"] = [m for m in words["model"]["merges"] if "".join(m) != last]
    (other / "tokenizer.json").write_text(json.dumps(words))
    model_stage._vocabulary.cache_clear()
    models.pretrained.cache_clear()
    with pytest.raises(
        GridError, match=r"grid.yaml:3: BitDistiller: teacher .* differ in vocabulary"
    ):
        write(BASE.replace("objective: [cakld, kl, reverse-kl, jsd]", f"teacher: [{other}]"))


def test_trust_in_remote_code_is_said(write, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    write()
    assert "trust_remote_code" not in capsys.readouterr().err
    write(BASE + "trust_remote_code: true\n")
    assert "trust_remote_code: code that comes with models is run" in capsys.readouterr().err
