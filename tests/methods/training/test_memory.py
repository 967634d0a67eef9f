"""Training against closed forms and the tensors that a real run saves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig

from harness.core.stage import Stage
from harness.data import Packed
from harness.models import (
    PROCESS_GIB,
    Model,
    Pretrained,
    blocks,
    matrices,
    pretrained,
    weights_gib,
)
from harness.models.dry_run import dry_run, estimate_memory, load_weightless
from methods.quantization.inits import Clip
from methods.quantization.rotation import Rotated
from methods.training.confidence import Confidence
from methods.training.data import Generate
from methods.training.forward import run_trunk
from methods.training.masters import Masters
from methods.training.memory import of_training
from methods.training.objectives import CE
from methods.training.settings import Training
from methods.training.step import TrainingStep
from tests.support.architectures import build
from tests.support.memory import (
    FORMAT,
    WIDE,
    build_scoring,
    build_training,
    estimate_training,
    measure_sizes,
)


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Pretrained:
    return pretrained(str(tiny_folder), "bfloat16")


@pytest.fixture(scope="module")
def model(base: Pretrained) -> Model:
    return base.run(Path())


def test_parts_at_rest_are_exact(base: Pretrained, model: Model) -> None:
    weights, trained, buffers = measure_sizes(model)
    memory = estimate_training(base)
    assert memory.teacher == 2 * weights + buffers
    assert memory.parameters == trained * (2 + 4)  # the network's own, and masters
    tensors = len(list(model.network.parameters())) - 1
    assert memory.optimizer == trained * 8 + 4 * tensors  # and each one's count of steps
    assert memory.gradients == trained * 4  # the sums over this step's micro-batches
    assert memory.total == sum(vars(memory).values())


def test_every_way_to_hold_weights_is_seen(base: Pretrained, model: Model) -> None:
    weights, trained, buffers = measure_sizes(model)
    inside = sum(m.weight.numel() for m in matrices(model.network).values())
    alone = estimate_training(base, objective=CE())
    assert (alone.teacher, alone.parameters) == (0, 2 * weights + buffers + trained * 6)
    clipped = Clip(text="testbed").build(base, FORMAT)
    assert estimate_training(base, student=clipped).parameters == trained * 6 + inside * 2
    ends = 2 * model.network.get_input_embeddings().weight.nbytes  # which a rotation unties
    rotated = estimate_training(base, student=Rotated(base, 0))
    assert rotated.parameters == trained * 6 + inside * 2 + ends
    exact = estimate_training(base, replace(WIDE, dtype="float32"))
    assert exact.teacher == weights * (2 + 4) + buffers
    small = estimate_training(base, replace(WIDE, optimizer="adamw-8bit"))
    assert small.optimizer < 0.4 * estimate_training(base).optimizer
    once = estimate_training(
        base, replace(WIDE, batch_size=32)
    )  # no sums from micro-batches before
    assert once.gradients == 0


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_activations_are_what_a_real_run_saves(
    base: Pretrained, model: Model, dtype: Literal["bfloat16", "float32"]
) -> None:
    network = Masters.of(model, FORMAT, "body", getattr(torch, dtype)).network
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.setdefault(tensor.untyped_storage()._cdata, tensor.untyped_storage())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run_trunk(network, torch.zeros(32, 64, dtype=torch.int64))
    counted = sum(storage.nbytes() for key, storage in saved.items() if key not in weights)
    memory = estimate_training(base, replace(WIDE, dtype=dtype))
    assert memory.activations == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("gradient", ["identity", "through-range"])
def test_the_peak_is_what_torchs_own_tracker_counts(
    base: Pretrained, gradient: Literal["identity", "through-range"]
) -> None:
    """To the byte, of a step that MemTracker takes: no frozen weights, the head in one piece."""
    with dry_run() as live, MemTracker() as tracker:
        student = load_weightless(live, base)
        format = replace(FORMAT, gradient=gradient)
        masters = Masters.of(student, format, "all", torch.bfloat16)
        step = TrainingStep(Training(), CE(), None, masters, None)
        masters.requantize()
        ids = torch.zeros(8, 64, dtype=torch.int64)
        step.run_micro_batch(ids, torch.ones_like(ids, dtype=torch.bool))
        masters.accumulate_gradients()
        masters.finish_gradients(1.0)
        step.update(1.0, 1.0)
    counted = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]
    assert live.peak().total == counted["Total"] > 0


def test_more_tokens_at_once_need_more(base: Pretrained) -> None:
    usual = estimate_training(base)
    assert estimate_training(base, replace(WIDE, micro_batch=16)).total < usual.total
    assert estimate_training(base, length=32).total < usual.total
    again = estimate_training(base, replace(WIDE, gradient_checkpointing=True))
    assert again.activations < usual.activations / 1.5  # of two blocks
    assert again.total < usual.total


def test_processes_share_the_blocks(base: Pretrained, model: Model) -> None:
    weights, trained, buffers = measure_sizes(model)
    inside = sum(p.numel() for block in blocks(model.network).values() for p in block.parameters())
    many = replace(WIDE, batch_size=1024)
    shared = of_training(build_training(base, many), gpus=4)
    norm = trained - inside  # each process has a copy of it
    assert shared.optimizer == pytest.approx(8 * (inside / 4 + norm), rel=0.01)
    assert shared.gradients == pytest.approx(4 * (inside / 4 + norm), rel=0.01)
    ends = weights - inside
    assert shared.teacher == pytest.approx(2 * (inside / 4 + ends) + buffers, rel=0.02)
    assert shared.parameters == pytest.approx(
        2 * (inside / 4 + ends) + 4 * (inside / 4 + norm) + buffers, rel=0.02
    )
    assert shared.activations == of_training(build_training(base, many)).activations
    assert of_training(build_training(base, replace(many, gpus=4))) == shared


def test_the_host_is_asked_for_what_a_model_of_that_size_needs(tmp_path: Path) -> None:
    """7 billion weights in 16 bits: twice, or once in float32; not once a process."""
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    LlamaConfig(vocab_size=32000, **shape).save_pretrained(tmp_path)
    large = Pretrained(str(tmp_path), "of no weights", "bfloat16")
    weights = weights_gib(large)
    assert weights == pytest.approx(12.55, abs=0.01)
    alone, eight = (build_training(large, Training(gpus=gpus)).resources for gpus in (1, 8))
    assert alone.memory_gib == math.ceil(2 * PROCESS_GIB + 2 * weights)
    assert eight.memory_gib == math.ceil(9 * PROCESS_GIB + 2 * weights)
    assert build_scoring(large).resources.memory_gib == math.ceil(PROCESS_GIB + weights)
    wide = replace(large, dtype="float32")
    assert weights_gib(wide) == 2 * weights
    taught = replace(build_training(large), teacher=wide).resources
    assert taught.memory_gib == alone.memory_gib


def test_generation_and_confidence_hold_the_model(base: Pretrained, model: Model) -> None:
    weights, _, buffers = measure_sizes(model)
    stages: list[Stage[Any]] = [
        Generate(base, None, 8, 32),
        Confidence(base, Packed([], base, 64, 64)),
    ]
    for each in stages:
        memory = estimate_memory(each)
        assert memory is not None and memory.parameters == 2 * weights + buffers
        assert memory.gradients == memory.optimizer == 0 < memory.activations + memory.other


@pytest.mark.parametrize("name", ["mixtral", "gemma3", "falcon-h1"])
def test_experts_vision_and_states_have_an_estimate(name: str, tmp_path: Path) -> None:
    base = pretrained(str(build(name, tmp_path)))
    estimate = estimate_training(base, Training(micro_batch=2, batch_size=2), length=32)
    network = base.run(tmp_path).network
    held = sum(p.nbytes for p in network.parameters())
    trained = sum(p.nbytes for block in blocks(network).values() for p in block.parameters())
    assert estimate.teacher >= held
    assert estimate.parameters >= trained  # masters, and what is computed with
    assert estimate.optimizer >= 2 * trained
