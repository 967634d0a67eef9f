"""Objectives that see blocks against plain autograd on whole tensors, in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import methods.training.forward
import methods.training.rehearsal
from harness.core.errors import BitgridError, ModelError
from harness.data import Tokens
from harness.models import Model, pretrained
from harness.models.rehearsal import rehearse
from harness.testing import make_tokenizer
from methods.training.contribution import Contribution
from methods.training.masters import Masters
from methods.training.objectives import KL, BlockMSE, BlockStates
from methods.training.preflight import check_blocks
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep
from tests.methods.training.test_train import FORMAT, make_step, make_tokens, split
from tests.support.architectures import make
from tests.support.memory import WIDE, build_training, estimate_training


def gradients(step: TrainingStep, tokens: Tokens) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, norm and the masters' gradients of a step on all of `tokens`; the head has none."""
    loss, norm = step.compute_gradients(split(step, tokens))
    return loss, norm, {n: w.grad for n, w in step.masters.weights.items() if w.grad is not None}


def read_blocks(model: Model, ids: Tensor) -> list[Tensor]:
    """States behind each of Llama's two blocks, (B, T, D), as the library gives them; the last
    one's, which it gives behind the last norm, as the norm is given them."""
    into_norm: list[Tensor] = []
    network = model.fork().network  # on which the library leaves hooks
    with network.model.norm.register_forward_pre_hook(lambda _, x: into_norm.append(x[0])):
        states = network(ids, output_hidden_states=True).hidden_states
    return [states[1], into_norm[0]]


def compute_whole(student: Model, teacher: Model, ids: Tensor, mask: Tensor) -> Tensor:
    """Mean over labels and blocks of (|s - t| / |t|)², on whole tensors."""
    with torch.no_grad():
        targets = read_blocks(teacher, ids)
    pairs = zip(read_blocks(student, ids), targets, strict=True)
    losses = torch.stack([((s - t).norm(dim=-1) / t.norm(dim=-1)) ** 2 for s, t in pairs])
    return losses[:, :, :-1][:, mask[:, 1:]].mean()


@pytest.mark.parametrize("recomputed", [False, True])
def test_loss_and_gradients_are_those_of_whole_tensors(
    llama: Model, teacher: Model, recomputed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three tokens a chunk, with gradient checkpointing too; and no logits are computed."""
    monkeypatch.setitem(methods.training.forward._CHUNK, "cpu", 32 * 64 * 3)
    student, guide = (ALONE.split(each, torch.float64) for each in (llama, teacher))
    masters = Masters.of(student, FORMAT, "all", torch.float64)
    training = Training(
        batch_size=6, micro_batch=6, dtype="float32", gradient_checkpointing=recomputed
    )
    step = TrainingStep(training, BlockMSE(), None, masters, guide)
    ((ids, mask, _),) = split(step, make_tokens(6))
    with masters.network.lm_head.register_forward_hook(lambda *_: pytest.fail("logits")):
        total, weight = step.run_micro_batch(ids, mask)
    assert weight == mask[:, 1:].sum()
    found = {n: p.grad for n, p in masters.network.named_parameters() if p.grad is not None}
    masters.network.zero_grad(set_to_none=True)
    whole = compute_whole(replace(student, network=masters.network), guide, ids, mask)
    whole.backward()
    assert float(total / weight) == pytest.approx(whole.item(), rel=1e-6)  # sums are float32
    blocks = [n for n, p in masters.network.named_parameters() if n.startswith("model.layers.")]
    assert len(blocks) == 18
    for name in blocks:
        wanted = masters.network.get_parameter(name).grad
        # Llama's norms compute in float32 whatever they are given.
        torch.testing.assert_close(
            found[name] / weight, wanted, rtol=1e-4, atol=1e-7, msg=name, check_dtype=False
        )


def test_micro_batches_change_nothing(llama: Model, teacher: Model) -> None:
    tokens = make_tokens(8)
    tokens.mask[3] = False  # a sequence without labels
    big = gradients(make_step(llama, teacher, BlockMSE(), 8), tokens)
    for micro in (1, 3):
        small = gradients(make_step(llama, teacher, BlockMSE(), micro), tokens)
        assert small[:2] == pytest.approx(big[:2], rel=1e-5)
        for name in big[2]:
            torch.testing.assert_close(small[2][name], big[2][name], rtol=1e-4, atol=1e-6)


def test_an_objective_is_told_which_block_it_sees(
    llama: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An author's of the last block only, without a teacher."""

    def measure(self: BlockMSE, states: BlockStates) -> Tensor:
        assert states.teacher is None
        return (states.block == states.blocks - 1) * states.student.float().square().mean(-1)

    monkeypatch.setattr(BlockMSE, "needs_teacher", False)
    monkeypatch.setattr(BlockMSE, "token_losses", measure)
    step, tokens = make_step(llama, None, BlockMSE(), 2), make_tokens(4)
    loss, _, found = gradients(step, tokens)
    with torch.no_grad():
        states = read_blocks(replace(llama, network=step.masters.network), tokens.ids)
    wanted = states[1][:, :-1][tokens.mask[:, 1:]].square().mean() / 2
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    assert found["model.layers.0.mlp.down_proj.weight"].abs().max() > 0


def test_the_loss_by_confidence_adds_up_to_the_objective(llama: Model, teacher: Model) -> None:
    tokens = make_tokens(8)
    shown = Contribution(teacher, llama, tokens, BlockMSE(), None).run(Path())
    with torch.no_grad():
        wanted = compute_whole(llama, teacher, tokens.ids, tokens.mask)
    assert sum(shown["loss"]) == pytest.approx(float(wanted), rel=1e-5)
    assert sum(shown["tokens"]) == tokens.mask[:, 1:].sum()


@pytest.mark.parametrize("kind", ["a mean", "detached", "16 bits"])
def test_a_block_objective_gives_one_loss_a_token(
    kind: str, llama: Model, teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults: dict[str, Any] = {
        "a mean": lambda s: (s.student - s.teacher).square().mean(),
        "detached": lambda s: (s.student - s.teacher).detach().square().mean(-1),
        "16 bits": lambda s: (s.student - s.teacher).square().mean(-1).bfloat16(),
    }
    monkeypatch.setattr(BlockMSE, "token_losses", lambda self, states: faults[kind](states))
    with pytest.raises(BitgridError, match=r"objective 'block-mse': (`token_losses` should|no gr)"):
        gradients(make_step(llama, teacher, BlockMSE(), 2), make_tokens(2))


def test_a_teacher_whose_states_are_not_finite_makes_the_loss_nan(
    llama: Model, teacher: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the objective does not show it."""
    broken = teacher.fork()
    weight = broken.network.model.layers[1].mlp.down_proj.weight
    spoilt = torch.nn.Parameter(weight.masked_fill(weight > 0, torch.nan), requires_grad=False)
    broken.network.model.layers[1].mlp.down_proj.weight = spoilt
    monkeypatch.setattr(BlockMSE, "token_losses", lambda self, s: s.student.square().mean(-1))
    step = make_step(llama, broken, BlockMSE(), 2)
    micro_batches = split(step, make_tokens(2))
    loss, _ = step.compute_gradients(micro_batches)
    assert loss != loss
    assert "teacher's weights of model.layers.1.mlp.down_proj" in step.find_cause(
        micro_batches, loss
    )


def test_models_whose_blocks_give_no_states_are_refused() -> None:
    for name, regular in (("falcon-h1", True), ("gemma3n-text", False), ("mllama", False)):
        model = Model(make(name), make_tokenizer())
        if regular:
            check_blocks(model, "block-mse")
        else:
            with pytest.raises(ModelError, match="choose one that sees logits"):
                check_blocks(model, "block-mse")


def test_a_teacher_of_another_shape_is_refused_in_the_plan(
    tiny_folder: Path, tmp_path: Path
) -> None:
    base = pretrained(str(tiny_folder))
    rehearse(build_training(base, objective=BlockMSE()))
    config = LlamaConfig.from_pretrained(tiny_folder)
    for field, said in (("num_hidden_layers", "blocks"), ("hidden_size", "channels")):
        other = LlamaConfig.from_pretrained(tiny_folder)
        setattr(other, field, 2 * getattr(config, field))
        folder = tmp_path / field
        LlamaForCausalLM(other).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(folder)
        taught = replace(
            build_training(base, objective=BlockMSE()), teacher=pretrained(str(folder))
        )
        have = f"{getattr(config, field)} and {getattr(other, field)} {said}"
        with pytest.raises(ModelError, match=f"'block-mse' compares .* they have {have}: choose"):
            rehearse(taught)
        rehearse(replace(taught, objective=KL()))


def test_blocks_cost_their_states_in_the_dtype_of_the_computation(tiny_folder: Path) -> None:
    """At the label positions and once: the teacher's, whose places the gradients take."""
    base = pretrained(str(tiny_folder), "bfloat16")
    config = base.run(Path()).network.config
    logits, states = (estimate_training(base, objective=o) for o in (KL(), BlockMSE()))
    rows, length = WIDE.micro_batch, 64
    held = config.num_hidden_layers * rows * (length - 1) * config.hidden_size * 2
    assert states.parameters == logits.parameters
    assert states.activations - logits.activations < held  # of float32, or of both, twice as many
