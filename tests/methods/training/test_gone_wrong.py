"""Trainings that go wrong: what a record says of NaN, of divergence and of what does not fit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from harness.core.errors import BitgridError, FormatError, ModelError, TextError, TrainingError
from harness.core.stage import listening
from harness.data import Documents, Tokens
from harness.models import Model, matrices
from methods.quantization.formats import FullPrecision, IntAsym
from methods.training.checkpoint import Checkpoints
from methods.training.masters import Masters
from methods.training.objectives import KL, TokenLogits
from methods.training.settings import Training
from methods.training.step import TrainingStep
from tests.methods.training.test_train import FORMAT, make_tokens, rows_of, same, stage, train


def spoilt(model: Model, layer: str, value: float = math.nan) -> Model:
    fork = model.fork()
    linear = matrices(fork.network)[layer]
    weight = linear.weight.detach().clone()
    weight[0, 0] = value
    linear.replace(weight)
    return fork


class _Breaks(nn.Module):
    """An activation that stays finite until it is called for the n-th time."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        return F.silu(x) if self.left >= 0 else F.silu(x) * math.inf


def test_nan_names_step_layer_and_checkpoint(llama: Model, teacher: Model, tmp_path: Path) -> None:
    broken = llama.fork()
    broken.network.model.layers[1].mlp.act_fn = _Breaks(after=7)  # two are spent on checks
    training = Training(
        steps=9, batch_size=4, lr=1e-3, dtype="float32", checkpoint_every=2, micro_batch=4
    )
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, broken, teacher, make_tokens(), training)
    message = str(caught.value)
    assert "step 6" in message
    assert "activations of model.layers.1.mlp.act_fn" in message
    assert "last good checkpoint: step 4" in message
    assert len(rows_of(tmp_path)) == 5


def test_nan_in_weights_teacher_and_gradient(
    llama: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = "model.layers.0.mlp.up_proj"
    for student, guide, message in [
        (spoilt(llama, layer), teacher, f"the weights of {layer}"),
        (llama, spoilt(teacher, layer), f"the teacher's weights of {layer}"),
    ]:
        with pytest.raises(TrainingError, match=f"step 1: {message}.*no checkpoint yet"):
            train(tmp_path, student, guide, make_tokens(), format=FullPrecision())

    def blind(self: KL, logits: TokenLogits) -> Tensor:
        """Does not show what it is given, as a loss with a mask or a maximum may not."""
        assert logits.teacher is not None
        return logits.student.float().square().mean(-1)

    with monkeypatch.context() as patch:
        patch.setattr(KL, "token_losses", blind)
        with pytest.raises(TrainingError, match=f"step 1: the teacher's weights of {layer}"):
            train(tmp_path, llama, spoilt(teacher, layer), make_tokens(), objective=KL())

    class _Cusp(nn.Module):
        """Finite forward, infinite backward."""

        def forward(self, x: Tensor) -> Tensor:
            return x + (x - x.detach()).sqrt()

    bent = llama.fork()
    bent.network.model.layers[1].mlp.act_fn = _Cusp()
    with pytest.raises(TrainingError, match=r"gradient of model\.layers\.1\.mlp\.gate_proj"):
        train(tmp_path, bent, teacher, make_tokens())


def test_an_infinite_divergence_names_the_objective(
    llama: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finite = KL.token_losses
    monkeypatch.setattr(KL, "token_losses", lambda *given: finite(*given) + math.inf)
    with pytest.raises(TrainingError, match="objective 'kl' itself"):
        train(tmp_path, llama, teacher, make_tokens())


WILD = Training(steps=40, batch_size=4, lr=3.0, trained="all", dtype="float32", checkpoint_every=4)


def wild_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A good learning rate until `step`, and WILD's after it."""
    monkeypatch.setattr(
        Training, "learning_rate", lambda self, at, _: self.lr if at >= step else 1e-3
    )


def test_divergence_stops_with_step_losses_layer_and_checkpoint(
    llama: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError) as caught:
        train(tmp_path / "at-once", llama, teacher, make_tokens(), WILD)
    said = str(caught.value)
    losses = [row["loss"] for row in rows_of(tmp_path / "at-once")]
    assert len(losses) == 19
    assert min(losses[1:]) > 50 * losses[0]
    assert said.startswith("training diverged at step 20: the loss is ")
    assert f"and was {losses[0]:.4g} before it began; model.layers." in said
    assert said.endswith(
        "no checkpoint yet; lower lr or raise warmup, or set train.stop_diverged to false"
    )
    # Step 13 is the first whose update breaks the weights, and step 14 the first that shows it.
    wild_after(12, monkeypatch)
    work = tmp_path / "later"
    with pytest.raises(TrainingError, match=r"step 2\d: .* last good checkpoint: step 12;"):
        train(work, llama, teacher, make_tokens(), WILD)
    # What is kept is what a training had that went well: one goes on from it to the same bits.
    wild_after(1000, monkeypatch)
    whole = train(tmp_path / "good", llama, teacher, make_tokens(), WILD)
    assert same(whole, train(work, llama, teacher, make_tokens(), WILD))


def test_the_layer_named_is_the_one_that_moved(llama: Model) -> None:
    masters = Masters.of(llama, FORMAT, "all", torch.float32)
    layer = "model.layers.1.mlp.down_proj"
    with torch.no_grad():
        for weight in masters.weights.values():
            weight *= 1.1
        masters.weights[f"{layer}.weight"] *= -3
    name, far = masters.find_furthest()
    assert (name, far) == (layer, pytest.approx(4.3, rel=1e-5))


def test_a_spike_that_recovers_stops_nothing(
    llama: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And no checkpoint is written while it lasts."""
    gradients, step, held = TrainingStep.compute_gradients, [0], []

    def spiked(self: TrainingStep, micro: Any) -> tuple[float, float]:
        step[0] += 1
        loss, norm = gradients(self, micro)
        return (500.0 if 12 < step[0] <= 21 else loss), norm

    monkeypatch.setattr(TrainingStep, "compute_gradients", spiked)
    save = Checkpoints.save
    monkeypatch.setattr(
        Checkpoints, "save", lambda self, at, *given: (held.append(at), save(self, at, *given))
    )
    training = Training(steps=40, batch_size=4, lr=1e-3, dtype="float32", checkpoint_every=4)
    train(tmp_path, llama, teacher, make_tokens(), training)
    assert held == [4, 8, 21, 24, 28, 32, 36, 40]


def test_who_says_so_trains_on_and_keeps_checkpoints(
    llama: Model, teacher: Model, tmp_path: Path
) -> None:
    wild = replace(WILD, steps=24, stop_diverged=False)
    train(tmp_path, llama, teacher, make_tokens(), wild)
    assert len(rows_of(tmp_path)) == 24
    with safe_open(tmp_path / "checkpoint-24.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["facts"])["step"] == 24
    text = Documents("a", "train")
    keys = {stage(text, text, text, each).key for each in (wild, replace(WILD, steps=24))}  # type: ignore[arg-type]
    assert len(keys) == 1


def test_the_last_steps_checkpoint_is_written_where_its_weights_are_finite(
    llama: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(steps=8, batch_size=4, lr=1e-3, dtype="float32", checkpoint_every=8)
    whole = train(tmp_path / "good", llama, teacher, make_tokens(), training)
    assert (tmp_path / "good" / "checkpoint-8.safetensors").exists()

    def untrained(self: TrainingStep, micro: Any) -> tuple[float, float]:
        raise AssertionError("a step was run again")

    monkeypatch.setattr(TrainingStep, "compute_gradients", untrained)
    assert same(whole, train(tmp_path / "good", llama, teacher, make_tokens(), training))
    monkeypatch.undo()

    monkeypatch.setattr(
        Training, "learning_rate", lambda self, at, of: math.inf if at == of - 1 else 1e-3
    )
    with pytest.raises(ModelError, match="has NaN or Inf"):
        train(tmp_path / "broken", llama, teacher, make_tokens(), training)
    assert not list((tmp_path / "broken").glob("checkpoint*"))


def test_a_resumed_run_decides_alike(
    llama: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although its checkpoint is of step 8, and the first loss is only in the log."""
    wild_after(8, monkeypatch)
    words = []
    for folder, cut in (("whole", 0), ("cut", 14)):

        def stop(done: int, total: int, metrics: Any, cut: int = cut) -> None:
            if done == cut:
                raise KeyboardInterrupt

        if cut:
            with pytest.raises(KeyboardInterrupt), listening(stop):
                train(tmp_path / folder, llama, teacher, make_tokens(), WILD)
        with pytest.raises(TrainingError) as caught:
            train(tmp_path / folder, llama, teacher, make_tokens(), WILD)
        words.append(str(caught.value))
    assert words[0] == words[1]
    assert "last good checkpoint: step 8" in words[0]


def test_misfits_are_said_before_the_first_step(
    llama: Model, teacher: Model, tmp_path: Path
) -> None:
    tokens = make_tokens()
    long = Tokens(torch.zeros(2, 65, dtype=torch.int64), torch.ones(2, 65, dtype=torch.bool))
    strange = Tokens(tokens.ids + 50, tokens.mask)
    empty = Tokens(tokens.ids, torch.zeros_like(tokens.mask))
    bigger = teacher.fork()
    bigger.network.resize_token_embeddings(101)
    copying = llama.fork()

    class Copying(type(llama.network)):  # type: ignore[misc]
        def forward(self, input_ids: Tensor, **options: Any) -> Any:
            out = super().forward(input_ids=input_ids, **options)
            out.logits = out.logits * (1 + input_ids[..., None])
            return out

    copying.network.__class__ = Copying
    for error, message, given in [
        (TextError, "context is 64", (llama, teacher, long)),
        (ModelError, "hold token", (llama, teacher, strange)),
        (TextError, "no label tokens", (llama, teacher, empty)),
        (ModelError, "differ in vocabulary", (llama, bigger, tokens)),
        (ModelError, "more than its last hidden", (copying, teacher, tokens)),
        (BitgridError, "needs a teacher", (llama, None, tokens)),
    ]:
        with pytest.raises(error, match=message):
            train(tmp_path, *given)
    with pytest.raises(FormatError, match="q_proj"):
        train(tmp_path, llama, teacher, tokens, format=IntAsym(bits=2, group_size=48))
    assert not (tmp_path / "metrics.jsonl").exists()
