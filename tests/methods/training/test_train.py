"""The training loop against plain torch, in parts and whole; killed and resumed; and told of
NaN."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import methods.training.forward
from harness.core.errors import BitgridError, ModelError
from harness.core.execution import execute
from harness.core.stage import listening
from harness.data import Documents, Tokens
from harness.models import Model, matrices
from methods.quantization.formats import Format, FullPrecision, IntAsym
from methods.training.batches import order_rows, split_batch
from methods.training.determinism import compute_deterministically
from methods.training.masters import Masters
from methods.training.objectives import CAKLD, CE, JSD, KL, MSE, TSLD, BlockMSE, Objective
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.step import TrainingStep
from methods.training.train import Train
from tests.methods.conftest import make_llama
from tests.support.forked import ForkedPopen

FORMAT = IntAsym(bits=3, group_size=32)
FORWARD = KL()
SMALL = Training(steps=6, batch_size=4, micro_batch=2, lr=1e-3, dtype="float32")


def make_tokens(rows: int = 10, length: int = 12, seed: int = 0) -> Tokens:
    """Random sequences; padding of random length on the right, sometimes a masked prompt."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 97, (rows, length), generator=generator)
    ends = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    starts = torch.randint(1, 3, (rows, 1), generator=generator)
    places = torch.arange(length)
    return Tokens(ids, (places < ends) & (places >= starts))


def stage(
    student: Model,
    teacher: Model | None,
    tokens: Tokens,
    training: Training = SMALL,
    objective: Objective = FORWARD,
    format: Format = FORMAT,
    seed: int = 0,
) -> Train:
    return Train(student, teacher, tokens, format, objective, None, training, seed)


def train(work: Path, *given: Any, **named: Any) -> Model:
    work.mkdir(exist_ok=True)
    return execute(stage(*given, **named), {}, work)


def weights(model: Model) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.network.named_parameters()}


def same(left: Model, right: Model) -> bool:
    a, b = weights(left), weights(right)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def rows_of(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]


# The numbers


def reference(
    student: Model, teacher: Model, tokens: Tokens, training: Training, format: Format
) -> tuple[dict[str, Tensor], list[float]]:
    """Forward KL in plain torch: whole batches, whole logits, AdamW, constant rate, no clipping."""
    network, losses = make_llama().network, []
    network.load_state_dict(student.network.state_dict())
    chosen = {
        n: p for n, p in network.named_parameters() if "embed" not in n and "lm_head" not in n
    }
    masters = {n: p.detach().clone().requires_grad_() for n, p in chosen.items()}
    quantised = {f"{n}.weight" for n in matrices(student.network)}
    optimizer = torch.optim.AdamW(masters.values(), lr=training.lr, weight_decay=0.0, foreach=False)
    for rows in order_rows(
        len(tokens), training.batch_size, training.count_steps(len(tokens))[1], 0
    ):
        ids, mask = tokens.ids[rows], tokens.mask[rows]
        used = {
            n: w + (format.quantize(w) - w).detach() if n in quantised else w
            for n, w in masters.items()
        }
        out = torch.func.functional_call(network, used, kwargs={"input_ids": ids}).logits
        with torch.no_grad():
            target = teacher.network(ids).logits.log_softmax(-1)
        kl = F.kl_div(out.log_softmax(-1), target, reduction="none", log_target=True).sum(-1)
        where = mask[:, 1:]
        loss = kl[:, :-1][where].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return masters, losses


def test_equals_a_plain_loop(llama: Model, teacher: Model, tmp_path: Path) -> None:
    tokens = make_tokens()
    training = Training(
        epochs=2.0, batch_size=4, micro_batch=3, lr=1e-3, clip_norm=0.0, dtype="float32"
    )
    expected, losses = reference(llama, teacher, tokens, training, FORMAT)
    trained = train(tmp_path, llama, teacher, tokens, training)
    assert [row["loss"] for row in rows_of(tmp_path)] == pytest.approx(losses, rel=1e-4)
    assert len(losses) == 5  # 2 × 10 sequences in fours
    for name, weight in trained.network.named_parameters():
        if name in expected:
            # Adam's first steps are nearly ±lr, whose sign float32 noise may turn for tiny
            # gradients.
            close = (weight - expected[name]).abs() < 1e-5
            assert close.float().mean() > 0.99, name


def gradients(step: TrainingStep, tokens: Tokens) -> tuple[float, float, dict[str, Tensor]]:
    """Loss, norm and the masters' gradients of a step on all of `tokens`."""
    loss, norm = step.compute_gradients(split(step, tokens))
    return loss, norm, {n: w.grad.clone() for n, w in step.masters.weights.items()}  # type: ignore[union-attr]


def split(step: TrainingStep, tokens: Tokens) -> list[tuple[Tensor, Tensor, Tensor]]:
    rows, device = torch.arange(len(tokens)), torch.device("cpu")
    return split_batch(tokens, rows, step.training.micro_batch, ALONE, device)


def make_step(
    student: Model, teacher: Model | None, objective: Objective, micro: int
) -> TrainingStep:
    training = Training(batch_size=8, micro_batch=micro, dtype="float32")
    masters = Masters.of(student, FORMAT, "all", torch.float32)
    return TrainingStep(training, objective, None, masters, teacher)


@pytest.mark.parametrize("objective", [KL(), CE(), TSLD(), CAKLD(0.4)], ids=repr)
def test_accumulation_equals_the_big_batch(
    llama: Model, teacher: Model, objective: Objective
) -> None:
    tokens = make_tokens(8)
    tokens.mask[3] = False  # a sequence, and with micro_batch 1 a micro-batch, without labels
    guide = teacher if objective.needs_teacher else None
    big = gradients(make_step(llama, guide, objective, 8), tokens)
    for micro in (1, 3):
        small = gradients(make_step(llama, guide, objective, micro), tokens)
        assert small[0] == pytest.approx(big[0], rel=1e-6)
        assert small[1] == pytest.approx(big[1], rel=1e-5)
        for name in big[2]:
            torch.testing.assert_close(small[2][name], big[2][name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("objective", [KL(), CE(), TSLD(), CAKLD(0.4)], ids=repr)
def test_chunks_equal_whole_logits_in_float64(
    llama: Model, teacher: Model, objective: Objective, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients of head and trunk, 3 tokens a chunk, against one backward through all."""
    monkeypatch.setitem(methods.training.forward._CHUNK, "cpu", 97 * 12)
    tokens = make_tokens(6)
    student = ALONE.split(llama, torch.float64)
    guide = ALONE.split(teacher, torch.float64)
    masters = Masters.of(student, FORMAT, "all", torch.float64)
    training = Training(batch_size=6, micro_batch=6, dtype="float32")
    chunked = TrainingStep(
        training, objective, None, masters, guide if objective.needs_teacher else None
    )
    ((ids, mask, _),) = split(chunked, tokens)
    total, weight = chunked.run_micro_batch(ids, mask)
    found = {n: p.grad.clone() for n, p in masters.network.named_parameters()}  # type: ignore[union-attr]
    masters.network.zero_grad()
    target = guide.network(ids).logits if objective.needs_teacher else None
    whole = objective.batch_loss(masters.network(ids).logits, target, ids, mask)
    whole.backward()
    assert float(total / weight) == pytest.approx(whole.item(), rel=1e-6)  # sums are float32
    for name, tensor in masters.network.named_parameters():
        # Llama's norms compute in float32 whatever they are given; the head stands before them.
        rtol, atol = (1e-10, 1e-14) if "lm_head" in name else (1e-4, 1e-7)
        torch.testing.assert_close(
            found[name] / weight.double(), tensor.grad, rtol=rtol, atol=atol, msg=name
        )


def test_gradient_checkpointing_changes_no_gradient(llama: Model, teacher: Model) -> None:
    tokens, seen = make_tokens(8), []
    for recomputed in (False, True):
        training = Training(
            batch_size=8, micro_batch=3, dtype="float32", gradient_checkpointing=recomputed
        )
        masters = Masters.of(llama, FORMAT, "body", torch.float32)
        step = TrainingStep(training, KL(), None, masters, teacher)
        calls: list[int] = []
        masters.network.model.layers[0].self_attn.register_forward_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        seen.append((*gradients(step, tokens), len(calls)))
    plain, again = seen
    assert plain[:2] == again[:2]
    assert all(torch.equal(plain[2][name], again[2][name]) for name in plain[2])
    assert (plain[3], again[3]) == (3, 6)  # three micro-batches, each forward run twice


def test_the_teacher_runs_once_a_micro_batch(llama: Model, teacher: Model) -> None:
    """Also where its losses are weights."""
    guide = teacher.fork()
    calls: list[int] = []
    guide.network.base_model.register_forward_hook(lambda *_: calls.append(1))
    gradients(make_step(llama, guide, TSLD(), 3), make_tokens(8))
    assert len(calls) == 3


def test_loss_falls_and_embeddings_stay(llama: Model, teacher: Model, tmp_path: Path) -> None:
    tokens, training = make_tokens(8), Training(steps=40, batch_size=8, lr=3e-3, dtype="float32")
    before, guide = weights(llama), weights(teacher)
    trained = train(tmp_path, llama, teacher, tokens, training)
    losses = [row["loss"] for row in rows_of(tmp_path)]
    assert losses[-1] < 0.5 * losses[0]
    assert trained.latent
    assert not trained.quantized
    after = weights(trained)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {n for n in after if "embed_tokens" not in n and "lm_head" not in n}
    assert all(torch.equal(before[n], w) for n, w in weights(llama).items())
    assert all(torch.equal(guide[n], w) for n, w in weights(teacher).items())
    assert not any(p.requires_grad or p.grad is not None for p in trained.network.parameters())
    assert not any(p.grad is not None for p in teacher.network.parameters())


@pytest.mark.parametrize(("trained", "expected"), [("linears", 14), ("body", 19), ("all", 21)])
def test_what_is_trained(llama: Model, trained: Any, expected: int) -> None:
    masters = Masters.of(llama, FORMAT, trained, torch.bfloat16)
    assert len(masters.weights) == expected
    assert {w.dtype for w in masters.weights.values()} == {torch.float32}
    assert {p.dtype for p in masters.network.parameters()} == {torch.bfloat16}


def test_bfloat16_keeps_float32_masters(llama: Model, teacher: Model, tmp_path: Path) -> None:
    tokens = make_tokens(8)
    half = ALONE.split(llama, torch.bfloat16)
    small = Training(steps=10, batch_size=8, lr=1e-5, dtype="bfloat16")
    trained = train(tmp_path, half, teacher, tokens, small)
    assert {p.dtype for p in trained.network.parameters()} == {torch.float32}
    steps = [
        (weights(trained)[f"{n}.weight"] - weights(half)[f"{n}.weight"].float()).abs().max()
        for n in matrices(half.network)
    ]
    assert all(5e-5 < step < 2e-4 for step in steps)  # ten steps of 1e-5: lost in bf16 weights


def test_the_network_computes_with_what_the_format_gives(llama: Model) -> None:
    masters = Masters.of(llama, FORMAT, "body", torch.float32)
    masters.requantize()
    for name, linear in matrices(masters.network).items():
        master = masters.weights[f"{name}.weight"]
        assert torch.equal(linear.weight, FORMAT.quantize(master))
        assert not torch.equal(linear.weight, master)


def test_what_training_leaves_is_latent_whatever_the_format(llama: Model, tmp_path: Path) -> None:
    """Float32 weights that are in no 16-bit model: they too are rounded before they are scored."""
    training = Training(steps=2, batch_size=4, dtype="float32")
    trained = train(
        tmp_path, llama, None, make_tokens(), training, objective=CE(), format=FullPrecision()
    )
    assert trained.latent


def test_clipping_bounds_the_step_not_the_metric(llama: Model, teacher: Model) -> None:
    step = make_step(llama, teacher, KL(), 8)
    _, norm, grads = gradients(step, make_tokens(8))
    assert norm == pytest.approx(
        float(torch.cat([g.flatten() for g in grads.values()]).norm()), rel=1e-5
    )
    step.training = Training(clip_norm=norm / 2)
    clipped: list[Tensor] = []
    step.optimizer.register_step_pre_hook(
        lambda *_: clipped.extend(
            w.grad.clone() for w in step.masters.weights.values() if w.grad is not None
        )
    )
    step.update(0.0, norm)
    assert float(nn.utils.get_total_norm(clipped)) == pytest.approx(norm / 2, rel=1e-4)


# Order and schedule


def test_every_sequence_is_seen_equally_often() -> None:
    batches = list(order_rows(10, 4, 30, seed=0))
    assert [len(rows) for rows in batches] == [4] * 7 + [2]
    stream = torch.cat(batches)
    for epoch in stream.split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert not torch.equal(stream[:10], stream[10:20])
    later = list(order_rows(10, 4, 30, seed=0, first=5))
    assert all(torch.equal(a, b) for a, b in zip(later, batches[5:], strict=True))
    assert not torch.equal(stream, torch.cat(list(order_rows(10, 4, 30, seed=1))))


def test_extent() -> None:
    assert Training(epochs=2.0, batch_size=4).count_steps(10) == (5, 20)
    assert Training(epochs=0.5, batch_size=4).count_steps(10) == (2, 5)
    assert Training(steps=7, batch_size=4).count_steps(10) == (7, 28)


def test_schedules() -> None:
    def rates(schedule: Any, warmup: int = 0) -> list[float]:
        training = Training(lr=2.0, schedule=schedule, warmup=warmup)
        return [training.learning_rate(step, 8) for step in range(8)]

    assert rates("constant") == [2.0] * 8
    assert rates("constant", 4)[:5] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rates("linear") == pytest.approx([2 - 0.25 * step for step in range(8)])
    assert rates("cosine") == pytest.approx([1 + math.cos(math.pi * s / 8) for s in range(8)])
    assert rates("linear", 4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 1.5, 1.0, 0.5])


# Going on


def test_an_interrupted_run_ends_in_the_same_bits(
    llama: Model, teacher: Model, tmp_path: Path
) -> None:
    tokens = make_tokens()
    tokens.mask[4] = False  # a step of it alone gives the optimizer nothing to do
    training = Training(
        steps=12, batch_size=1, lr=1e-3, schedule="cosine", dtype="float32", checkpoint_every=5
    )
    whole = train(tmp_path / "whole", llama, teacher, tokens, training)

    def stop(done: int, total: int, metrics: Any) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(stop):
        train(tmp_path / "cut", llama, teacher, tokens, training)
    assert len(rows_of(tmp_path / "cut")) == 8
    resumed = train(tmp_path / "cut", llama, teacher, tokens, training)
    assert same(whole, resumed)
    left, right = rows_of(tmp_path / "whole"), rows_of(tmp_path / "cut")
    timed = {"seconds", "tokens_per_s"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in left] == [
        {k: v for k, v in row.items() if k not in timed} for row in right
    ]
    assert [row["step"] for row in right] == list(range(1, 13))
    assert sorted(row["seconds"] for row in right) == [row["seconds"] for row in right]
    # And from a run that ended, but whose value was not kept.
    assert same(whole, train(tmp_path / "cut", llama, teacher, tokens, training))


KILLED = """
import sys, time
from pathlib import Path
from harness.core.execution import execute
from harness.core.stage import listening
from tests.methods.conftest import make_llama
from tests.methods.training.test_train import make_tokens, stage, Training
training = Training(steps=12, batch_size=2, lr=1e-3, dtype="float32", checkpoint_every=4)
with listening(lambda done, total, metrics: time.sleep(float(sys.argv[2]))):
    execute(stage(make_llama(), make_llama(1), make_tokens(), training), {}, Path(sys.argv[1]))
"""


def test_what_ended_early_goes_on_to_the_same_bits(
    llama: Model, teacher: Model, tmp_path: Path
) -> None:
    training = Training(
        steps=6, batch_size=2, lr=1e-2, dtype="float32", schedule="cosine", checkpoint_every=0
    )
    arguments = llama, teacher, make_tokens(), training
    whole = train(tmp_path / "whole", *arguments)
    work = tmp_path / "part"
    work.mkdir()
    part = replace(stage(*arguments), until=4)
    begun = execute(part, {}, work)
    assert [row["step"] for row in rows_of(work)] == [1, 2, 3, 4] and not same(whole, begun)
    assert same(whole, train(work, *arguments))
    assert rows_of(work)[3]["lr"] == rows_of(tmp_path / "whole")[3]["lr"] < 1e-2
    assert len(rows_of(work)) == 6


def test_a_killed_run_ends_in_the_same_bits(llama: Model, teacher: Model, tmp_path: Path) -> None:
    """SIGKILL in the middle of a step, then on from the last checkpoint in another process."""
    training = Training(steps=12, batch_size=2, lr=1e-3, dtype="float32", checkpoint_every=4)
    whole = train(tmp_path / "whole", llama, teacher, make_tokens(), training)
    work = tmp_path / "killed"
    work.mkdir()
    child = ForkedPopen([sys.executable, "-c", KILLED, str(work), "0.3"])
    log = work / "metrics.jsonl"
    deadline = time.monotonic() + 240
    while not log.exists() or len(log.read_text().splitlines()) < 6:
        assert child.poll() is None, "the run ended before it was killed"
        assert time.monotonic() < deadline, "the run never got to step 6"
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with log.open("a") as file:
        file.write('{"step": 9, "lo')  # as a kill in the middle of a write leaves it
    (work / "checkpoint-9.draft").write_bytes(b"half a checkpoint")
    assert list(work.glob("checkpoint-*.safetensors"))
    assert same(whole, train(work, llama, teacher, make_tokens(), training))
    assert [row["step"] for row in rows_of(work)] == list(range(1, 13))


def test_on_cuda_only_what_gives_the_same_bits_is_used_and_only_while_training() -> None:
    """Strictly: with warnings alone the backward pass of attention would not change."""
    settings: Any = torch.utils.deterministic
    before = torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory
    with compute_deterministically(torch.device("cpu")):
        assert torch.get_deterministic_debug_mode() == before[0] == 0
    with compute_deterministically(torch.device("cuda", 1)):
        assert torch.get_deterministic_debug_mode() == 2
        assert not settings.fill_uninitialized_memory
        assert os.environ["FLASH_ATTENTION_DETERMINISTIC"] == "1"
    cause = "histc_cuda does not have a deterministic implementation, but you set it"
    with (
        pytest.raises(ModelError, match=r"implementation: set train\.deterministic to false"),
        compute_deterministically(torch.device("cuda")),
    ):
        raise RuntimeError(cause)
    assert (torch.get_deterministic_debug_mode(), settings.fill_uninitialized_memory) == before
    assert "FLASH_ATTENTION_DETERMINISTIC" not in os.environ


class Operations(TorchDispatchMode):
    """Notes the names of all operations on floating-point numbers inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(given, Tensor) and given.is_floating_point() for given in args):
            self.names.add(op.__name__.partition(".")[0].removesuffix("_"))
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "objective", [CE(), TSLD(), CAKLD(0.4), JSD(), MSE(), BlockMSE()], ids=repr
)
def test_a_step_needs_nothing_that_cuda_has_in_no_fixed_order(
    llama: Model, teacher: Model, tmp_path: Path, objective: Objective
) -> None:
    """What torch says has no deterministic algorithm there, and language models could use."""
    lacking = {"cumsum", "histc", "median", "kthvalue", "put", "bincount", "nll_loss_forward"}
    with Operations() as seen:
        training = Training(steps=1, batch_size=2, trained="all", gradient_checkpointing=True)
        train(tmp_path, llama, teacher, make_tokens(), training, objective)
    assert {"mm", "silu_backward", "embedding_dense_backward"} <= seen.names
    assert not seen.names & lacking


def test_metrics(llama: Model, teacher: Model, tmp_path: Path) -> None:
    tokens, seen = make_tokens(), []
    with listening(lambda done, total, metrics: seen.append((done, total, dict(metrics)))):
        train(tmp_path, llama, teacher, tokens, Training(epochs=1.0, batch_size=4, dtype="float32"))
    rows = rows_of(tmp_path)
    assert set(rows[0]) == {
        "step", "tokens", "loss", "grad_norm", "lr", "tokens_per_s", "seconds",
    }  # fmt: skip
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["tokens"] == int(tokens.mask[:, 1:].sum())
    assert all(row["grad_norm"] > 0 and row["tokens_per_s"] > 0 for row in rows)
    assert seen == [(row["step"], 3, {"loss": row["loss"]}) for row in rows]


def test_settings_are_checked() -> None:
    for wrong in (
        {"steps": 0}, {"epochs": 0.0}, {"batch_size": 0}, {"micro_batch": -1}, {"lr": -1.0},
        {"schedule": "square"}, {"dtype": "float16"}, {"trained": "none"},
    ):  # fmt: skip
        with pytest.raises(BitgridError):
            Training(**wrong)  # type: ignore[arg-type]


def test_inputs_and_settings_are_the_key() -> None:
    a, b = Documents("a", "train"), Documents("b", "train")
    one, two, three = (
        Train(a, b, a, FORMAT, KL(), None, Training(lr=lr), seed)  # type: ignore[arg-type]
        for lr, seed in ((1e-5, 0), (1e-4, 0), (1e-5, 1))
    )
    assert len({one.key, two.key, three.key}) == 3
    assert one.inputs == (a, b)


def test_leaner_halves_the_micro_batch_and_keeps_key_and_batch() -> None:
    text = Documents("a", "train")
    before = Train(text, text, text, FORMAT, KL(), None, Training(micro_batch=5))  # type: ignore[arg-type]
    halves = [before.leaner(), before.leaner().leaner(), before.leaner().leaner().leaner()]
    assert [half.training.micro_batch for half in halves] == [2, 1, 1]
    assert {half.training.batch_size for half in halves} == {128}
    assert {half.key for half in halves} == {before.key}
