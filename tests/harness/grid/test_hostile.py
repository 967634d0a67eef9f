"""Hostile and clumsy grids: each is refused in one line, soon and without memory, or means what it
says."""

from __future__ import annotations

import gzip
import json
import os
import re
import struct
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.cli.main import main
from harness.cluster.profile import Profile
from harness.config.settings import list_places
from harness.core.checked import fields_adapter
from harness.core.errors import BitgridError, GridError, ModelError, make_line
from harness.data import jsonl
from harness.evaluation.evaluations import EVALUATIONS, find_evaluation
from harness.evaluation.lm_eval_options import LmEvalCodeOptions
from harness.grid.expand import load
from harness.grid.schema import GridFile
from harness.method import METHODS
from harness.models.sizes import bounded, check_sizes
from tests.support.hostile_grids import BASE, EXPERIMENTS, KINDS, check_accepted, write_grid

SECONDS = 10.0  # of a grid: 2, and more where a neighbour has the cores (`benchmarks`)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def _try(kind: str, random: Random, folder: Path) -> bool:
    """Whether a grid was taken; else it was refused well."""
    path = write_grid(kind, random, folder)
    start = time.monotonic()
    try:
        load(path)
    except GridError as error:
        line = str(error)
        assert line.isprintable() and len(line) < 3000
        assert line.startswith(f"{folder}/")
        return False
    finally:
        assert time.monotonic() - start < SECONDS
    check_accepted(path)
    return True


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first grid costs, whatever it is, is not the hostile ones'."""
    path = tmp_path_factory.mktemp("warm") / "grid.yaml"
    path.write_text(BASE)
    load(path)
    load(EXPERIMENTS / "quickstart.yaml", allow_code_execution=True)
    find_evaluation("piqa")  # lm-eval's index of tasks
    check_accepted(path)


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_grids_are_refused_or_valid(warm: None, kind: str, tmp_path: Path) -> None:
    before = _read_memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    for seed in range(16):
        _try(kind, Random(seed), tmp_path / f"{seed}")
    assert _read_memory("VmHWM") - before < 300


@given(st.randoms(use_true_random=False), st.sampled_from(KINDS))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_hostile_grid(warm: None, random: Any, kind: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        _try(kind, random, Path(folder))


def _read_memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


TWO = "defaults: {"
REFUSED = {
    "a bool for a number": (TWO, "defaults: {objective.gamma: false, ", 6, "false should be a num"),
    "a bool for a limit": ("limit: 20", "limit: true", 8, "true should be a whole number"),
    "no learning rate": ("train.lr: [1e-4]", "train.lr: [0]", 4, "should be more than 0"),
    "no steps": ("train.steps: 4", "train.steps: 0", 7, "train.steps: 0 should be at least 1"),
    "one past sense": ("train.lr: [1e-4]", "train.lr: [1e308]", 4, "should be at most 10"),
    "one that is none": ("train.lr: [1e-4]", "train.lr: [.nan]", 4, ".nan should be a finite"),
    "examples past sense": (
        "{testbed_knowledge: {limit: 20}}",
        "{arc_easy: {num_fewshot: 1000000000}}",
        8,
        "num_fewshot: 1000000000 should be at most 1000",
    ),
    "a seed beside its axis": ("vary: {", "seed: 3\nvary: {seed: [0, 1], ", 4, "leave one out"),
    "a default overruled": (TWO, "defaults: {train.lr: -3, ", 6, "-3 should be more than 0"),
    "a default of none here": (TWO, "defaults: {init.alpha: 3, ", 6, "'init.alpha' is not a set"),
    "one that nobody has here": (TWO, "defaults: {data.top_p: 3, ", 6, "3 should be at most 1"),
    "an empty label": ("label: Nearest", 'label: " "', 5, "should name the method"),
    "a label of nothing seen": ("label: Nearest", 'label: "\\u200b"', 5, "the character U+200B"),
    "a label past sense": ("label: Nearest", f"label: {'x' * 99_999}", 5, "at most 120 characters"),
    "control characters": ("label: Nearest", 'label: "\\x1b[2J"', 5, "the character U+001B"),
    "half a surrogate pair": ("label: Nearest", 'label: "\\ud83d"', 5, "the character U+D83D"),
    "from right to left": ("label: Nearest", 'label: "\\u202egpj"', 5, "the character U+202E"),
    "a user that is not there": ("testbed-small", "~nosuchuser/m", 2, "cannot be looked at: Could"),
    "a path past sense": ("testbed-small", "a/" * 2500, 2, "cannot be looked at: File name too"),
    "NUL": ("testbed-small", '"a\\0b"', 2, "the character U+0000"),
    "5,000 digits": ("train.steps: 4", f"train.steps: {'9' * 5000}", 7, "too long for a number"),
    "hexadecimal ones": ("train.steps: 4", f"train.steps: 0x{'f' * 5000}", 7, "too long for a num"),
    "a tag that does not fit": ("train.steps: 4", "train.steps: !!int x", 7, "'x' is not of type"),
    "an escape past Unicode": ("Nearest", '"\\U00110000"', 5, "not YAML"),
    "a million points": (
        "vary: {",
        f"vary: {{seed: {list(range(999))}, train.steps: {list(range(1, 999))}, ",
        4,
        "'max_points: 5982012' in the grid",
    ),
    "an unknown axis of many": (
        "vary: {",
        f"vary: {{seed: {list(range(999))}, trian.steps: {list(range(1, 999))}, ",
        4,
        "'trian.steps' is not a setting of any method here; did you mean 'train.steps'?",
    ),
    "a circle": (
        "evaluate: [",
        "report: &a {rows: *a}\nevaluate: [",
        8,
        "nested too deeply, or in",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_each_kind_is_named_with_its_line(warm: None, kind: str, tmp_path: Path) -> None:
    old, new, line, words = REFUSED[kind]
    assert old in BASE
    path = tmp_path / "grid.yaml"
    path.write_text(BASE.replace(old, new))
    with pytest.raises(GridError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: ")
    assert words in message and message.isprintable() and len(message) < 1500


@pytest.mark.parametrize("verb", ["run", "launch", "status", "report"])
@pytest.mark.parametrize("kind", REFUSED)
def test_every_verb_refuses_in_one_line(
    warm: None, kind: str, verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new, line, words = REFUSED[kind]
    path, store = tmp_path / "grid.yaml", tmp_path / "store"
    path.write_text(BASE.replace(old, new))
    profile = tmp_path / "cluster.yaml"
    profile.write_text("partition: gpu\n")  # which launch reads first
    own = ["--cluster", str(profile)] if verb == "launch" else []
    assert main([verb, str(path), "--store", str(store), *own]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"bitgrid: {path}:{line}: ") and words in said
    assert not list(store.rglob("*.json"))


def test_a_key_lifts_the_cap_of_points(warm: None, tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(BASE + "max_points: 5\n")
    with pytest.raises(GridError, match="6 points; 'max_points: 6' in the grid"):
        load(path)
    path.write_text(BASE + "max_points: 6\n")
    assert len(load(path).cells) == 4


def test_a_fan_of_bases_is_no_more_than_its_files(tmp_path: Path) -> None:
    for level in range(40):
        (tmp_path / f"{level}.yaml").write_text(f"base: [{level + 1}.yaml, {level + 1}.yaml]\n")
    (tmp_path / "40.yaml").write_text(BASE)
    with pytest.raises(GridError, match="more than 32 files, with all that it builds on"):
        load(tmp_path / "0.yaml")
    (tmp_path / "4.yaml").write_text(BASE)
    (tmp_path / "1.yaml").write_text("base: 4.yaml\n")
    load(tmp_path / "0.yaml")


def test_every_number_of_a_setting_has_bounds() -> None:
    """Of all methods and components here, of tasks' options, grids and profiles of clusters."""
    classes = dict.fromkeys(
        cls
        for entry in METHODS.load().values()
        for _, cls, _ in list_places(type(entry.method))
        if cls.__module__.startswith("methods.")
    )
    schemas = {cls: fields_adapter(cls).json_schema() for cls in classes}
    options = {each.options for each in EVALUATIONS.load().values()} | {LmEvalCodeOptions}
    for kind in (*options, GridFile, Profile):
        schemas[kind] = pydantic.TypeAdapter(kind).json_schema()
    assert len(classes) > 10
    unbounded = {
        f"{cls.__name__}.{name}"
        for cls, schema in schemas.items()
        for name, field in schema.get("properties", {}).items()
        if not _is_bounded(field)
    }
    assert unbounded == set()


def _is_bounded(schema: Any) -> bool:
    """Whether every number in a schema has a least and a most; what it refers to is elsewhere."""
    if isinstance(schema, list):
        return all(map(_is_bounded, schema))
    if not isinstance(schema, dict):
        return True
    if schema.get("type") in ("integer", "number") and "enum" not in schema:
        low = {"minimum", "exclusiveMinimum"} & schema.keys()
        return bool(low and {"maximum", "exclusiveMaximum"} & schema.keys())
    return all(map(_is_bounded, schema.values()))


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"num_hidden_layers": 1_000_000}, "num_hidden_layers: 1000000 should be from 0 to 2,048"),
        ({"num_hidden_layers": 40}, "is more than its files of weights have tensors: 39"),
        ({"text_config": {"hidden_size": 10**12}}, "text_config.hidden_size: 1000000000000 should"),
        ({"vocab_size": -1}, "vocab_size: -1 should be from 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: .nan should be a number"),
        ({"max_position_embeddings": 10**30}, "should fit in 64 bits"),
    ],
)
def test_sizes_that_no_model_has(facts: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=re.escape(words)):
        check_sizes("mine", facts, tensors=39)


def test_a_network_has_no_more_modules_than_networks_have(monkeypatch: Any) -> None:
    from torch import nn

    monkeypatch.setattr("harness.models.sizes._MOST_MODULES", 10)
    with pytest.raises(ModelError, match="more than 10 modules"), bounded("mine"):
        nn.ModuleList(nn.Identity() for _ in range(11))
    nn.ModuleList(nn.Identity() for _ in range(11))  # outside there is no bound


@pytest.mark.parametrize("text", ["", "[" * 99_999, '{"a": ' + "9" * 5000 + "}", "[]", " " * 2**23])
def test_a_configuration_that_is_none(warm: None, text: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(text)
    path = tmp_path / "grid.yaml"
    path.write_text(BASE.replace("testbed-small", str(tmp_path / "model")))
    with pytest.raises(GridError, match=rf"{path}:2: .*config.json"):
        load(path)


@pytest.mark.parametrize("name", ["bomb.txt.gz", "bomb.jsonl.gz"])
def test_a_text_that_unpacks_past_sense(warm: None, name: str, tmp_path: Path) -> None:
    row = json.dumps({"text": "x" * 2**20}) + "\n"
    (tmp_path / name).write_bytes(gzip.compress(20 * row.encode()))
    path = tmp_path / "grid.yaml"
    path.write_text(BASE.replace("data.text: testbed", f"data.text: 'file:{tmp_path / name}'"))
    with pytest.raises(GridError, match=f"{name} cannot be read: it unpacks to more than 100 time"):
        load(path)
    (tmp_path / name).write_bytes(gzip.compress(10 * row.encode()))  # small enough, whatever it is
    assert jsonl.read_bytes(tmp_path / name) == 10 * row.encode()


def test_files_of_a_model_past_sense(warm: None, tmp_path: Path) -> None:
    (model := tmp_path / "model").mkdir()
    (model / "config.json").write_text("{}")
    with (model / "tokenizer.json").open("wb") as file:
        file.truncate(10 * 2**30)
    path = tmp_path / "grid.yaml"
    path.write_text(BASE.replace("testbed-small", str(model)))
    with pytest.raises(GridError, match=rf"{path}:2: .*tokenizer.json: 10,240 MiB, more than the"):
        load(path)


ENTRY = struct.pack("<Q1sI", 1, b"a", 9)  # a name, and the type of a list
ABSURD = {
    "tensors": (struct.pack("<QQ", 2**60, 1), "1,152,921,504,606,846,976 tensors are more than"),
    "entries": (struct.pack("<QQ", 1, 2**60), "entries of metadata are more than 100,000"),
    "items": (
        struct.pack("<QQ", 1, 1) + ENTRY + struct.pack("<IQ", 8, 2**40),
        "its lists have more than 4,000,000 items",
    ),
    "numbers": (
        struct.pack("<QQ", 1, 1) + ENTRY + struct.pack("<IQ", 12, 10**6),
        "8,000,000 bytes of metadata are more than it has",
    ),
    "a text": (struct.pack("<QQQ", 1, 1, 2**62), "bytes of metadata are more than it has"),
    "a type": (struct.pack("<QQQ1sI", 1, 1, 1, b"a", 99), "a value of type 99"),
    "lists in lists": (
        struct.pack("<QQ", 1, 1) + ENTRY + struct.pack("<IQ", 9, 1) * 9,
        "a value of type 9",
    ),
    "an end": (b"\1", "it ends within its metadata"),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_metadata_past_sense(warm: None, kind: str, tmp_path: Path) -> None:
    content, words = ABSURD[kind]
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + struct.pack("<I", 3) + content)
    path = tmp_path / "grid.yaml"
    path.write_text(BASE.replace("testbed-small", str(tmp_path / "model.gguf")))
    with pytest.raises(GridError, match=rf"{path}:2: .*model.gguf: .*{re.escape(words)}"):
        load(path)


def test_any_text_is_shown_as_one_line() -> None:
    assert make_line("a\n  b\x00\u202e\ud800") == "a b\\x00\\u202e\\ud800"
    long = make_line(f"grid.yaml:3: 'b{'x' * 10**6}z' is unknown; did you mean 'kl'?")
    assert len(long) < 400 and long.endswith("z' is unknown; did you mean 'kl'?")
    assert len(make_line("word " * 10**6)) < 2200
    assert str(BitgridError("a\nb")) == "a b"


def test_the_command_line_says_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for name in ("pipe.yaml", "a" * 5000, "/dev/zero", ".", "~nosuchuser/x"):
        assert main(["plan", str(tmp_path / name), "--store", str(tmp_path / "s")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    path = tmp_path / "grid.yaml"
    path.write_text(BASE)
    for store in ("~nosuchuser/s", "s" * 5000):
        monkeypatch.setenv("BITGRID_STORE", store)
        assert main(["plan", str(path)]) == main(["plan", str(path), "--store", store]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 2
    for variable in ("~nosuchuser/m", "m" * 5000, "/dev/null"):
        monkeypatch.setenv("BITGRID_MIRROR", variable)
        assert main(["plan", str(path), "--store", str(tmp_path / "s")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), OSError(28, "full", "x")])
def test_what_the_machine_refuses_is_one_line(
    error: Exception, monkeypatch: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(sys.modules["harness.cli.main"], "check_packages", fail)
    assert main(["methods"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    error = ValueError("a fault of the program's")
    with pytest.raises(ValueError, match="a fault"):
        main(["methods"])


def test_a_mutated_configuration_is_valid_json() -> None:
    """The kind of grids that tests a model's configuration writes one that is read, mostly."""
    with tempfile.TemporaryDirectory() as folder:
        read = 0
        for seed in range(20):
            write_grid("a model's configuration", Random(seed), Path(folder, str(seed)))
            try:
                json.loads(Path(folder, str(seed), "model", "config.json").read_text())
                read += 1
            except (ValueError, RecursionError):
                pass
    assert read >= 10
