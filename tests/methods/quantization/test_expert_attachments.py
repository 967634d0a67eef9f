"""Attachments on experts that lie in one parameter, against loops over tokens and experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import MixtralExperts

from harness.core.errors import ModelError
from harness.data import Tokens
from harness.evaluation.lm_eval_model import CheckedLM
from harness.evaluation.scores import describe_precision
from harness.models import (
    Attach,
    Attachment,
    Model,
    change_inputs,
    matrices,
    pretrained,
)
from harness.models.dry_run import estimate_memory
from harness.models.rehearsal import rehearse
from harness.testing import make_tokenizer
from methods.quantization.activations import Activations, KVCache
from methods.quantization.formats import FullPrecision, IntAsym
from methods.quantization.online_hadamard import OnlineHadamard, rotate
from methods.quantization.rounding import quantize_model
from methods.quantization.static_activations import InputRanges, StaticActivations
from methods.training.generation import check_writing
from methods.training.masters import Masters
from methods.training.objectives import CE
from methods.training.settings import Training
from methods.training.step import TrainingStep
from tests.support import architectures
from tests.support.memory import build_scoring, build_training

IDS = torch.arange(20).view(2, 10) * 4 + 5
Change = Callable[[Tensor, str], Tensor]  # of what one token reads (I,), by the matrix's name


def make(name: str, dtype: torch.dtype = torch.float64) -> Model:
    """Float64, so that no value lies on the other side of a halfway point for another reason; with
    experts one after the other, which is all that has float64."""
    network = architectures.make(name).to(dtype)
    network.requires_grad_(False)
    if dtype == torch.float64:
        network.set_experts_implementation("eager")
    return Model(network, make_tokenizer())


def run(model: Model, ids: Tensor) -> Tensor:
    found: Tensor = model.network(ids, use_cache=False).logits
    return found


@torch.no_grad()
def logits(model: Model, ids: Tensor = IDS) -> Tensor:
    return run(model, ids)


# --- the reference: each token's experts by themselves --------------------------------------------


def by_rows(
    experts: Any, name: str, change: Change, rows: Tensor, chosen: Tensor, shares: Tensor
) -> Tensor:
    """Experts stored (E, O, I)."""
    result = torch.zeros_like(rows)
    for token, (read, each, share) in enumerate(zip(rows, chosen, shares, strict=True)):
        for expert, part in zip(each.tolist(), share, strict=True):
            both = experts.gate_up_proj[expert] @ change(read, f"{name}.gate_up_proj")
            gate, up = both[: len(both) // 2], both[len(both) // 2 :]
            inner = change(gate * gate.sigmoid() * up, f"{name}.down_proj")
            result[token] += part * (experts.down_proj[expert] @ inner)
    return result


def by_columns(
    experts: Any, name: str, change: Change, rows: Tensor, chosen: Tensor, shares: Tensor
) -> Tensor:
    """Those of gpt-oss: (E, I, O), gate and up in turns, with biases."""
    result = torch.zeros_like(rows)
    for token, (read, each, share) in enumerate(zip(rows, chosen, shares, strict=True)):
        for expert, part in zip(each.tolist(), share, strict=True):
            both = change(read, f"{name}.gate_up_proj") @ experts.gate_up_proj[expert]
            gate, up = (both + experts.gate_up_proj_bias[expert]).view(-1, 2).unbind(-1)
            gate, up = gate.clamp(max=experts.limit), up.clamp(-experts.limit, experts.limit)
            inner = change((up + 1) * gate * (gate * experts.alpha).sigmoid(), f"{name}.down_proj")
            out = inner @ experts.down_proj[expert] + experts.down_proj_bias[expert]
            result[token] += part * out
    return result


def all_at_once(experts: Any, name: str, change: Change, rows: Tensor) -> Tensor:
    """Those of Llama 4: (E, I, O), each token in each expert, zeros where it is not sent."""
    result = []
    for expert, part in enumerate(rows.view(len(experts.gate_up_proj), -1, rows.shape[-1])):
        for read in part:
            gate, up = (change(read, f"{name}.gate_up_proj") @ experts.gate_up_proj[expert]).chunk(
                2
            )
            inner = change(up * gate * gate.sigmoid(), f"{name}.down_proj")
            result.append(inner @ experts.down_proj[expert])
    return torch.stack(result)


REFERENCES = {
    "mixtral": by_rows,
    "qwen3-moe": by_rows,
    "gpt-oss": by_columns,
    "llama4-text": all_at_once,
}


def make_by_hand(name: str, change: Change) -> Model:
    """A model all of whose matrices read what `change` gives."""
    model = make(name)
    for layer, matrix in matrices(model.network).items():
        if matrix.experts:
            where = layer.rpartition(".")[0]
            matrix.module.forward = partial(REFERENCES[name], matrix.module, where, change)
            continue

        def before(_: nn.Module, read: tuple[Tensor], layer: str = layer) -> Tensor:
            rows = [change(row, layer) for row in read[0].flatten(0, -2)]
            return torch.stack(rows).view(read[0].shape)

        matrix.module.register_forward_pre_hook(before)
    return model


def round_by(row: Tensor, step: float, last: int) -> Tensor:
    """To even steps, no more than `last` of them; the gradient passes unchanged."""
    values = [max(-last, min(last, round(x / step))) * step for x in row.tolist()]
    return row + (torch.tensor(values, dtype=row.dtype) - row.detach())


def round_token(row: Tensor, bits: int = 4) -> Tensor:
    """On even steps of its largest magnitude."""
    last = 2 ** (bits - 1) - 1
    return round_by(row, float(row.detach().abs().max()) / last or 1.0, last)


# --- what acts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCES)
def test_experts_read_rounded_activations(name: str) -> None:
    model = make(name)
    attached = model.attach(Activations(4))
    wanted = logits(make_by_hand(name, lambda row, _: round_token(row)))
    torch.testing.assert_close(logits(attached), wanted, rtol=1e-9, atol=1e-9)
    plain = logits(make_by_hand(name, lambda row, _: row))
    torch.testing.assert_close(logits(model), plain, rtol=1e-9, atol=1e-9)
    assert float((logits(model) - wanted).abs().max()) > 0.05
    attached.check()
    assert describe_precision(attached).attachments == "A4"


def _note_ranges(name: str, ids: Tensor, rotated: str) -> dict[str, tuple[float, float]]:
    ranges: dict[str, tuple[float, float]] = {}

    def note(row: Tensor, layer: str) -> Tensor:
        read = rotate(row) if layer.endswith(rotated) else row
        low, high = ranges.get(layer, (0.0, 0.0))
        ranges[layer] = min(low, float(read.min())), max(high, float(read.max()))
        return row

    logits(make_by_hand(name, note), ids)
    return ranges


def _find_ranges(model: Model, work: Path) -> dict[str, tuple[float, float]]:
    found = InputRanges(model, Tokens(IDS, torch.ones_like(IDS).bool()), 100.0).run(work)  # type: ignore[arg-type]
    return {layer: (low, high) for layer, (low, high) in found.items()}


@pytest.mark.parametrize("name", REFERENCES)
def test_ranges_are_of_what_experts_read_once_others_acted(name: str, tmp_path: Path) -> None:
    found = _find_ranges(make(name).attach(OnlineHadamard()), tmp_path)
    wanted = _note_ranges(name, IDS, ".down_proj")
    assert found.keys() == wanted.keys()
    for layer, ends in found.items():
        assert ends == pytest.approx(wanted[layer], rel=1e-9), layer


@pytest.mark.parametrize("name", REFERENCES)
def test_experts_in_one_parameter_share_a_static_range(name: str, tmp_path: Path) -> None:
    model, ranges = make(name), _note_ranges(name, IDS, "nothing")
    found = _find_ranges(model, tmp_path)
    assert found.keys() == ranges.keys()
    for layer, ends in found.items():
        assert ends == pytest.approx(ranges[layer], rel=1e-9), layer

    def clamp(row: Tensor, layer: str) -> Tensor:
        low, high = ranges[layer]
        return round_by(row, max(-low, high) / 7, 7)

    other = IDS.flip(0, 1) + 2  # with values beyond the ranges
    attached = model.attach(StaticActivations(4).told(found))
    wanted = logits(make_by_hand(name, clamp), other)
    torch.testing.assert_close(logits(attached, other), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "layer"), [("mixtral", "down_proj"), ("gpt-oss", "gate_up_proj"), ("dbrx", "w2")]
)
def test_an_online_hadamard_of_experts_changes_nothing_but_what_is_rounded(
    name: str, layer: str
) -> None:
    model, turned = make(name), OnlineHadamard(layer)
    torch.testing.assert_close(logits(model.attach(turned)), logits(model), rtol=1e-9, atol=1e-9)
    # In the order in which they were given: what is rotated is rounded.
    both = logits(model.attach(turned, Activations(4)))
    assert float((both - logits(model.attach(Activations(4)))).abs().max()) > 0.01
    assert torch.equal(both, logits(model.attach(turned).attach(Activations(4))))


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("way", ["grouped_mm", "batched_mm", "fallback"])
def test_it_is_the_same_however_the_library_multiplies(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attached = make(name, torch.float32).attach(Activations(8))
    attached.network.set_experts_implementation("eager")
    wanted = logits(attached)
    if way == "fallback":  # of devices without such a kernel
        monkeypatch.setattr("transformers.integrations.moe._can_use_grouped_mm", lambda *_: False)
    attached.network.set_experts_implementation("grouped_mm" if way == "fallback" else way)
    torch.testing.assert_close(logits(attached), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["dbrx", "jetmoe", "qwen2-moe", "nemotron-h", "zamba"])
def test_every_layout_passes(name: str) -> None:
    plain = make(name, torch.float32)
    assert any(matrix.experts for matrix in matrices(plain.network).values())
    assert not torch.allclose(logits(plain.attach(Activations(4))), logits(plain), atol=1e-2)


def test_products_in_another_way_stop_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def forward(self: Any, rows: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
        both = torch.einsum("eoi,ni->eno", self.gate_up_proj, rows)
        return torch.einsum("eoi,eni->no", self.down_proj, both.chunk(2, dim=-1)[0])

    attached = make("mixtral").attach(Activations())
    monkeypatch.setattr(MixtralExperts, "forward", forward)
    words = r"MixtralModel runs layer model\.layers\.0\.mlp\.experts\.down_proj and 3 more in a way"
    with pytest.raises(ModelError, match=words):
        logits(attached)
    words = r"MixtralExperts multiplies by model\.layers\.0\.mlp\.experts\.gate_up_proj in a way"
    with pytest.raises(ModelError, match=words):  # nor would they be calibrated
        _find_ranges(make("mixtral"), tmp_path)


# --- what holds them ------------------------------------------------------------------------------


def test_forks_and_files_keep_them(tmp_path: Path) -> None:
    model = make("qwen3-moe", torch.float32)
    before, attached = logits(model), model.attach(OnlineHadamard(), Activations(4))
    forked = attached.fork()
    assert torch.equal(logits(forked), logits(attached))
    loaded = Model.load(tmp_path, attached.save(tmp_path))
    assert loaded.attachments == attached.attachments
    assert torch.equal(logits(loaded), logits(attached))
    loaded.check()
    assert torch.equal(logits(model), before)
    for each in forked.network.modules():  # nothing of a fork acts by what it was forked from
        if (held := vars(each).get("forward")) is not None:
            assert held.module is each and all(matrix.module is each for matrix, _ in held.acting)
            held.acting[0][0].replace(held.acting[0][0].weight * 2)
    assert not torch.allclose(logits(forked), logits(attached), atol=1e-2)


def _drop(experts: nn.Module) -> None:
    del experts.forward


def _halve(experts: nn.Module) -> None:
    held = vars(experts)["forward"]
    experts.forward = type(held)(experts, held.acting[:1], held.passes)


def _replace(experts: nn.Module) -> None:
    experts.forward = type(experts).forward.__get__(experts)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_drop, r"experts: what acts on it while it runs is nothing"),
        (_halve, r"is Activations\(.*\) \(input of gate_up_proj\); by"),
        (_replace, "has a `forward` of its own"),
    ],
)
def test_others_than_those_declared_are_refused(
    fault: Callable[[nn.Module], None], words: str
) -> None:
    attached = make("mixtral", torch.float32).attach(Activations())
    fault(attached.network.model.layers[1].mlp.experts)
    with pytest.raises(ModelError, match=words):
        attached.check()


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("recomputed", [False, True])
def test_training_sees_them(name: str, recomputed: bool) -> None:
    """Loss and gradients against those of the reference."""
    student = make(name).attach(Activations(4))
    training = Training(batch_size=2, dtype="float32", gradient_checkpointing=recomputed)
    masters = Masters.of(student, FullPrecision(), "linears", torch.float64)
    step = TrainingStep(training, CE(), None, masters, None)
    loss, _ = step.compute_gradients([(IDS, torch.ones_like(IDS).bool())])
    by_hand = make_by_hand(name, lambda row, _: round_token(row))
    layers = matrices(by_hand.network)
    for matrix in layers.values():
        matrix.stored.requires_grad_(True)
    scores = run(by_hand, IDS)[:, :-1].flatten(0, 1)
    wanted = nn.functional.cross_entropy(scores, IDS[:, 1:].flatten())
    wanted.backward()
    assert loss == pytest.approx(float(wanted.detach()), rel=1e-6)
    for matrix in layers.values():
        found, slopes = masters.weights[matrix.parameter_name].grad, matrix.stored.grad
        assert found is not None and slopes is not None and bool(slopes.any())
        torch.testing.assert_close(found.double(), slopes, rtol=1e-5, atol=1e-6)
    rounded = quantize_model(masters.build_model(), IntAsym(bits=4, group_size=32), like=student)
    rounded.check()
    assert describe_precision(rounded).attachments == "A4"


@dataclass(frozen=True)
class Hungry(Activations):
    """Takes, for a moment, the memory of 4096 inputs of experts."""

    name = "test-hungry-experts"

    def attach(self, network: PreTrainedModel) -> None:
        change_inputs(self, network, [m for m in matrices(network).values() if m.experts])

    def change_input(self, read: Tensor, layer: str) -> Tensor:
        return read.repeat(4096, 1)[: len(read)] * 1


def test_plans_try_and_count_them(tmp_path: Path) -> None:
    base = pretrained(str(architectures.build("qwen3-moe", tmp_path)), "float32")
    small = Training(micro_batch=2, batch_size=2)
    totals: dict[str, list[int]] = {}
    for attachment in (Activations(), StaticActivations(), OnlineHadamard(), Hungry()):
        stage = Attach(base, (attachment,))
        rehearse(stage)
        for each in (build_training(base, small, student=stage), build_scoring(stage)):
            estimate = estimate_memory(each)
            assert estimate is not None
            totals.setdefault(attachment.name, []).append(estimate.total)
    *others, hungry = totals.values()
    inputs = 4096 * 2 * (2 * 64) * 64 * 2  # two experts, the tokens, channels, bytes in bfloat16
    for each in others:
        assert all(mine + inputs / 2 < most for mine, most in zip(each, hungry, strict=True))


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_a_model_writes_and_answers_with_them(name: str) -> None:
    attached: list[Attachment] = [Activations(6), KVCache(4)]
    model = make(name).attach(*attached)
    check_writing(model)
    asked = CheckedLM(model, batch_size=2, bos=False)
    assert torch.equal(asked._model_call(IDS), logits(model))
    written = asked._model_generate(IDS[:1], max_length=14, stop=["w3 w3 w3"])
    ids = IDS[0].tolist()
    while len(ids) < 14:
        ids.append(int(logits(model, torch.tensor([ids]))[0, -1].argmax()))
    assert written[0].tolist() == ids
