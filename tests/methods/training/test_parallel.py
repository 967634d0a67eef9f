"""Several processes that share a model and a batch: the same training as by one, down to rounding.

Each test goes through a grid and the engine, as a user's run does; `train.gpus: 2` on a CPU starts
two processes. They are forks, torchrun too, since imports took longest; in the test that kills them
all are what a user's are.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

import harness.run.processes
from harness.core.errors import BitgridError
from harness.core.stage import Stage, closure
from harness.core.store import Store
from harness.data import Tokens
from harness.grid import expand as grids
from harness.models import Model
from harness.run import plan as plans
from harness.run.compute import Values
from harness.run.runner import Outcome, run
from methods.training.train import Train
from tests.support import architectures
from tests.support.forked import find_forks, fork_processes

ROOT = Path(__file__).parents[3]
STEPS = 32
DOING = "online-hadamard", "activations", "kv-cache"
GRID: dict[str, Any] = {
    "dtype": "float32",
    "method": {"name": "bitdistiller", "init": "none", "objective": "kl", "data": "ground-truth"},
    "evaluate": [{"testbed-ppl": {"limit": 1, "window": 64}}],
    "defaults": {
        "format.bits": 4,
        "format.group_size": 32,
        "data.text": "testbed",
        "data.sequences": 13,
        "data.length": 24,
        "train.epochs": 12,  # 156 sequences: the last step has one of them, and two processes
        "train.batch_size": 5,
        "train.micro_batch": 2,
        "train.lr": 3e-4,
        "train.dtype": "float32",
        "train.checkpoint_every": 3,
    },
}


class Watcher:
    """Remembers what it is told, and does something at every step."""

    def __init__(self, at_step: Callable[[int], None] = lambda done: None) -> None:
        self.at_step = at_step
        self.steps: list[tuple[int, int]] = []
        self.words: list[str] = []
        self.notes: list[str] = []

    def begin(self, key: str) -> None:
        self.kind = key

    def step(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if total == STEPS:
            assert set(metrics) == {"loss"}
            self.steps.append((done, total))
            self.at_step(done)

    def end(self, key: str, state: str, words: str) -> None:
        self.words.append(f"{state} {words}")

    def note(self, words: str) -> None:
        self.notes.append(words)

    def waiting(self, owners: list[str]) -> None:
        raise AssertionError(f"waits for {owners}")


class Place:
    """A grid of one cell, with a store of its own."""

    def __init__(
        self,
        folder: Path,
        model: Path,
        objective: Any = "kl",
        text: str = "testbed",
        attach: Sequence[str] = (),
        format: str = "int-asym",
        **train: Any,
    ) -> None:
        folder.mkdir()
        self.file, self.store = folder / "parallel.yaml", Store(folder / "store")
        settings = GRID["defaults"] | {f"train.{name}": given for name, given in train.items()}
        settings["data.text"] = text
        method = GRID["method"] | {"objective": objective, "attach": [*attach]}
        if format != "int-asym":  # whose fields are then the method's own
            method["format"] = format
        content = {"model": str(model), **GRID, "method": method, "defaults": settings}
        self.file.write_text("# Do two train as one?\n" + yaml.safe_dump(content))
        grid = grids.load(self.file)
        (cell,) = grid.cells
        self.stage: Stage[Model] = next(s for s in closure([cell.model]) if s.kind == "train")

    @property
    def work(self) -> Path:
        """The scratch of the stage's owner; before there is one, where it may be put."""
        owned = sorted((self.store.root / "work" / self.stage.key).glob("*"))
        return owned[0] if owned else self.store.root / "work" / self.stage.key / "first"

    def run(self, watcher: Watcher) -> Outcome:
        grid = grids.load(self.file)
        return run(plans.build(grid), self.store, watcher, retry_before=math.inf)

    def losses(self) -> list[float]:
        return [row["loss"] for row in self.log(self.store.path(self.stage.key))]

    def log(self, folder: Path) -> list[dict[str, Any]]:
        file = folder / "metrics.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def weights(self) -> dict[str, torch.Tensor]:
        return dict(self.store.load(self.stage).network.named_parameters())


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Place:
    """What one process makes of the grid."""
    place = Place(tmp_path_factory.mktemp("parallel") / "alone", tiny_folder)
    place.run(Watcher())
    return place


@pytest.fixture(autouse=True)
def no_orphans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    here = str(tmp_path_factory.getbasetemp())  # other tests' processes run elsewhere
    words = {p: " ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])}
    left = [p for p, said in words.items() if "harness.run.worker" in said and here in said]
    _, alive = psutil.wait_procs([*left, *find_forks()], timeout=20)
    assert alive == []


@pytest.fixture(autouse=True)
def forks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "killed" not in request.node.name:
        fork_processes(monkeypatch)


def mapping(path: str, family: list[psutil.Process] | None = None) -> int:
    """How many processes have a file mapped whose path begins so."""
    family = psutil.Process().children(recursive=True) if family is None else family
    return sum(path in Path(f"/proc/{p.pid}/maps").read_text() for p in family)


def same(left: Place, right: Place, steps: int = STEPS, within: float = 1e-4) -> None:
    assert left.losses() == pytest.approx(right.losses(), abs=within)
    assert len(left.losses()) == steps
    a, b = left.weights(), right.weights()
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=within, msg=name)


def test_two_processes_train_as_one_does(alone: Place, tiny_folder: Path, tmp_path: Path) -> None:
    """Of these two both have the head of the teacher alone, and read its stored states."""
    settings = {"gradient_checkpointing": True, "teacher_states": "stored"}
    two = Place(tmp_path / "two", tiny_folder, gpus=2, **settings)
    assert isinstance(two.stage, Train) and two.stage.states is not None
    assert replace(two.stage, states=None).key == alone.stage.key
    watcher = Watcher()
    assert two.run(watcher).failed == [], watcher.words
    same(two, alone)
    assert watcher.steps == [(step, STEPS) for step in range(1, STEPS + 1)]
    manifest, expected = (p.store.manifest(p.stage.key) for p in (two, alone))
    assert manifest["code"] == expected["code"]
    assert manifest["stage"]["training"]["gpus"] == 2
    assert manifest["device"] == "cpu" and manifest["wall_s"] > 0
    assert not two.work.exists()


def test_two_processes_train_everything_by_objectives_that_add_up_as_one_does(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embeddings and head lie whole in each process, weights differ from token to token for one
    part of the sum, and the other sees what is behind sharded blocks.

    A few steps: where rounding of sums puts a weight on the other side of the middle between two
    levels, two trainings part, as those of one process with other micro-batches do.

    The student rotates and rounds as it runs, and its format has trained steps. The text is shorter
    than asked. The model is computed with in another dtype than its files', so that they cannot be
    mapped, and both processes read a copy.
    """
    half = tmp_path / "half"
    shutil.copytree(tiny_folder, half)
    LlamaForCausalLM.from_pretrained(half, dtype=torch.bfloat16).save_pretrained(half)
    text = tmp_path / "short.txt"
    text.write_text("a few words and a few more " * 14)
    places, notes, mapped = [], [], []
    both = {"name": "sum", "parts": ["tsld", "block-mse"], "weights": [1, 10]}
    for gpus in (1, 2):
        trained = {"trained": "all", "steps": 8, "gpus": gpus}
        place = Place(tmp_path / str(gpus), half, both, f"file:{text}", DOING, "int-lsq", **trained)
        seen, copies, watcher = [0], f"{place.work.parent}/", Watcher()
        monkeypatch.setattr(
            watcher, "step", lambda *_, seen=seen, copies=copies: seen.append(mapping(copies))
        )
        assert place.run(watcher).failed == [], watcher.words
        places.append(place)
        notes.append(watcher.notes)
        mapped.append(max(seen))
    same(*places, steps=8, within=1e-5)
    assert mapped == [0, 2]
    one, two = (place.store.load(place.stage).format_parameters for place in places)
    assert len(one) == 14 and one.keys() == two.keys()
    for layer, own in one.items():
        torch.testing.assert_close(two[layer]["step"], own["step"], rtol=0, atol=1e-5)
    for place in places:
        assert tuple(each.name for each in place.store.load(place.stage).attachments) == DOING
    assert notes[0] == notes[1] and len(notes[0]) == 1
    assert "short.txt, train: " in notes[0][0] and "where 13 were asked for" in notes[0][0]
    assert places[0].losses() == pytest.approx(places[1].losses(), abs=1e-6)


def test_what_experts_read_is_changed_in_both_processes(tmp_path: Path) -> None:
    """Experts in one parameter, whose rows are gathered as a block is run, and once more for the
    backward pass."""
    model, places = architectures.build("qwen3-moe", tmp_path / "experts"), []
    for gpus in (1, 2):
        trained = {"gradient_checkpointing": True, "steps": 6, "gpus": gpus}
        place = Place(tmp_path / str(gpus), model, attach=DOING, **trained)
        watcher = Watcher()
        assert place.run(watcher).failed == [], watcher.words
        places.append(place)
    same(*places, steps=6, within=1e-5)


def test_two_processes_stop_where_training_diverges(tiny_folder: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "wild", tiny_folder, trained="all", lr=3.0, gpus=2)
    assert place.run(Watcher()).failed == [place.stage.key]
    record = place.store.failure(place.stage.key) or {}
    assert record["exception"] == "TrainingError"
    assert record["message"].startswith("training diverged at step 20: ")
    assert "model.layers." in record["message"]
    assert len(place.log(place.work)) == 19
    assert not (place.work / "inputs").exists()


def test_killed_with_two_processes_goes_on_with_one(
    alone: Place, tiny_folder: Path, tmp_path: Path
) -> None:
    place = Place(tmp_path / "killed", tiny_folder, gpus=2)
    command = [sys.executable, "-m", "harness.cli", "run", str(place.file)]
    command += ["--store", str(place.store.root), "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(place.log(place.work)) < 7:
        assert child.poll() is None, (place.work / "processes.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = psutil.Process(child.pid).children(recursive=True)
    assert sum("harness.run.worker" in process.cmdline() for process in family) == 3
    assert mapping(f"{tiny_folder}/model.safetensors", family) == 2  # and nobody wrote a copy
    assert not list(place.work.glob("inputs/values/*/model.safetensors"))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert psutil.wait_procs(family, timeout=20)[1] == []
    begun = place.log(place.work)
    assert 7 <= len(begun) < STEPS
    one = Place(tmp_path / "one", tiny_folder)
    shutil.copytree(place.work, one.work)
    watcher = Watcher()
    assert one.run(watcher).failed == []
    assert 7 <= watcher.steps[0][0] <= len(begun) + 1
    same(one, alone)


def test_begun_by_one_process_goes_on_with_two(
    alone: Place, tiny_folder: Path, tmp_path: Path
) -> None:
    """And an interrupt ends the two, whose checkpoint one process finishes."""

    def stop(at: int) -> Callable[[int], None]:
        def interrupt(done: int) -> None:
            if done == at:
                raise KeyboardInterrupt

        return interrupt

    place = Place(tmp_path / "place", tiny_folder)
    with pytest.raises(KeyboardInterrupt):
        place.run(Watcher(stop(8)))
    file = place.file.read_text()
    place.file.write_text(file.replace("train.lr", "train.gpus: 2\n  train.lr"))
    watcher = Watcher(stop(20))
    with pytest.raises(KeyboardInterrupt):
        place.run(watcher)
    assert [done for done, _ in watcher.steps] == list(range(7, 21))
    assert list((place.store.root / "claims").iterdir()) == []
    place.file.write_text(file)
    assert place.run(Watcher()).failed == []
    same(place, alone)


def test_nan_in_one_process_stops_all_with_the_record_that_one_leaves(
    alone: Place, tiny_folder: Path, tmp_path: Path
) -> None:
    """A token's embedding has no norm to divide by; one sequence, and so one process, has it."""
    tokens: Tokens = Values(alone.store).of(alone.stage.tokens)  # type: ignore[attr-defined]
    inner = [set(row[1:-1].tolist()) for row in tokens.ids]
    rare = next(t for t in sorted(set.union(*inner)) if sum(t in row for row in inner) == 1)
    model = tmp_path / "model"
    shutil.copytree(tiny_folder, model)
    network = LlamaForCausalLM.from_pretrained(model)
    network.config.rms_norm_eps = 0.0
    with torch.no_grad():
        network.model.embed_tokens.weight[rare] = 0.0
    network.save_pretrained(model)
    records = []
    for gpus in (1, 2):
        place = Place(tmp_path / f"by-{gpus}", model, gpus=gpus)
        outcome = place.run(Watcher())
        assert outcome.failed == [place.stage.key]
        assert len(outcome.blocked) == 1
        records.append(place.store.failure(place.stage.key) or {})
    one, two = records
    assert two["message"] == one["message"]
    assert two["exception"] == one["exception"] == "TrainingError"
    assert "activations of model.layers.0.input_layernorm; no checkpoint yet" in two["message"]
    assert "methods/training/train.py" in two["traceback"]
    assert two["code"] == one["code"] and two["stage"]["training"]["gpus"] == 2


def test_what_is_lacking_is_said_before_anything_is_computed(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    eight = Place(tmp_path / "eight", tiny_folder, optimizer="adamw-8bit")
    with pytest.raises(BitgridError, match="pip install torchao"):
        eight.run(Watcher())
    monkeypatch.setattr(harness.run.processes, "device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    two = Place(tmp_path / "two", tiny_folder, gpus=2)
    with pytest.raises(BitgridError, match=r"train:\w+ asks for 2 GPUs and this machine has 1"):
        two.run(Watcher())
    assert eight.store.keys() == two.store.keys() == []
