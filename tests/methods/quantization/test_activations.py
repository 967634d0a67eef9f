"""What is rounded as a model runs, against plain code in float64 and attention written by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from harness.config.settings import configure
from harness.core.errors import BitgridError, SettingError
from harness.core.stage import Stage, closure, describe_fields
from harness.evaluation.lm_eval_model import CheckedLM
from harness.evaluation.scores import describe_precision
from harness.method import METHODS
from harness.models import Attach, Attachment, Model, pretrained, run_trunk
from harness.models.dry_run import estimate_memory
from methods.quantization.activations import Activations, KVCache
from methods.quantization.formats import FullPrecision, IntAsym
from methods.quantization.inits import Clip
from methods.quantization.online_hadamard import OnlineHadamard
from methods.quantization.rounding import quantize_model
from methods.recipe import Recipe
from methods.training.generation import check_writing, write
from methods.training.masters import Masters
from methods.training.objectives import CE
from methods.training.settings import Training
from methods.training.step import TrainingStep
from tests.methods.conftest import make_llama
from tests.support.memory import build_scoring, build_training

IDS = torch.arange(20).view(2, 10) * 4 + 5


def round_row(row: list[float], bits: int, symmetric: bool) -> list[float]:
    """Plain Python, which computes in float64; rounds halves to even, as torch does."""
    low, high = min(0.0, *row), max(0.0, *row)
    if symmetric:
        first = -(2 ** (bits - 1) - 1)
        last, reach = -first, max(-low, high)
    else:
        first, last, reach = 0, 2**bits - 1, high - low
    step = reach / last or 1.0
    zero = 0 if symmetric else round(-low / step)
    return [(min(max(round(x / step) + zero, first), last) - zero) * step for x in row]


def round_rows(rows: Tensor, bits: int, symmetric: bool) -> Tensor:
    flat = rows.reshape(-1, rows.shape[-1]).tolist()
    found = [round_row(row, bits, symmetric) for row in flat]
    return torch.tensor(found, dtype=rows.dtype).view(rows.shape)


@pytest.fixture(scope="module")
def double() -> Model:
    """Float64, so that no value lies on the other side of a halfway point for another reason."""
    return Model(make_llama().network.double(), make_llama().tokenizer)


@torch.no_grad()
def logits(model: Model, ids: Tensor = IDS, **options: Any) -> Tensor:
    found: Tensor = model.network(ids, use_cache=False, **options).logits
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=9),
    st.integers(2, 8),
    st.booleans(),
)
def test_a_token_is_rounded_as_plain_code_rounds_it(
    row: list[float], bits: int, symmetric: bool
) -> None:
    rows = torch.tensor([row, [-x for x in row]], dtype=torch.float64)
    found = Activations(bits, symmetric).change_input(rows, "")
    wanted = round_rows(rows, bits, symmetric)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-300)
    half = Activations(bits, symmetric).change_input(rows.bfloat16(), "")
    assert half.dtype == torch.bfloat16
    assert all(len(set(each.tolist())) <= 2**bits for each in half)
    step = (rows.amax(-1).clamp(0) - rows.amin(-1).clamp(max=0)) / (2 ** (bits - 1) - 1)
    assert bool(((found - rows).abs() <= step[:, None] / (1 if symmetric else 2) + 1e-9).all())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_token_shares_a_range_over_its_heads(bits: int, symmetric: bool) -> None:
    """Against the formula in float64: LLM-QAT, arXiv 2305.17888, equation 1, for a token's row."""
    keys = torch.randn(2, 3, 5, 4, dtype=torch.float64, generator=torch.manual_seed(0))
    found, _ = KVCache(bits, symmetric, "token").change_cached(keys, keys)
    for at, token in product(range(2), range(5)):
        row = keys[at, :, token]
        if symmetric:
            step = row.abs().max() / (2 ** (bits - 1) - 1)
            wanted = step * (row / step).round()
        else:
            low, high = row.min().clamp(max=0), row.max().clamp(min=0)
            step = (high - low) / (2**bits - 1)
            zero = (-low / step).round()
            wanted = step * (((row / step).round() + zero).clamp(0, 2**bits - 1) - zero)
        torch.testing.assert_close(found[at, :, token], wanted)


def test_labels_tell_how_a_cache_is_rounded_and_older_keys_stay() -> None:
    assert [KVCache(4).label, KVCache(4, True).label, KVCache(4, True, "token").label] == [
        *("KV4", "KV4sym", "KV4sym-token")
    ]
    assert describe_fields(KVCache(4)) == {"bits": 4}


def test_tokens_and_heads_do_not_see_each_other() -> None:
    keys = torch.randn(2, 3, 5, 8)
    keys[0, 1, 2] *= 1000
    found, _ = KVCache(3).change_cached(keys, keys)
    for at in product(range(2), range(3), range(5)):
        one = keys[at][None, None, None]
        assert torch.equal(found[at], KVCache(3).change_cached(one, one)[0][0, 0, 0])


def test_what_is_not_finite_is_not_hidden() -> None:
    for bad, symmetric in product((math.nan, math.inf, -math.inf), (True, False)):
        rows = torch.tensor([[1.0, bad, -2.0], [1.0, 0.5, -2.0]])
        found = Activations(8, symmetric).change_input(rows, "")
        assert bool(found[0].isnan().all()) and bool(found[1].isfinite().all())
    assert not Activations(2).change_input(torch.zeros(3, 4), "").any()


def test_the_gradient_is_passed_on() -> None:
    rows = torch.randn(4, 6, requires_grad=True)
    weights = torch.randn(4, 6)
    (Activations(2).change_input(rows, "") * weights).sum().backward()
    assert rows.grad is not None and torch.equal(rows.grad, weights)


@torch.no_grad()
def run_by_hand(network: LlamaForCausalLM, ids: Tensor, a: int | None, kv: int | None) -> Tensor:
    """The logits of a Llama, its attention and its products written out."""
    config, body = network.config, network.model
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    size, length = config.hidden_size // heads, ids.shape[1]

    def multiply(layer: torch.nn.Module, read: Tensor) -> Tensor:
        return (read if a is None else round_rows(read, a, True)) @ layer.weight.T

    def split(states: Tensor) -> Tensor:
        return states.unflatten(-1, (-1, size)).transpose(1, 2)

    def rotate(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat([-second, first], dim=-1) * sin

    states = body.embed_tokens.weight[ids]
    cos, sin = body.rotary_emb(states, torch.arange(length)[None])
    ahead = torch.ones(length, length, dtype=torch.bool).triu(1)
    for block in body.layers:
        read, attention = block.input_layernorm(states), block.self_attn
        q = rotate(split(multiply(attention.q_proj, read)))
        k = rotate(split(multiply(attention.k_proj, read)))
        v = split(multiply(attention.v_proj, read))
        if kv is not None:
            k, v = round_rows(k, kv, False), round_rows(v, kv, False)
        k, v = (each.repeat_interleave(heads // shared, dim=1) for each in (k, v))
        scores = (q @ k.mT / size**0.5).masked_fill(ahead, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
        states = states + multiply(attention.o_proj, mixed)
        read, mlp = block.post_attention_layernorm(states), block.mlp
        gate, up = multiply(mlp.gate_proj, read), multiply(mlp.up_proj, read)
        states = states + multiply(mlp.down_proj, torch.nn.functional.silu(gate) * up)
    return body.norm(states) @ network.lm_head.weight.T


@pytest.mark.parametrize(("a", "kv"), [(None, None), (8, None), (None, 3), (4, 4)])
def test_a_llama_computes_as_one_written_by_hand(
    double: Model, a: int | None, kv: int | None
) -> None:
    attachments: list[Attachment] = [] if a is None else [Activations(a)]
    attachments += [] if kv is None else [KVCache(kv)]
    wanted = run_by_hand(double.network, IDS, a, kv)
    found = logits(double.attach(*attachments))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    if attachments:
        assert float((logits(double) - wanted).abs().max()) > 0.05


def test_token_by_token_is_as_all_at_once(double: Model) -> None:
    model = double.attach(Activations(6), KVCache(2))
    whole = run_trunk(model.network, IDS)
    cache = DynamicCache(config=model.network.config)
    parts = [
        run_trunk(model.network, part, use_cache=True, past_key_values=cache)
        for part in (IDS[:, :4], *IDS[:, 4:].split(1, dim=1))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-9, atol=1e-9)
    check_writing(model)


def _write_plainly(model: Model, prompt: list[int], length: int) -> Iterator[int]:
    ids = list(prompt)
    while len(ids) < length:
        ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
    yield from ids


def test_a_model_writes_and_answers_with_them(double: Model) -> None:
    model, prompts = double.attach(Activations(4), KVCache(2)), [[1, 9, 30], [1, 50, 8, 77]]
    texts = {}
    for each in (model, double):
        ids, ends = write(
            each,
            prompts,
            torch.full((2,), 99),
            torch.zeros(2, 12),
            temperature=0.0,
            top_p=1.0,
            tell=lambda _: None,
        )
        texts[each is model] = ids
        for prompt, row, end in zip(prompts, ids.tolist(), ends.tolist(), strict=True):
            assert row[:end] == list(_write_plainly(each, prompt, 12))[:end]
    assert not torch.equal(texts[True], texts[False])
    asked = CheckedLM(model, batch_size=2, bos=False)
    assert torch.equal(asked._model_call(IDS), logits(model))
    written = asked._model_generate(IDS[:1], max_length=14, stop=["w3 w3 w3"])
    assert written[0].tolist() == list(_write_plainly(model, IDS[0].tolist(), 14))


@pytest.mark.parametrize(
    ("recomputed", "cache", "label"),
    [
        (False, KVCache(3), "A4KV3"),
        (True, KVCache(3), "A4KV3"),
        (True, KVCache(4, True, "token"), "A4KV4sym-token"),
    ],
)
def test_training_sees_them(
    recomputed: bool, cache: KVCache, label: str, llama: Model, teacher: Model
) -> None:
    training = Training(batch_size=2, dtype="float32", gradient_checkpointing=recomputed)
    student = llama.attach(Activations(4), cache)
    mask = torch.ones_like(IDS, dtype=torch.bool)
    found = {}
    for name, each in (("plain", llama), ("attached", student)):
        masters = Masters.of(each, FullPrecision(), "linears", torch.float32)
        step = TrainingStep(training, CE(), None, masters, None)
        loss, _ = step.compute_gradients([(IDS, mask)])
        labels = IDS[:, 1:].flatten()
        wanted = torch.nn.functional.cross_entropy(logits(each)[:, :-1].flatten(0, 1), labels)
        assert loss == pytest.approx(float(wanted), rel=1e-5)
        found[name] = (loss, masters.build_model())
    assert found["plain"][0] != found["attached"][0]
    trained = found["attached"][1]
    assert trained.latent and trained.attachments == student.attachments
    rounded = quantize_model(trained, IntAsym(bits=4, group_size=32), like=llama)
    rounded.check()
    assert rounded.attachments == student.attachments
    assert describe_precision(rounded).attachments == label
    assert describe_precision(llama).attachments is None


def test_a_label_tells_every_field() -> None:
    every = [
        *(Activations(b, s) for b in range(2, 9) for s in (True, False)),
        *(KVCache(*each) for each in product(range(2, 9), (True, False), ("head", "token"))),
        OnlineHadamard(),
    ]
    assert len({each.label for each in every}) == len(every)
    with pytest.raises(SettingError, match="bits"):
        KVCache(bits=1)


def _attached(root: Stage[Any]) -> list[Stage[Any]]:
    return [stage for stage in closure([root]) if isinstance(stage, Attach)]


def test_a_recipe_gives_them_to_its_student_alone(tiny_folder: Path) -> None:
    base, both = pretrained(str(tiny_folder), "float32"), (Activations(), KVCache())
    plain = Recipe()
    assert not _attached(plain.build(base, 0))
    assert Recipe(format=FullPrecision()).is_reference
    assert not Recipe(format=FullPrecision(), attach=both).is_reference
    told = {"data.length": 64, "data.text": "testbed", "attach": ["activations", "kv-cache"]}
    told |= {"init": {"name": "clip", "text": "testbed"}}
    root = configure(METHODS.find("bitdistiller").method, told).build(base, 0)
    train = next(stage for stage in closure([root]) if stage.kind == "train")
    (given,) = _attached(root)
    assert given.attachments == both  # type: ignore[attr-defined]
    assert train.student is given and given.model.kind == "clipped"  # type: ignore[attr-defined]
    assert not _attached(train.teacher) and not _attached(train.tokens)  # type: ignore[attr-defined]
    for step in replace(plain, attach=both).steps(base, 0):
        assert all(map(_attached, (step.origin, step.before, step.after)))
    with pytest.raises(BitgridError, match="'online-hadamard' changes weights, and init 'clip'"):
        Recipe(init=(Clip(text="testbed"),), attach=(OnlineHadamard(),)).build(base, 0)


@dataclass(frozen=True)
class Hungry(Activations):
    """Takes, for a moment, the memory of 4096 inputs: more than the model and all that it does."""

    name = "test-hungry"

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        return read.repeat(4096, 1, 1)[: len(read)] * 1


def test_estimates_of_memory_count_what_they_take(tiny_folder: Path) -> None:
    base, small = pretrained(str(tiny_folder), "float32"), Training(micro_batch=2, batch_size=2)
    hungry = Attach(base, (Hungry(),))
    for stage in (build_training(base, small, 2, student=hungry), build_scoring(hungry)):
        estimate = estimate_memory(stage)
        assert estimate is not None and estimate.total > 4096 * 4 * 64 * 4  # inputs of 64 channels
