"""Methods as a newcomer might write them wrongly: each is refused in words, and harms nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from tokenizers import normalizers, processors
from torch import nn

from harness.core.errors import ModelError, ValueChanged
from harness.core.execution import execute
from harness.core.store import Store
from harness.data import Tokens
from harness.method import Apply, Method
from harness.models import Model, Pretrained, Quantized, matrices, pretrained
from harness.run.compute import Failed, Values, compute
from methods.quantization.formats import IntAsym
from methods.quantization.rounding import quantize_model
from tests.support import architectures

Change = Callable[[Model], Any]
Q_PROJ = "model.layers.0.self_attn.q_proj"
FORMAT = IntAsym(2, 32)


def _round(model: Model) -> Model:
    return quantize_model(model, FORMAT)


FAULTS: dict[str, tuple[Change, Change]] = {}  # before rounding, after it


@dataclass(frozen=True)
class Faulty(Method):
    """Rounds, and does something else before or after it."""

    name = "faulty"
    fault: str = ""

    def apply(self, model: Model, calibration: Tokens | None, work: Path) -> Model:
        before, after = FAULTS[self.fault]
        before(model)
        result = _round(model)
        changed = after(result)
        return result if changed is True else changed


@dataclass(frozen=True)
class Declaring(Faulty):
    name = "declaring"
    changes: ClassVar[tuple[str, ...]] = ("*norm.weight",)


@pytest.fixture
def base(tiny_folder: Path) -> Pretrained:
    return pretrained(str(tiny_folder), "float32")


def _name(before: Change = lambda model: None, after: Change = lambda model: True) -> str:
    FAULTS[name := f"fault {len(FAULTS)}"] = before, after
    return name


def _apply(base: Pretrained, **faults: Change) -> Apply:
    return Apply(Faulty(_name(**faults)), base)


def _run(base: Pretrained, work: Path, **faults: Change) -> Model:
    given = execute(base, {}, work)
    result: Model = execute(_apply(base, **faults), {base.key: given}, work)
    return result


def _layer(model: Model, name: str = Q_PROJ) -> Any:
    return model.network.get_submodule(name)


def test_a_sound_method_passes(base: Pretrained, tmp_path: Path) -> None:
    assert _run(base, tmp_path, after=lambda model: True).quantized


TWICE = processors.TemplateProcessing(single="$A $A")


def _words(model: Model) -> torch.Tensor:
    return _layer(model).weight.data.view(torch.int32)


# --- what it was given ----------------------------------------------------------------------------

WRITES: dict[str, tuple[Change, str]] = {
    "data.copy_": (lambda m: _layer(m).weight.data.copy_(torch.zeros(64, 64)), Q_PROJ),
    "data.mul_": (lambda m: _layer(m).weight.data.mul_(2), Q_PROJ),
    "numpy": (lambda m: _layer(m).weight.detach().numpy().__setitem__(0, 1.0), Q_PROJ),
    "one number": (lambda m: _layer(m).weight.data[3, 5:6].add_(1e-3), Q_PROJ),
    "embeddings": (
        lambda m: m.network.get_input_embeddings().weight.data.zero_(),
        "model.embed_tokens",
    ),
    "norm": (lambda m: _layer(m, "model.norm").weight.data.add_(1), "model.norm"),
    "buffer": (
        lambda m: _layer(m, "model.rotary_emb").inv_freq.mul_(2),
        "model.rotary_emb.inv_freq",
    ),
    "every bit": (lambda m: _words(m).copy_(~_words(m)), Q_PROJ),
    "tokenizer": (lambda m: m.tokenizer.add_tokens(["<new>"]), "its tokenizer"),
    "tokenizer, before its vocabulary": (
        lambda m: setattr(m.tokenizer.backend_tokenizer, "normalizer", normalizers.Lowercase()),
        "its tokenizer",
    ),
    "tokenizer, after it": (
        lambda m: setattr(m.tokenizer.backend_tokenizer, "post_processor", TWICE),
        "its tokenizer",
    ),
}


@pytest.mark.parametrize("fault", WRITES)
def test_a_change_to_the_model_that_is_given_is_noticed(
    fault: str, base: Pretrained, tmp_path: Path
) -> None:
    change, part = WRITES[fault]
    with pytest.raises(ValueChanged, match=rf"method faulty changed {part}.*was given"):
        _run(base, tmp_path, before=change, after=lambda model: True)


def test_it_is_noticed_too_where_the_method_then_fails(base: Pretrained, tmp_path: Path) -> None:
    def fail(model: Model) -> None:
        _layer(model).weight.data.zero_()
        raise KeyError("gone")

    with pytest.raises(ValueChanged, match="faulty changed"):
        _run(base, tmp_path, before=fail)


def test_others_compute_with_what_was_published(
    base: Pretrained, tiny_folder: Path, tmp_path: Path
) -> None:
    """In the same process, after the fault; the user's files are untouched."""
    files = sorted(tiny_folder.glob("*.safetensors"))
    digests = [hashlib.sha256(path.read_bytes()).digest() for path in files]
    values = Values(Store(tmp_path / "store"))
    clean = {name: t.clone() for name, t in values.of(base).network.state_dict().items()}
    stage = _apply(base, before=lambda m: _layer(m).weight.data.zero_(), after=lambda m: True)
    with pytest.raises(ValueChanged):
        compute(stage, values)
    assert not values.store.has(stage.key)
    again = values.of(base).network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in clean.items())
    assert [hashlib.sha256(path.read_bytes()).digest() for path in files] == digests


# --- what comes back from the store ---------------------------------------------------------------


class _Doubled(nn.Linear):
    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


def _swap_class(model: Model) -> bool:
    _layer(model).__class__ = _Doubled
    return True


def _swap_for_namesake(model: Model) -> bool:
    _layer(model).__class__ = type("Linear", (_Doubled,), {"__module__": __name__})
    return True


def _hang_on(register: str) -> Change:
    return lambda model: bool(getattr(_layer(model), register)(lambda *_: None)) or True


def _set(model: Model, module: str, name: str, thing: Any) -> bool:
    setattr(_layer(model, module), name, thing)
    return True


def _parametrize(model: Model) -> bool:
    nn.utils.parametrize.register_parametrization(_layer(model), "weight", nn.Identity())
    return True


KEPT: dict[str, tuple[Change, str]] = {
    "forward hook": (_hang_on("register_forward_hook"), f"layer {Q_PROJ} has a forward hook"),
    "pre-hook": (_hang_on("register_forward_pre_hook"), f"layer {Q_PROJ} has a forward pre-hook"),
    "class": (_swap_class, f"layer {Q_PROJ} is a _Doubled in place of a Linear"),
    "class of the same name": (
        _swap_for_namesake,
        f"layer {Q_PROJ} is a {__name__}.Linear in place",
    ),
    "parametrization": (_parametrize, f"has a new parameter {Q_PROJ}.parametrizations"),
    "call": (
        lambda m: _set(m, "model.layers.0.mlp", "_call_impl", lambda states: 3 * states),
        "layer model.layers.0.mlp has a `_call_impl` of its own",
    ),
    "forward": (
        lambda m: _set(m, Q_PROJ, "forward", lambda states: states),
        f"layer {Q_PROJ} has a `forward` of its own",
    ),
    "attribute": (
        lambda m: _set(m, "model.layers.1.self_attn", "scaling", 9.0),
        "model.layers.1.self_attn: its scaling is 9.0",
    ),
    "activation": (
        lambda m: _set(m, "model.layers.1.mlp", "act_fn", nn.Tanh()),
        "model.layers.1.mlp.act_fn is a Tanh",
    ),
    "buffer": (
        lambda m: _layer(m).register_buffer("extra", torch.ones(2)) is None,
        f"tensor {Q_PROJ}.extra is not of the model's configuration",
    ),
    "module": (
        lambda m: _layer(m, "model").add_module("adapter", nn.Linear(2, 2)) is None,
        "`apply` returned has a new parameter model.adapter.bias",
    ),
    "empty module": (
        lambda m: _layer(m, "model").add_module("adapter", nn.Identity()) is None,
        "layer model.adapter, a Identity, is not of the model's configuration",
    ),
}


@pytest.mark.parametrize("fault", KEPT)
def test_what_its_files_would_not_keep_is_refused_before_it_is_scored(
    fault: str, base: Pretrained, tmp_path: Path
) -> None:
    change, words = KEPT[fault]
    with pytest.raises(ModelError) as raised:
        _run(base, tmp_path, after=change)
    assert words in str(raised.value) and "method faulty" in str(raised.value)


def test_a_value_whose_files_give_back_another_is_not_stored(
    base: Pretrained, tmp_path: Path
) -> None:
    """Here a buffer that is computed anew from the configuration."""
    values = Values(Store(tmp_path / "store"))

    def change(model: Model) -> bool:
        rotary = _layer(model, "model.rotary_emb")
        rotary.inv_freq = rotary.inv_freq * 2
        return True

    stage = _apply(base, after=change)
    with pytest.raises(ValueChanged, match=r"inv_freq of its model does not come back"):
        compute(stage, values)
    assert not values.store.has(stage.key)


def test_what_is_stored_comes_back_the_same(base: Pretrained, tmp_path: Path) -> None:
    values, stage = Values(Store(tmp_path / "store")), _apply(base, after=lambda m: True)
    written = compute(stage, values)
    assert values.store.load(stage).fingerprint() == written.fingerprint()


# --- what `apply` returns -------------------------------------------------------------------------


def _replace(model: Model, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    module, _, leaf = name.rpartition(".")
    old = model.network.get_parameter(name)
    setattr(_layer(model, module), leaf, nn.Parameter(change(old.detach().clone()), False))
    model.network.tie_weights()
    return True


def _record(model: Model, layer: str, record: Quantized | None) -> bool:
    if record is None:
        del model.quantized[layer]
    else:
        model.quantized[layer] = record
    return True


def _five_levels(model: Model) -> bool:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight[7, 32:64] = torch.arange(32) % 5
        return weight

    return _replace(model, f"{Q_PROJ}.weight", change)


def _with_nan(weight: torch.Tensor) -> torch.Tensor:
    weight[0, 0] = torch.nan
    return weight


RETURNED: dict[str, tuple[Change, str]] = {
    "None": (lambda m: None, "`apply` should return a Model, and returned None"),
    "network": (lambda m: m.network, "should return a Model, and returned a LlamaForCausalLM"),
    "latent": (lambda m: m.fork(latent=True), "latent weights"),
    "NaN": (
        lambda m: _replace(m, f"{Q_PROJ}.weight", _with_nan),
        f"{Q_PROJ}.weight has NaN or Inf",
    ),
    "dtype": (
        lambda m: _replace(m, f"{Q_PROJ}.weight", lambda w: w.half()),
        "was (64, 64) torch.float32; `apply` returned it as (64, 64) torch.float16",
    ),
    "shape": (
        lambda m: _replace(m, f"{Q_PROJ}.weight", lambda w: w[:, :32]),
        "returned it as (64, 32)",
    ),
    "five levels": (
        _five_levels,
        f"layer {Q_PROJ}: a group of 32 has 5 values or more, where 2 bits hold 4",
    ),
    "unrecorded": (
        lambda m: _record(m, Q_PROJ, None),
        f"`apply` changed layer {Q_PROJ}, which `quantized` lacks",
    ),
    "no such layer": (
        lambda m: _record(m, "model.layers.9.q", Quantized("int-asym", 2, 32, 2.6)),
        "`quantized` has a layer 'model.layers.9.q', which the model has not",
    ),
    "too few bits": (
        lambda m: _record(m, Q_PROJ, Quantized("int-asym", 2, 32, 1.5)),
        "1.5 bits a weight, scales counted, is less than its 2 bits",
    ),
    "finer than it says": (
        lambda m: _record(m, Q_PROJ, Quantized("int-asym", 1, 32, 1.6)),
        "where 1 bits hold 2",
    ),
    "wider groups than it has": (
        lambda m: _record(m, Q_PROJ, Quantized("int-asym", 2, 0, 2.3)),
        f"layer {Q_PROJ}: a row has",
    ),
    "norm": (
        lambda m: _replace(m, "model.norm.weight", lambda w: w + 1),
        "`apply` changed model.norm.weight, which is no matrix of the blocks",
    ),
    "embeddings": (
        lambda m: _replace(m, "model.embed_tokens.weight", lambda w: w + 1),
        "`apply` changed model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("fault", RETURNED)
def test_what_apply_returns_is_checked(fault: str, base: Pretrained, tmp_path: Path) -> None:
    change, words = RETURNED[fault]
    with pytest.raises(ModelError) as raised:
        _run(base, tmp_path, after=change)
    assert words in str(raised.value) and "method faulty" in str(raised.value)


def test_what_a_class_declares_may_change(base: Pretrained, tmp_path: Path) -> None:
    given = execute(base, {}, tmp_path)

    def run(parameter: str) -> Model:
        fault = _name(after=lambda m: _replace(m, parameter, lambda w: w + 1))
        stage = Apply(Declaring(fault), base)
        result: Model = execute(stage, {base.key: given}, tmp_path)
        return result

    assert run("model.norm.weight").quantized
    with pytest.raises(ModelError, match="declares it on its class"):
        run("model.embed_tokens.weight")


def test_experts_are_checked_one_by_one(tmp_path: Path) -> None:
    base = pretrained(str(architectures.build("mixtral", tmp_path / "model")), "float32")
    assert _run(base, tmp_path, after=lambda m: True).quantized
    name = "model.layers.1.mlp.experts.down_proj"

    def change(stored: torch.Tensor) -> torch.Tensor:
        stored[3, 5, :32] = torch.arange(32.0)
        return stored

    with pytest.raises(ModelError, match=rf"layer {name}: a group of 32 has 5 values"):
        _run(base, tmp_path, after=lambda m: _replace(m, name, change))
    assert name in matrices(_run(base, tmp_path, after=lambda m: True).network)


@dataclass(frozen=True)
class Unstored(Apply):
    kind: ClassVar[str] = "test-faulty-unstored"
    stored: ClassVar[bool] = False


def test_a_rebuilt_value_that_changes_its_input_fails_too(base: Pretrained, tmp_path: Path) -> None:
    values = Values(Store(tmp_path / "store"))

    fault = _name(before=lambda m: _layer(m).weight.data.zero_())
    stage = Unstored(Faulty(fault), base)
    with pytest.raises(Failed, match="changed model"):
        values.of(stage)
    assert values.held == {}
