"""Ranges found on text, against hooks of this file and plain code in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.core.errors import BitgridError, ModelError, SettingError
from harness.core.stage import Stage, closure
from harness.data import Tokens
from harness.evaluation.lm_eval_model import CheckedLM
from harness.evaluation.scores import describe_precision
from harness.models import Attach, Model, build_attached, find_attachments, matrices, pretrained
from harness.models.dry_run import estimate_memory
from harness.models.rehearsal import rehearse_all
from methods.quantization.activations import Activations, KVCache
from methods.quantization.formats import IntAsym
from methods.quantization.rounding import quantize_model
from methods.quantization.static_activations import InputRanges, StaticActivations
from methods.recipe import Recipe
from methods.training.generation import write
from tests.methods.conftest import make_llama
from tests.support.memory import build_scoring, build_training

IDS = torch.randint(3, 97, (6, 20), generator=torch.manual_seed(3))
TEXT = Tokens(IDS, torch.ones_like(IDS, dtype=torch.bool))
ON_TEXT = StaticActivations(text="testbed", sequences=2, length=16)


def round_value(x: float, low: float, high: float, bits: int, symmetric: bool) -> float:
    """Plain Python: Jacob et al. 2018 (arXiv 1712.05877), equations 1 and 2."""
    first, last = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    step = max(-low, high) / last if symmetric else (high - low) / last
    zero = 0 if symmetric else round(-low / step)
    return (min(max(round(x / step) + zero, first), last) - zero) * step


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=9),
    st.floats(-20, 0, width=32),
    st.floats(1, 20, width=32),
    st.integers(2, 8),
    st.booleans(),
)
def test_a_value_is_rounded_as_plain_code_rounds_it(
    row: list[float], low: float, high: float, bits: int, symmetric: bool
) -> None:
    static = StaticActivations(bits, symmetric, ranges={"a": (low, high), "b": (-1e-3, 1e-3)})
    found = static.change_input(torch.tensor([row, row], dtype=torch.float64), "a")
    wanted = torch.tensor([round_value(x, low, high, bits, symmetric) for x in row]).double()
    assert torch.allclose(found, wanted.expand(2, -1), rtol=1e-6, atol=1e-6)
    half = static.change_input(torch.tensor(row).bfloat16(), "a")
    assert half.dtype == torch.bfloat16 and len(half.unique()) <= 2**bits


def test_gradients_of_clamped_values_are_zero_and_what_is_not_finite_is_not_hidden() -> None:
    static = StaticActivations(4, False, ranges={"a": (-1.0, 2.0)})
    rows = torch.tensor([[-3.0, -0.9, 0.31, 1.9, 7.0]], requires_grad=True)
    static.change_input(rows, "a").backward(torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]))
    assert rows.grad is not None and rows.grad.tolist() == [[0.0, 2.0, 3.0, 4.0, 0.0]]
    found = static.change_input(torch.tensor([math.inf, -math.inf, math.nan, 0.5]), "a")
    assert found.isnan().tolist() == [True, True, True, False]


@torch.no_grad()
def read_inputs(model: Model) -> dict[str, Tensor]:
    """All that each layer reads on the text, in one pass over it: (n,) float64."""
    network, read = model.fork().network, dict[str, Tensor]()
    for name, matrix in matrices(network).items():
        matrix.module.register_forward_pre_hook(
            lambda _, given, name=name: read.update({name: given[0].double().flatten()})
        )
    network(IDS, use_cache=False)
    return read


def _find(model: Model, percentile: float, work: Path) -> dict[str, list[float]]:
    return InputRanges(model, TEXT, percentile).run(work)  # type: ignore[arg-type]


@pytest.mark.parametrize("attachments", [(), (Activations(3), KVCache(2))])
def test_ranges_are_the_ends_of_what_layers_read(
    attachments: tuple[Any, ...], llama: Model, tmp_path: Path
) -> None:
    model = llama.attach(*attachments)
    found, read = _find(model, 100, tmp_path), read_inputs(model)
    assert found.keys() == read.keys() == matrices(llama.network).keys()
    for name, values in read.items():
        wanted = [min(float(values.min()), 0), max(float(values.max()), 0)]
        assert found[name] == pytest.approx(wanted, rel=1e-5), name
    assert _find(model, 100, tmp_path) == found  # from `work`


@pytest.mark.parametrize("percentile", [99.5, 90])
def test_a_percentile_leaves_so_many_values_out_on_either_side(
    percentile: float, llama: Model, tmp_path: Path
) -> None:
    half = Model(make_llama().network.bfloat16(), llama.tokenizer)
    found = _find(half, percentile, tmp_path)
    for name, values in read_inputs(half).items():
        ordered, rank = sorted(values.tolist()), math.ceil(len(values) * percentile / 100)
        assert found[name] == [min(ordered[-rank], 0), max(ordered[rank - 1], 0)], name
        assert found[name][0] > ordered[0] and found[name][1] < ordered[-1]


def _skip(model: Model) -> None:
    model.network.model.layers[1].mlp.forward = lambda states: states * 0.5


def _set_norm(model: Model, factor: float) -> None:
    norm = model.network.model.layers[1].post_attention_layernorm
    norm.weight = torch.nn.Parameter(norm.weight * factor, requires_grad=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_skip, r"layers\.1\.mlp\.\w+ reads nothing on the calibration text, 120 tokens"),
        (
            partial(_set_norm, factor=0.0),
            r"layers\.1\.mlp\.gate_proj reads only zeros on the calibration text",
        ),
        (
            partial(_set_norm, factor=math.inf),
            r"layers\.1\.mlp\.gate_proj: its input has NaN or Inf",
        ),
    ],
)
def test_a_layer_without_a_range_is_refused(
    change: Any, words: str, llama: Model, tmp_path: Path
) -> None:
    model = llama.fork()
    change(model)
    with pytest.raises(ModelError, match=words):
        _find(model, 100, tmp_path)


def _told(llama: Model, tmp_path: Path) -> StaticActivations:
    return replace(ON_TEXT, bits=4).told(_find(llama, 100, tmp_path))


@torch.no_grad()
def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    found: Tensor = model.network(ids, use_cache=False).logits
    return found


def test_a_model_comes_back_with_its_ranges(llama: Model, tmp_path: Path) -> None:
    static = _told(llama, tmp_path)
    attached = quantize_model(llama.attach(static), IntAsym(bits=2, group_size=32), like=llama)
    by_hand = quantize_model(llama, IntAsym(bits=2, group_size=32)).fork()
    for name, matrix in matrices(by_hand.network).items():
        low, high = static.ranges[name]
        step = max(-low, high) / 7
        matrix.module.register_forward_pre_hook(
            lambda _, given, step=step: ((given[0] / step).round().clamp(-7, 7) * step,)
        )
    torch.testing.assert_close(logits(attached), logits(by_hand), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(attached), logits(quantize_model(llama, IntAsym(2, 32))))
    loaded = Model.load(tmp_path / "model", attached.save(tmp_path / "model"))
    loaded.check()
    assert loaded.attachments == (static,)
    assert describe_precision(loaded).attachments == "A4static"
    prompts, drawn = [[1, 9, 30], [1, 50, 8, 77]], torch.zeros(2, 12)
    written = []
    for each in (attached, attached.fork(), loaded):
        assert torch.equal(logits(each), logits(attached))
        asked = CheckedLM(each, batch_size=2, bos=False)
        assert torch.equal(asked._model_call(IDS), logits(attached))
        ends = torch.full((2,), 99)
        written.append(write(each, prompts, ends, drawn, 0.0, 1.0, tell=lambda _: None)[0])
    assert torch.equal(written[0], written[1]) and torch.equal(written[0], written[2])


def test_ranges_and_layers_are_the_same_ones(llama: Model, tmp_path: Path) -> None:
    static = _told(llama, tmp_path)
    first, *others = static.ranges
    with pytest.raises(ModelError, match=f"layer {first} has no range"):
        llama.attach(static.told({name: static.ranges[name] for name in others}))
    with pytest.raises(ModelError, match=r"a range of layer 'layers\.9\.k', which the model has"):
        llama.attach(static.told({**static.ranges, "layers.9.k": (-1, 1)}))
    with pytest.raises(ModelError, match="has no range"):
        llama.attach(ON_TEXT)
    for ends in ((1, 2), (0, 0), (-1, math.inf)):
        with pytest.raises(SettingError, match=r"no range around 0|finite"):
            static.told({first: ends})


def _list(root: Stage[Any], kind: type) -> list[Any]:
    return [stage for stage in closure([root]) if isinstance(stage, kind)]


def test_ranges_are_a_stage_that_bits_share(tiny_folder: Path) -> None:
    base, cache = pretrained(str(tiny_folder), "float32"), KVCache(4)
    root = Recipe(attach=(cache, ON_TEXT, Activations(6))).build(base, 0)
    (ranges,) = _list(root, InputRanges)
    assert ranges.model == Attach(base, (cache,))  # with what stands before it
    assert find_attachments(root) == (cache, ON_TEXT, Activations(6))
    assert build_attached(base, (cache, Activations())) == Attach(base, (cache, Activations()))
    rehearse_all(closure([root]))
    keys = {ranges.key}
    for other in ({"percentile": 99.0}, {"sequences": 3}, {"length": 8}):
        again = Recipe(attach=(cache, replace(ON_TEXT, **other))).build(base, 0)
        keys |= {each.key for each in _list(again, InputRanges)}
    assert len(keys) == 4
    coarse = Recipe(attach=(cache, replace(ON_TEXT, bits=4, symmetric=False))).build(base, 0)
    assert _list(coarse, InputRanges) == [ranges] and coarse.key != root.key


def test_what_cannot_be_found_is_refused_in_the_plan(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder), "float32")
    for static, words in (
        (StaticActivations(), "'static-activations' finds its ranges on calibration text, and no"),
        (replace(ON_TEXT, ranges={"x": (-1, 1)}), "ranges are found on text, and never given"),
    ):
        with pytest.raises(BitgridError, match=words):
            Recipe(attach=(static,)).build(base, 0)


def test_memory_is_estimated_before_there_are_ranges(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder), "float32")
    attached = build_attached(base, (ON_TEXT,))
    for stage in (build_training(base, student=attached), build_scoring(attached)):
        estimate = estimate_memory(stage)
        assert estimate is not None and estimate.total > 0
    (ranges,) = _list(attached, InputRanges)
    found, counted = map(estimate_memory, (ranges, replace(ranges, percentile=99.0)))
    assert found is not None and counted is not None
    weights = 4 * max(sum(p.numel() for p in b.parameters()) for b in _blocks(tiny_folder))
    assert weights < found.total < counted.total


def _blocks(folder: Path) -> list[torch.nn.Module]:
    model = pretrained(str(folder), "float32").run(folder)
    return list(model.network.model.layers)


def test_a_label_tells_what_ranges_are_of() -> None:
    labels = [
        StaticActivations(bits, symmetric, percentile).label
        for bits in (4, 8)
        for symmetric in (True, False)
        for percentile in (100.0, 99.9)
    ]
    assert labels[:4] == ["A4static", "A4static99.9", "A4asym-static", "A4asym-static99.9"]
    assert len(set(labels)) == len(labels)
