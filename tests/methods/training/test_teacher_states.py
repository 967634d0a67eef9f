"""A teacher's states that are stored: the training that reads them is the one that runs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import methods.training.teacher_states as module
from harness.cli.main import main
from harness.core.errors import BitgridError, GridError, ModelError
from harness.core.execution import execute
from harness.core.stage import Stage, closure, listening
from harness.core.store import Store
from harness.data import Packed, Tokens
from harness.grid.expand import Grid, load
from harness.models import Model, Pass, Pretrained, blocks, list_passes, pretrained, weights_gib
from harness.models.dry_run import estimate_memory
from harness.models.passes import count_flops, count_weights
from harness.run import plan as plans
from harness.run.compute import Values, compute
from methods.training.forward import Labels, keep_head, run_head, run_trunk
from methods.training.objectives import CAKLD, KL, TSLD, BlockMSE, Objective
from methods.training.settings import Training
from methods.training.shards import ALONE
from methods.training.sums import Sum
from methods.training.teacher_states import States, TeacherStates, build_states
from methods.training.train import Train
from tests.methods.training.test_train import SMALL, make_tokens, rows_of, same, stage
from tests.support.memory import WIDE, build_training, measure_sizes

EVEN = Tokens(make_tokens().ids, torch.ones(10, 12, dtype=torch.bool))


def store_states(work: Path, teacher: Model, tokens: Tokens, dtype: Any, rows: int = 2) -> States:
    work.mkdir(exist_ok=True)
    return execute(TeacherStates(teacher, tokens, dtype, rows), {}, work)


def run_training(work: Path, given: Train) -> Model:
    work.mkdir(exist_ok=True)
    return execute(given, {}, work)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("objective", [CAKLD(0.4), Sum((KL(), TSLD()), (1, 1))], ids=["one", "sum"])
def test_the_same_bits_as_of_the_teacher_that_runs(
    llama: Model,
    teacher: Model,
    tmp_path: Path,
    objective: Objective,
    dtype: Literal["float32", "bfloat16"],
) -> None:
    """Where sequences are of one length; the sum asks for the teacher twice a step."""
    training = replace(SMALL, dtype=dtype)
    running = stage(llama, teacher, EVEN, training, objective)
    states = store_states(tmp_path / "states", teacher, EVEN, dtype)
    whole = run_training(tmp_path / "run", running)
    read = run_training(tmp_path / "read", replace(running, states=states))
    assert same(whole, read)
    first, second = (
        [(row["loss"], row["grad_norm"]) for row in rows_of(tmp_path / name)]
        for name in ("run", "read")
    )
    assert first == second and len(first) == SMALL.steps


def test_of_uneven_sequences_they_are_those_of_each_alone(
    llama: Model, teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any order and number, over several files, without those that have no labels."""
    monkeypatch.setattr(module, "_FILE_BYTES", 4 * 12 * 64 * 4)
    tokens = make_tokens()
    tokens.mask[3] = False
    states = store_states(tmp_path, teacher, tokens, "float32", 3)
    assert [len(each) for each in states.counts] == [4, 4, 2]
    rows = torch.tensor([9, 3, -1, 0, 7, 0])
    expected = [
        Labels.of(ids[None], mask[None]).pick(run_trunk(teacher.network, ids[None]))
        for ids, mask in ((tokens.ids[row], tokens.mask[row]) for row in (9, 3, 0, 7, 0))
    ]
    torch.testing.assert_close(states.read(rows), torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert states.read(torch.tensor([3])).shape == (0, 64)
    ragged = stage(llama, teacher, tokens)
    read = run_training(tmp_path / "read", replace(ragged, states=states))
    whole = run_training(tmp_path / "run", ragged)
    for name, weight in read.network.named_parameters():
        torch.testing.assert_close(weight, whole.network.get_parameter(name), rtol=0, atol=1e-5)
    with pytest.raises(BitgridError, match="of other sequences than those"):
        run_training(tmp_path / "other", replace(stage(llama, teacher, EVEN), states=states))


def test_a_killed_one_computes_what_is_not_whole(
    teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FILE_BYTES", 4 * 12 * 64 * 4)
    whole = store_states(tmp_path / "whole", teacher, EVEN, "float32")
    work = tmp_path / "killed"

    def stop(done: int, total: int, metrics: object) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), listening(stop):
        store_states(work, teacher, EVEN, "float32")
    first, second = sorted(work.iterdir())
    second.write_bytes(second.read_bytes()[:-40] + bytes(40))  # as a torn write leaves it
    stamp = first.stat().st_mtime_ns
    again = store_states(work, teacher, EVEN, "float32")
    assert again.fingerprint() == whole.fingerprint() and len(again.files) == 3
    assert first.stat().st_mtime_ns == stamp
    everything = torch.arange(10)
    assert torch.equal(again.read(everything), whole.read(everything))


def test_what_cannot_be_kept_is_refused(
    teacher: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = teacher.fork()
    old = broken.network.model.layers[1].mlp.down_proj.weight
    spoilt = torch.nn.Parameter(old.masked_fill(old > 0, torch.nan), requires_grad=False)
    broken.network.model.layers[1].mlp.down_proj.weight = spoilt
    with pytest.raises(ModelError, match=r"not finite in float32, first .*layers\.1\.mlp\.down"):
        store_states(tmp_path, broken, EVEN, "float32")
    assert list(tmp_path.iterdir()) == []
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(BitgridError, match=r"disk has 0\.0 GiB left; train\.teacher_states: run"):
        store_states(tmp_path, teacher, EVEN, "float32")


def test_a_head_needs_no_blocks(teacher: Model) -> None:
    head = ALONE.split(keep_head(teacher), torch.float32)
    states = torch.randn(5, 64)
    assert torch.equal(run_head(head.network, states), run_head(teacher.network, states))
    assert sum(p.numel() for each in blocks(head.network).values() for p in each.parameters()) == 0
    assert all(p.numel() for p in teacher.network.parameters())


def test_a_stored_value_outlives_its_scratch(tiny_folder: Path, tmp_path: Path) -> None:
    """The run that computes it goes on with it, and later ones read the store's."""
    base = pretrained(str(tiny_folder), "float32")
    kept = TeacherStates(base, Packed(["some words and more " * 20], base, 8, 4), "float32", 2)
    store = Store(tmp_path / "store")
    result = compute(kept, Values(store))
    assert not (store.root / "work" / kept.key).exists()
    loaded = store.load(kept)
    assert loaded.fingerprint() == result.fingerprint()
    assert torch.equal(loaded.read(torch.arange(4)), result.read(torch.arange(4)))
    facts = store.manifest(kept.key)["value"]
    assert (facts["labels"], facts["width"], facts["dtype"]) == (4 * 7, 64, "float32")
    maps = Path("/proc/self/maps").read_text()
    assert str(store.path(kept.key) / loaded.files[0].name) in maps


# In a grid

GRID = """\
# How is the teacher read?
model: {model}
method: {name: bitdistiller, data: ground-truth}
vary:
  objective: [{cakld: 0}, kl, tsld, ce]
defaults:
  format.group_size: 32
  init.text: testbed
  init.sequences: 2
  init.length: 16
  data.sequences: 4
  data.length: 17
  data.text: testbed
  train.steps: 8
  train.batch_size: 2
  train.teacher_states: {states}
evaluate: [{testbed-ppl: {window: 64, limit: 2}}]
""".replace("{cakld: 0}", "cakld")


def write_grid(folder: Path, model: Path, states: str, text: str = GRID) -> Path:
    path = folder / "states.yaml"
    path.write_text(text.replace("{model}", str(model)).replace("{states}", states))
    return path


def list_stages(grid: Grid) -> list[Stage[Any]]:
    return closure([cell.model for cell in grid.cells])


def test_cells_of_the_same_data_share_one(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running, stored = (
        {s.key: s for s in list_stages(load(write_grid(tmp_path, tiny_folder, states)))}
        for states in ("run", "stored")
    )
    (kept,) = [s for s in stored.values() if isinstance(s, TeacherStates)]
    trainings = [s for s in stored.values() if isinstance(s, Train)]
    readers = [s for s in trainings if s.objective.name != "ce"]
    assert len(trainings) == 4 and all(s.states is kept or s.states == kept for s in readers)
    assert not any(isinstance(s, TeacherStates) for s in running.values())
    assert not {s.key for s in readers} & running.keys()
    for each in trainings:  # and nothing else differs, so the one that has no teacher is the same
        assert replace(each, states=None).key in running
    assert [s.on_host for s in trainings if s not in readers] == [False]
    assert all(s.on_host for s in readers)

    options = ["--store", str(tmp_path / "store")]
    assert main(["plan", str(write_grid(tmp_path, tiny_folder, "stored")), *options]) == 0
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["teacher-states", *["1,", "0.00", "GiB", "of", "the", "disk", "at", "most"]] in words
    assert ["train", "4"] in words
    assert kept.resources.disk_gib == 4 * 16 * 64 * 2 / 2**30  # labels, channels, bytes
    plan = plans.build(load(write_grid(tmp_path, tiny_folder, "run")))
    # 8 steps of 2 of the 4 sequences; tsld alone weighs tokens by the one factor that it has.
    assert plan.advice == (
        "teacher: 3 trainings read the same data 12 times with it; train.teacher_states: stored "
        "reads them once, and keeps 0.00 GiB at most",
    )


def test_objectives_that_see_blocks_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    text = GRID.replace("ce]", "{name: sum, parts: [kl, block-mse], weights: [1, 1]}]")
    with pytest.raises(GridError, match=r"'block-mse' sees the teacher's states behind every"):
        load(write_grid(tmp_path, tiny_folder, "stored", text))
    plan = plans.build(load(write_grid(tmp_path, tiny_folder, "run", text)))
    assert "3 trainings" in plan.advice[0]  # the others'


def test_what_passes_the_teacher_is_counted_once(tiny_folder: Path) -> None:
    base = pretrained(str(tiny_folder), "float32")
    running = build_training(base, Training(steps=8, batch_size=4))
    kept = TeacherStates(base, running.tokens, "bfloat16")  # type: ignore[arg-type]
    stored = replace(running, states=kept)
    tokens, all_weights = 8 * 4 * 64, count_weights(base)
    assert list_passes(kept) == (Pass(base, 64 * 64, "read"),)
    head = 300 * 64
    assert count_weights(base, only_head=True) == head
    assert count_flops(list_passes(running)) == (6 + 2) * all_weights * tokens
    assert count_flops(list_passes(stored)) == (6 * all_weights + 2 * head) * tokens


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Pretrained:
    return pretrained(str(tiny_folder), "bfloat16")


def test_memory_is_that_of_head_and_states(base: Pretrained) -> None:
    weights, trained, buffers = measure_sizes(base.run(Path()))
    running = build_training(base, WIDE)
    kept = build_states(base, running.tokens, KL(), replace(WIDE, teacher_states="stored"))  # type: ignore[arg-type]
    assert kept is not None and kept.rows == 32
    stored = replace(running, states=kept)
    before, after = (estimate_memory(each, device="cpu") for each in (running, stored))
    assert before is not None and after is not None
    ends, norm = weights - trained, 64
    assert before.teacher == 2 * weights + buffers
    assert after.teacher == 2 * (ends + norm)
    # The student is not the teacher's any more: its own ends come to the device.
    assert after.parameters - before.parameters == 2 * ends
    assert after.activations == before.activations
    alone = estimate_memory(kept, device="cpu")
    assert alone is not None and alone.parameters == 2 * weights
    assert kept.resources.disk_gib == 64 * 63 * 64 * 2 / 2**30
    assert kept.resources.memory_gib < 6 + weights_gib(base)


def test_the_setting_is_refused_by_its_objective() -> None:
    with pytest.raises(BitgridError, match=r"train\.teacher_states: run$"):
        build_states(None, None, BlockMSE(), Training(teacher_states="stored"))  # type: ignore[arg-type]
