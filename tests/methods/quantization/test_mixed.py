"""A format that differs by layer: what each layer holds, what is counted, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from harness.config.settings import configure
from harness.core.component import Changes
from harness.core.errors import FormatError, GridError, SettingError
from harness.core.records import Precision
from harness.core.stage import Stage, closure, identify, to_canonical_json
from harness.core.store import Store
from harness.data import Tokens
from harness.evaluation.scores import describe_precision
from harness.grid.expand import Grid, load
from harness.models import Model, find_ends, matrices, pretrained
from harness.run.export import export
from harness.run.plan import build
from harness.run.runner import run
from methods.quantization import clip
from methods.quantization.awq import ScaleSearch
from methods.quantization.formats import Format, FullPrecision, Grouped, IntAsym, IntSym
from methods.quantization.gptq import GPTQ
from methods.quantization.inits import Clipped, ClipSearch
from methods.quantization.mixed import Mixed
from methods.quantization.rounding import RoundBlocks, find_rounded, quantize_model
from methods.recipe import Recipe
from methods.training.masters import Masters
from methods.training.train import Train
from tests.harness.run.test_run import Silent
from tests.methods.conftest import make_llama
from tests.support.stages import execute_alone

LAYERS: Mapping[str, Any] = {
    "*.down_proj": Changes({"bits": 4}),
    "model.layers.0.*": FullPrecision(),
    "*.q_proj": IntSym(3, 16),
}
MIXED = Mixed(IntAsym(2, 32), LAYERS)


def _expect(name: str) -> Format:
    """The format of a layer of `MIXED`, written out."""
    if name.endswith("down_proj"):
        return IntAsym(4, 32)
    if name.startswith("model.layers.0."):
        return FullPrecision()
    return IntSym(3, 16) if name.endswith("q_proj") else IntAsym(2, 32)


def _tokens(rows: int = 8, length: int = 32) -> Tokens:
    ids = torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(0))
    return Tokens(ids, torch.ones_like(ids, dtype=torch.bool))


def test_the_first_pattern_that_matches_wins(llama: Model) -> None:
    for name in matrices(llama.network):
        assert MIXED.of(name) == _expect(name), name
    other = Mixed(IntAsym(2, 32), dict(reversed(LAYERS.items())))
    assert other.of("model.layers.0.mlp.down_proj") == FullPrecision()
    assert IntAsym(2).of("anything") == IntAsym(2)


def test_each_layer_is_rounded_to_its_own_and_bits_are_their_mean(llama: Model) -> None:
    rounded = quantize_model(llama, MIXED)
    total = bits = 0.0
    for name, matrix in matrices(rounded.network).items():
        before, after = llama.network.get_submodule(name).weight, matrix.weight
        assert isinstance(before, Tensor)
        expected = _expect(name)
        assert torch.equal(after, expected.quantize(before)), name
        outputs, inputs = before.shape
        # Codes, and 16 bits of a scale a group, with the bits of a zero point where there is one.
        group, extra = getattr(expected, "group_size", 0), {"int-asym": 16, "int-sym": 16}
        own = 32.0 * outputs * inputs  # as it is, in float32
        if isinstance(expected, Grouped):
            zero = expected.bits if expected.name == "int-asym" else 0
            groups = outputs * inputs / group
            own = outputs * inputs * expected.bits + groups * (extra[expected.name] + zero)
        bits, total = bits + own, total + outputs * inputs
    assert rounded.bits_per_weight() == pytest.approx(bits / total)
    assert rounded.quantized.keys() == {
        name for name in matrices(llama.network) if isinstance(_expect(name), Grouped)
    }
    nominal = {n: getattr(_expect(n), "bits", 16) for n in matrices(llama.network)}
    sizes = {n: m.weight.numel() for n, m in matrices(llama.network).items()}
    mean = sum(sizes[n] * nominal[n] for n in sizes) / sum(sizes.values())
    assert describe_precision(rounded).bits == pytest.approx(mean, abs=0.005)
    assert describe_precision(quantize_model(llama, IntAsym(2, 32))).bits == 2
    rounded.check()
    again = quantize_model(rounded, MIXED)
    assert torch.equal(*(m.network.model.layers[1].mlp.down_proj.weight for m in (rounded, again)))


def test_what_is_left_in_16_bits_counts_as_16() -> None:
    half = make_llama()
    half.network.to(torch.bfloat16)
    only = Mixed(FullPrecision(), {"*.down_proj": IntAsym(4, 0)})
    sizes = {n: m.weight.shape for n, m in matrices(half.network).items()}
    bits = sum(
        o * i * (4 + 20 / i if name.endswith("down_proj") else 16) for name, (o, i) in sizes.items()
    )
    expected = bits / sum(o * i for o, i in sizes.values())
    assert quantize_model(half, only).bits_per_weight() == pytest.approx(expected)


def test_embeddings_and_head_are_rounded_where_they_are_named(llama: Model) -> None:
    for layers in ({}, {"*": IntAsym(3, 32)}):
        rounded = quantize_model(llama, Mixed(IntAsym(2, 32), layers))
        for end in find_ends(llama.network):
            ours, theirs = (m.network.get_submodule(end).weight for m in (rounded, llama))
            assert torch.equal(ours, theirs)
        assert describe_precision(rounded).ends is None
    head = quantize_model(llama, Mixed(IntAsym(2, 32), {"*": FIRST, "lm_head": IntSym(8, 64)}))
    weight = llama.network.lm_head.weight
    assert torch.equal(head.network.lm_head.weight, IntSym(8, 64).quantize(weight))


FIRST = IntAsym(3, 32)  # of a wildcard that comes first, and is not about the head


def test_the_row_says_that_the_head_is_rounded_and_counts_it_apart(llama: Model) -> None:
    rounded = quantize_model(llama, Mixed(IntAsym(2, 32), {"lm_head": Changes({"bits": 8})}))
    weight = llama.network.lm_head.weight
    assert torch.equal(rounded.network.lm_head.weight, IntAsym(8, 32).quantize(weight))
    assert torch.equal(
        rounded.network.model.embed_tokens.weight, llama.network.model.embed_tokens.weight
    )
    precision: Precision = describe_precision(rounded)
    body, head = 2 + 18 / 32, 8 + 24 / 32
    assert (precision.bits, precision.bits_per_weight) == (2, round(body, 4))
    count = sum(m.weight.numel() for m in matrices(llama.network).values())
    mean = (count * body + weight.numel() * head) / (count + weight.numel())
    assert precision.ends == (
        f"lm_head to int-asym of 8 bits, 8.75 a weight; {mean:.4g} a weight with the blocks"
    )
    rounded.check()


def test_tied_ends_are_one_parameter(llama: Model) -> None:
    tied = llama.fork()
    tied.network.lm_head.weight = tied.network.model.embed_tokens.weight
    rounded = quantize_model(tied, Mixed(IntAsym(2, 32), {"lm_head": IntAsym(8, 32)}))
    network = rounded.network
    assert network.lm_head.weight is network.model.embed_tokens.weight
    assert torch.equal(network.lm_head.weight, IntAsym(8, 32).quantize(tied.network.lm_head.weight))
    ends = describe_precision(rounded).ends
    assert ends is not None and "model.embed_tokens to" in ends and "(one parameter)" in ends
    both = {"lm_head": IntAsym(8, 32), "model.embed_tokens": IntAsym(4, 32)}
    with pytest.raises(FormatError, match="are one parameter: give both one format"):
        quantize_model(tied, Mixed(IntAsym(2, 32), both))


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({"*.dwn_proj": 1}, r"'\*.dwn_proj' matches no layer; did you mean '\*.down_proj'"),
        (
            {"model.layers.0.mlp.dwn_proj": 1},
            "matches no layer; did you mean 'model.layers.0.mlp.down_proj'",
        ),
        ({"lm_hed": 1}, "'lm_hed' matches no layer; did you mean 'lm_head'"),
        ({"lm_*": 1}, r"'lm_\*' matches no layer"),
        (
            {"model.layers.*": 1, "*.down_proj": 1},
            r"'\*\.down_proj' decides no layer, since 'model\.layers\.\*' stands before it",
        ),
    ],
)
def test_a_pattern_that_decides_nothing_is_an_error(
    llama: Model, layers: dict[str, int], words: str
) -> None:
    with pytest.raises(FormatError, match=words):
        find_rounded(llama.network, Mixed(IntAsym(2, 32), dict.fromkeys(layers, IntAsym(4, 32))))


def test_a_mapping_without_a_name_changes_the_default_whenever_that_changes() -> None:
    given = {
        "name": "mixed",
        "default": {"name": "int-asym", "group_size": 64},
        "layers": LAYERS_OF,
    }
    made = configure(Recipe(), {"format": given})
    assert made.format.of("a.down_proj") == IntAsym(4, 64)
    later = configure(made, {"format.default.group_size": 32})
    assert later.format.of("a.down_proj") == IntAsym(4, 32)
    assert later.format.of("lm_head") == FullPrecision()
    for layers, path, words in [
        ({"a.b": {"bit": 4}}, "format.layers.a.b.bit", "no such field; did you mean 'bits'"),
        ({"a.b": {"bits": "x"}}, "format.layers.a.b.bits", "'x' should be a whole number"),
        ({"a.b": {"bits": 5}}, "format.layers.a.b", "int-asym has no 5-bit form"),
        ({"a": {"name": "int", "bits": 4}}, "format.layers.a", "'int' is unknown"),
        ({"a": {"name": "mixed"}}, "", "has no mixed one inside"),
    ]:
        with pytest.raises(SettingError) as caught:
            configure(made, {"format.layers": layers})
        assert words in str(caught.value) and caught.value.path in (path, "format"), layers
        assert not path or caught.value.path == path


LAYERS_OF = {"*.down_proj": {"bits": 4}, "lm_head": "none"}


def test_keys_tell_layers_and_their_order_apart_and_stages_come_back(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder), "auto")
    keys = set()
    for layers in (LAYERS, dict(reversed(LAYERS.items())), {**LAYERS, "*.q_proj": IntSym(3, 32)}):
        stage = Recipe(format=Mixed(IntAsym(2, 32), layers)).build(base, 0)
        keys.add(stage.key)
        made: dict[str, Stage[Any]] = {}
        for each in closure([stage]):
            described = json.loads(to_canonical_json(each.description()))
            made[each.key] = Stage.from_description(described, made)
        again: Any = made[stage.key]
        assert again.key == stage.key and hash(again) == hash(stage)
        name = "model.layers.1.mlp.down_proj"
        assert again.format.of(name) == IntAsym(4, 32)
    assert len(keys) == 3
    assert "mapping" in to_canonical_json(identify(MIXED))


@dataclass(frozen=True)
class _Base(Stage[Any]):
    kind: ClassVar[str] = "test-mixed-base"


@dataclass(frozen=True)
class _Text(Stage[Any]):
    kind: ClassVar[str] = "test-mixed-text"


def _run(stage: Stage[Any], model: Model, **more: Any) -> Any:
    return execute_alone(stage, {_Base().key: model, _Text().key: _tokens(), **more})


def test_searches_take_each_layer_at_its_own_format(llama: Model) -> None:
    found = _run(ClipSearch(_Base(), _Text(), MIXED, 4, 2, 64), llama)
    plain = _run(ClipSearch(_Base(), _Text(), IntAsym(4, 32), 4, 2, 64), llama)
    name = "model.layers.1.mlp.down_proj"
    assert torch.equal(found.low[name], plain.low[name])
    searchable = clip.find_searchable(llama)
    assert found.low.keys() == {n for n in searchable if isinstance(_expect(n), Grouped)}
    clipping = Clipped(_Base(), ClipSearch(_Base(), _Text(), MIXED, 4, 2, 64), MIXED)
    clipped = _run(clipping, llama, **{ClipSearch(_Base(), _Text(), MIXED, 4, 2, 64).key: found})
    low = clipped.network.get_submodule(name).weight.view(64, -1, 32).amin(-1)
    assert torch.equal(low, found.low[name])
    scales = _run(ScaleSearch(_Base(), _Text(), MIXED, 4, 64), llama)
    four = _run(ScaleSearch(_Base(), _Text(), IntAsym(4, 32), 4, 64), llama)
    writer = next(w for w, layers in scales.layers.items() if layers == [name])
    assert scales.exponents[writer] == four.exponents[writer]
    # Nothing reads these but layers that stay as they are, so no scale is better than another.
    first = next(w for w, names in scales.layers.items() if "model.layers.0.mlp.up_proj" in names)
    assert scales.exponents[first] == 0


def test_rounding_by_blocks_leaves_out_what_stays(llama: Model) -> None:
    format = Mixed(IntAsym(2, 32), {**LAYERS, "lm_head": IntAsym(8, 32)})
    model = _run(RoundBlocks(_Base(), _Base(), _Text(), format, GPTQ()), llama)
    for name, matrix in matrices(model.network).items():
        before, after = llama.network.get_submodule(name).weight, matrix.weight
        assert torch.equal(before, after) == isinstance(_expect(name), FullPrecision), name
    assert model.quantized["lm_head"].bits == 8
    model.check()  # levels of every group


def test_training_computes_with_each_layer_as_it_will_be_rounded(llama: Model) -> None:
    masters = Masters.of(llama, MIXED, "body", torch.float32)
    masters.requantize()
    rounded = matrices(quantize_model(llama, MIXED).network)
    for name, matrix in matrices(masters.network).items():
        assert torch.equal(matrix.weight, rounded[name].weight), name


GRID = """
model: {model}
method:
  name: rtn
  format: {name: mixed, default: {name: int-asym, group_size: 32}, layers: {layers}}
vary: {format.default.bits: [2, 3]}
evaluate: [testbed-ppl]
"""


def _load(folder: Path, model: Path, layers: str, **changes: str) -> Grid:
    text = GRID.replace("{model}", str(model)).replace("{layers}", layers)
    for old, new in changes.items():
        text = text.replace(old, new)
    (folder / "grid.yaml").write_text(text)
    return load(folder / "grid.yaml")


def test_a_grid_of_mixed_formats_is_planned_or_refused(tmp_path: Path, tiny_folder: Path) -> None:
    grid = _load(tmp_path, tiny_folder, "{'*.down_proj': {bits: 4}, lm_head: {bits: 8}}")
    formats = [cell.model.format for cell in grid.cells]  # type: ignore[attr-defined]
    assert [each.default.bits for each in formats] == [2, 3]
    assert {each.of("a.down_proj") for each in formats} == {IntAsym(4, 32)}
    assert {each.of_end("lm_head") for each in formats} == {IntAsym(8, 32)}
    for layers, words in [
        ("{'*.dwn_proj': none}", "'*.dwn_proj' matches no layer; did you mean '*.down_proj'?"),
        ("{'*.down_proj': {group_size: 48}}", "layer model.layers.0.mlp.down_proj: groups of 48"),
        ("{lm_head: {group_size: 48}}", "layer lm_head: groups of 48"),
        ("{'*.up_proj': {bit: 3}}", "format.layers.*.up_proj.bit: 'int-asym' has no such field"),
    ]:
        with pytest.raises(GridError) as caught:
            _load(tmp_path, tiny_folder, layers)
        assert "grid.yaml:" in str(caught.value) and words in str(caught.value)


def test_what_is_said_of_formats_is_said_of_the_default(tmp_path: Path, tiny_folder: Path) -> None:
    """A group size of all formats, and how a method's gradients pass, reach a mixed one too."""
    (tmp_path / "grid.yaml").write_text(
        f"model: {tiny_folder}\nmethod:\n  name: bitdistiller\n"
        "  format: {name: mixed, layers: {'*.down_proj': {bits: 4}}}\n"
        "defaults: {format.group_size: 32, init: none, data.text: testbed, data.length: 64}\n"
        "vary: {format.bits: [2, 3]}\nevaluate: [testbed-ppl]\n"
        "compare:\n"
        "- {name: rtn, format: {name: mixed, default: {name: int-asym, group_size: 16}}}\n"
        "- {name: rtn, label: Four, format: {name: mixed, default: {bits: 4}}}\n"
    )
    grid = load(tmp_path / "grid.yaml")
    points = {cell.id: cell.model for cell in grid.cells}
    trained = [
        next(stage.format for stage in closure([model]) if isinstance(stage, Train))
        for name, model in points.items()
        if "BitDistiller" in name
    ]
    inside = [IntAsym(bits, 32, gradient="through-range") for bits in (2, 3)]
    assert [each.of("a") for each in trained] == inside
    assert {each.of("a.down_proj") for each in trained} == {
        IntAsym(4, 32, gradient="through-range")
    }
    rounded = [model.format.of("a") for name, model in points.items() if "RTN" in name]  # type: ignore[attr-defined]
    assert rounded == [IntAsym(2, 16), IntAsym(3, 16)]
    # A compared method keeps what it says itself: the axis collapses.
    four = {(c.id, c.model.format.of("a")) for c in grid.cells if c.label == "Four"}  # type: ignore[attr-defined]
    assert four == {("Four seed=0", IntAsym(4, 32))}


def test_a_head_is_not_rounded_by_what_trains(tmp_path: Path, tiny_folder: Path) -> None:
    data = "llm-qat\n  data: ground-truth\n  data.text: testbed\n  data.length: 64"
    with pytest.raises(GridError, match="'lm_head': training rounds what is inside the blocks"):
        _load(tmp_path, tiny_folder, "{lm_head: {bits: 8}}", rtn=data)


def test_a_mixed_model_is_made_trained_and_evaluated(tmp_path: Path, tiny_folder: Path) -> None:
    trained = (
        "{name: llm-qat, format: {name: mixed, default: {name: int-asym, group_size: 32}, layers: "
        "{'*.down_proj': {bits: 4}}}, data: ground-truth, data.text: testbed, data.length: 32, "
        "data.sequences: 4, train.steps: 1, train.batch_size: 2, train.micro_batch: 2}"
    )
    grid = _load(
        tmp_path,
        tiny_folder,
        "{'*.down_proj': {bits: 4}, lm_head: {bits: 8}}",
        **{"vary: {format.default.bits: [2, 3]}": f"compare: [{trained}]"},
        **{"[testbed-ppl]": "[{testbed-ppl: {limit: 1, window: 32}}]"},
    )
    plan, store = build(grid), Store(tmp_path / "store")
    assert not run(plan, store, Silent()).failed
    export(plan, store, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/rows.jsonl").open()]
    assert [row["label"] for row in rows] == ["RTN", "LLM-QAT"]
    # Attention 2 * (64*64 + 32*64), gate and up 2 * 128*64 at 2 bits; down 64*128 at 4 bits.
    low, high = 2 * (64 * 64 + 32 * 64) + 2 * 128 * 64, 64 * 128
    mean = (low * (2 + 18 / 32) + high * (4 + 20 / 32)) / (low + high)
    assert {row["bits_per_weight"] for row in rows} == {round(mean, 4)}
    assert {row["bits"] for row in rows} == {round((low * 2 + high * 4) / (low + high), 2)}
    assert rows[1]["ends"] is None
    assert "lm_head to int-asym of 8 bits" in rows[0]["ends"]
    assert all(math.isfinite(row["value"]) for row in rows)
