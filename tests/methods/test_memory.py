"""The estimate against closed forms, a real run's saved tensors, and the command's table."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig

import harness.evaluation.memory
import harness.run.runner
from harness.cli.main import main
from harness.core.stage import Stage
from harness.core.store import Store
from harness.data import Packed, texts
from harness.evaluation.evaluations import find_evaluation
from harness.evaluation.perplexity import Perplexity, PerplexityTask
from harness.grid import expand as grids
from harness.models import (
    PROCESS_GIB,
    Model,
    Pretrained,
    blocks,
    linears,
    pretrained,
    pretrained_of,
    weights_gib,
)
from harness.models.dry_run import Memory, dry_run, estimate_memory, load_weightless
from harness.run import plan as plans
from harness.run.compute import Values
from harness.run.memory import count_gpus, fits, table
from methods.quantization.awq import ScaleSearch
from methods.quantization.formats import IntAsym
from methods.quantization.inits import Clip, ClipSearch
from methods.quantization.rounding import Round
from methods.training.confidence import Confidence
from methods.training.data import Generate
from methods.training.forward import run_trunk
from methods.training.masters import Masters
from methods.training.memory import of_training
from methods.training.objectives import CE, KL, Objective
from methods.training.settings import Training
from methods.training.step import TrainingStep
from methods.training.train import Train

FORMAT = IntAsym(bits=2, group_size=64)
WIDE = Training(micro_batch=32, batch_size=64)  # activations outweigh gradients
TEACHES = KL()


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Pretrained:
    return pretrained(str(tiny_folder), "bfloat16")


@pytest.fixture(scope="module")
def model(base: Pretrained) -> Model:
    return base.run(Path())


def stage(
    base: Pretrained,
    training: Training = WIDE,
    length: int = 64,
    objective: Objective = TEACHES,
    student: Stage[Model] | None = None,
) -> Train:
    teacher = base if objective.needs_teacher else None
    tokens = Packed([], base, length, 64)
    return Train(student or base, teacher, tokens, FORMAT, objective, None, training)


def estimate(*given: Any, **settings: Any) -> Memory:
    return of_training(stage(*given, **settings), device="cpu")


def sizes(model: Model) -> tuple[int, int, int]:
    """Weights in all, those in the blocks and of the last norm, and the bytes of the buffers."""
    network = model.network
    ends = sum(p.numel() for p in network.get_input_embeddings().parameters())  # tied to the head
    weights = sum(p.numel() for p in network.parameters())
    return weights, weights - ends, sum(b.nbytes for b in network.buffers())


def test_parts_at_rest_are_exact(base: Pretrained, model: Model) -> None:
    weights, trained, buffers = sizes(model)
    found = estimate(base)
    assert found.teacher == 2 * weights + buffers
    assert found.parameters == trained * (2 + 4)  # the network's own, and masters
    tensors = len(list(model.network.parameters())) - 1
    assert found.optimizer == trained * 8 + 4 * tensors  # and each one's count of steps
    assert found.gradients == trained * 4  # the sums over this step's micro-batches
    assert found.total == sum(vars(found).values())


def test_every_way_to_hold_weights_is_seen(base: Pretrained, model: Model) -> None:
    weights, trained, buffers = sizes(model)
    inside = sum(m.weight.numel() for m in linears(model.network).values())
    alone = estimate(base, objective=CE())
    assert (alone.teacher, alone.parameters) == (0, 2 * weights + buffers + trained * 6)
    clipped = Clip(text="testbed").build(base, FORMAT)
    assert estimate(base, student=clipped).parameters == trained * 6 + inside * 2
    exact = estimate(base, replace(WIDE, dtype="float32"))
    assert exact.teacher == weights * (2 + 4) + buffers
    small = estimate(base, replace(WIDE, optimizer="adamw-8bit"))
    assert small.optimizer < 0.4 * estimate(base).optimizer
    once = estimate(base, replace(WIDE, batch_size=32))  # no sums from micro-batches before
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
    found = estimate(base, replace(WIDE, dtype=dtype))
    assert found.activations == pytest.approx(counted, rel=0.05)


def test_the_peak_is_what_torchs_own_tracker_counts(base: Pretrained) -> None:
    """To the byte, of a step that MemTracker takes: no frozen weights, the head in one piece."""
    with dry_run() as live, MemTracker() as tracker:
        student = load_weightless(live, base)
        masters = Masters.of(student, FORMAT, "all", torch.bfloat16)
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
    usual = estimate(base)
    assert estimate(base, replace(WIDE, micro_batch=16)).total < usual.total
    assert estimate(base, length=32).total < usual.total
    again = estimate(base, replace(WIDE, gradient_checkpointing=True))
    assert again.activations < usual.activations / 1.5  # of two blocks
    assert again.total < usual.total


def test_processes_share_the_blocks(base: Pretrained, model: Model) -> None:
    weights, trained, buffers = sizes(model)
    inside = sum(p.numel() for block in blocks(model.network).values() for p in block.parameters())
    many = replace(WIDE, batch_size=1024)
    shared = of_training(stage(base, many), gpus=4)
    norm = trained - inside  # each process has a copy of it
    assert shared.optimizer == pytest.approx(8 * (inside / 4 + norm), rel=0.01)
    assert shared.gradients == pytest.approx(4 * (inside / 4 + norm), rel=0.01)
    ends = weights - inside
    assert shared.teacher == pytest.approx(2 * (inside / 4 + ends) + buffers, rel=0.02)
    assert shared.parameters == pytest.approx(
        2 * (inside / 4 + ends) + 4 * (inside / 4 + norm) + buffers, rel=0.02
    )
    assert shared.activations == of_training(stage(base, many)).activations
    assert of_training(stage(base, replace(many, gpus=4))) == shared


def test_count_gpus(base: Pretrained) -> None:
    training = stage(base, Training(micro_batch=1, batch_size=64), length=8)
    alone, eight = of_training(training, 1), of_training(training, 8)
    assert count_gpus(training, 3 + 1.1 * alone.total / 2**30) == 1
    assert count_gpus(training, 3 + 1.01 * eight.total / 2**30) == 8
    assert count_gpus(training, 3 + alone.total / 2**40) is None
    generation = Generate(base, None, 8, 32)
    assert estimate_memory(generation, 2) == estimate_memory(generation)
    assert count_gpus(generation, 2**-20) is None


@pytest.mark.parametrize(("gib", "free"), [(24, 3), (80, 8), (141, 14.1)])
def test_what_is_left_free_of_a_device(gib: float, free: float) -> None:
    assert fits(Memory(parameters=int((gib - free - 0.01) * 2**30)), gib)
    assert not fits(Memory(parameters=int((gib - free + 0.01) * 2**30)), gib)


def test_the_host_is_asked_for_what_a_model_of_that_size_needs(tmp_path: Path) -> None:
    """7 billion weights in 16 bits: twice, or once in float32; not once a process."""
    shape = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    LlamaConfig(vocab_size=32000, **shape).save_pretrained(tmp_path)
    large = Pretrained(str(tmp_path), "of no weights", "bfloat16")
    weights = weights_gib(large)
    assert weights == pytest.approx(12.55, abs=0.01)
    alone, eight = (stage(large, Training(gpus=gpus)).resources for gpus in (1, 8))
    assert alone.memory_gib == math.ceil(2 * PROCESS_GIB + 2 * weights)
    assert eight.memory_gib == math.ceil(9 * PROCESS_GIB + 2 * weights)
    assert scoring(large).resources.memory_gib == math.ceil(PROCESS_GIB + weights)
    wide = replace(large, dtype="float32")
    assert weights_gib(wide) == 2 * weights
    taught = replace(stage(large), teacher=wide).resources
    assert taught.memory_gib == alone.memory_gib


def test_other_stages(base: Pretrained, model: Model) -> None:
    weights, _, buffers = sizes(model)
    calibrated = Packed([], base, 64, 128)
    search = ClipSearch(base, calibrated, FORMAT, 20, 10, 512)
    scales = ScaleSearch(base, calibrated, FORMAT, 20, 512)
    tokens = Packed([], base, 64, 64)
    others: list[Stage[Any]] = [
        search,
        scales,
        Generate(base, None, 8, 32),
        Confidence(base, tokens),
    ]
    for other in others:
        found = estimate_memory(other)
        assert found is not None and found.parameters == 2 * weights + buffers
        assert found.gradients == found.optimizer == 0 < found.activations + found.other
    assert pretrained_of(search) == base


def test_rounding_holds_one_layer_beside_what_is_scored(tmp_path: Path) -> None:
    """In 16 bits the base and the new model: the latent weights would be as much again."""
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 24}
    LlamaConfig(vocab_size=512, **shape).save_pretrained(tmp_path)
    deep = Pretrained(str(tmp_path), "of no weights", "bfloat16")
    (weights,) = {of.parameters for of in (estimate_memory(scoring(deep)),) if of}
    trained, plain = Round(stage(deep), deep, FORMAT), Round(deep, deep, FORMAT)
    made, scored = estimate_memory(trained), estimate_memory(scoring(trained))
    assert made is not None and scored is not None
    assert scored.parameters == 2 * weights
    assert 1.9 * weights < made.total < 2.2 * weights
    assert scored.total >= made.total  # whichever is more is what the evaluation needs
    shares, ends = estimate_memory(scoring(plain)), 2 * 2 * 512 * 256
    assert shares is not None and shares.parameters == pytest.approx(2 * weights - ends, rel=0.01)


def scoring(model: Stage[Model]) -> Perplexity:
    task = find_evaluation("testbed-ppl")
    assert isinstance(task, PerplexityTask)
    protocol = replace(task.protocol, window=2)
    return Perplexity(model, texts("testbed", "heldout"), "testbed-ppl", protocol, True)


def test_no_latent_weights_are_at_hand_while_a_model_is_scored(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor the base, in a grid that needs it no more; whether trained in this run or before it."""
    file, store = tmp_path / "grid.yaml", Store(tmp_path / "store")
    settings = {
        "format.group_size": 32, "init": "none", "data": "ground-truth", "data.text": "testbed",
        "data.length": 32, "data.sequences": 8, "train.steps": 1, "train.batch_size": 4,
        "objective": "kl",
    }  # fmt: skip
    content = {"model": str(tiny_folder), "dtype": "bfloat16", "method": "bitdistiller"}
    content |= {"defaults": settings, "evaluate": [{"testbed-ppl": {"limit": 1, "window": 32}}]}
    file.write_text("# What is held?\n" + yaml.safe_dump(content))
    seen: list[list[Model]] = []

    class Seeing(Values):
        def release(self, stage: Stage[Any]) -> None:
            if isinstance(stage, Perplexity):
                seen.append([held for held in self.held.values() if isinstance(held, Model)])
            super().release(stage)

    monkeypatch.setattr(harness.run.runner, "Values", Seeing)
    grid = grids.load(file)
    for _ in range(2):
        assert harness.run.runner.run(plans.build(grid), store, Quiet()).failed == []
        shutil.rmtree(store.path(grid.cells[0].scores[0].key))
    assert [[(m.latent, m.network.dtype) for m in each] for each in seen] == [
        [(False, torch.bfloat16)]
    ] * 2


class Quiet:
    def begin(self, key: str) -> None: ...
    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None: ...
    def end(self, key: str, state: str, words: str) -> None: ...
    def waiting(self, owners: list[str]) -> None: ...


def test_the_table_collapses_equal_stages(base: Pretrained) -> None:
    rates = [stage(base, replace(WIDE, lr=rate)) for rate in (1e-3, 1e-4, 1e-5)]
    printed = table([*rates, stage(base, length=32)], [24, 141])
    assert printed.count("train") == 2 and "train ×3" in printed
    assert "10% and at least 3 GiB free" in printed.splitlines()[-1]
    assert max(map(len, printed.splitlines())) <= 100


def test_plan_prints_the_memory(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f"# How much?\nmodel: {tiny_folder}\ndtype: bfloat16\nmethod: bitdistiller\n"
        "vary: {train.lr: [1e-4, 1e-5]}\ncompare: [rtn]\n"
        "defaults: {format.group_size: 64, init.text: testbed, init.length: 64,\n"
        "           data.text: testbed, data.length: 64}\n"
        "evaluate: [{testbed-ppl: {window: 64}}]\n"
    )
    asked = ["plan", str(grid), "--store", str(tmp_path / "store"), "--memory"]
    assert main([*asked, "--gpu-gib", "24,0.001"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(line for line in lines if "parameters" in line)
    assert head.split()[-4:] == ["total", "host", "24", "0.001"]
    for kind in ("clip-search", "generate", "confidence", "train ×2", "perplexity ×3"):
        row = next(line for line in lines if line.startswith(kind))
        assert row.split()[-2:] == ["1", "–"], row
    with pytest.raises(SystemExit):
        main([*asked, "--gpu-gib", "-1"])
