"""Stages: identity, inputs, and the clean state that a run begins from."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.core import execution
from harness.core.errors import BitgridError, SettingError
from harness.core.execution import execute
from harness.core.stage import (
    Input,
    Stage,
    added,
    closure,
    find_code,
    identify,
    kinds,
    listening,
    report,
    to_canonical_json,
    value,
)
from harness.data import Documents
from methods.quantization.formats import IntAsym


@dataclass(frozen=True)
class Part:
    size: int = 3


@dataclass(frozen=True)
class Source(Stage[float]):
    kind: ClassVar[str] = "test-source"
    start: float
    seed: int = 0

    def run(self, work: Path) -> float:
        return self.start


@dataclass(frozen=True)
class Noise(Stage[float]):
    kind: ClassVar[str] = "test-noise"
    seed: int

    def run(self, work: Path) -> float:
        return random.random() + float(numpy.random.rand()) + torch.rand(()).item()


@dataclass(frozen=True)
class Sum(Stage[float]):
    kind: ClassVar[str] = "test-sum"
    parts: tuple[Input[float], ...]
    part: Part = Part()

    def run(self, work: Path) -> float:
        return sum(value(part) for part in self.parts) + self.part.size


def test_the_key_chains_class_version_fields_and_inputs() -> None:
    base = Sum((Source(1.0), Source(2.0)))
    assert base.key == Sum((Source(1.0), Source(2.0))).key
    different = [
        Sum((Source(1.0), Source(2.5))),
        Sum((Source(2.0), Source(1.0))),
        Sum((Source(1.0), Source(2.0)), Part(4)),
        Sum((Source(1.0), Source(2.0, seed=1))),
    ]
    assert len({base.key, *(stage.key for stage in different)}) == 5


def test_an_added_field_leaves_the_keys_of_before() -> None:
    def make(**fields: Any) -> type[Stage[float]]:
        body = {"kind": "test-grown", "__annotations__": {"start": float}}
        for name, default in fields.items():
            body["__annotations__"] |= {name: str}
            body[name] = default
        body["__module__"] = __name__
        return dataclass(frozen=True)(type("Grown", (Stage,), body))

    before, always = make()(1.0), make(way="old")(1.0)
    now = make(way=added("old"))  # the last that claims the kind is the one of descriptions
    assert now(1.0).key == now(1.0, "old").key == before.key
    assert len({before.key, now(1.0, "new").key, always.key}) == 3
    told = now(1.0, "old").description()
    assert told["way"] == "old"  # said to a reader all the same
    assert Stage.from_description(told, {}).key == before.key
    assert Stage.from_description(before.description(), {}).key == before.key


def test_a_bumped_version_is_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Source(1.0).key
    monkeypatch.setattr(Source, "version", 2)
    assert Source(1.0).key != before


def test_a_key_is_of_declared_names_only(tmp_path: Path) -> None:
    """A class that is renamed, in a file that is moved, has the same keys."""
    code = """
from dataclasses import dataclass
from typing import ClassVar
from harness.core.component import Component
from harness.core.stage import Stage
class Part(Component, family="part"): pass
@dataclass(frozen=True)
class {0}(Part):
    name = "small"
    size: int = 1
@dataclass(frozen=True)
class {1}(Stage[float]):
    kind: ClassVar[str] = "moved-stage"
    part: Part = {0}()
print({1}().key)
"""
    keys = set()
    for file, names in (("one.py", ("Small", "Counts")), ("inside/two.py", ("Tiny", "Sums"))):
        path = tmp_path / file
        path.parent.mkdir(exist_ok=True)
        path.write_text(code.format(*names))
        command = [sys.executable, str(path)]
        keys.add(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert len(keys) == 1


def test_two_classes_of_one_kind_are_refused_with_both_files() -> None:
    with pytest.raises(BitgridError, match=r"the kind 'test-source': Source in .*test_stage.py, "):

        class Other(Stage[float]):
            kind: ClassVar[str] = "test-source"

    with pytest.raises(BitgridError, match=r"Nameless \(.*test_stage.py\) declares no kind"):

        class Nameless(Source):
            pass

    assert kinds()["test-source"] is Source


def test_a_stage_comes_back_from_its_description() -> None:
    shared = Source(1.0, seed=3)
    total = Sum((shared, Sum((shared,), part=Part(5))))
    made: dict[str, Stage[Any]] = {}
    for stage in closure([total]):
        described = json.loads(json.dumps(stage.description()))
        made[stage.key] = Stage.from_description(described, made)
    assert made[total.key] == total


def test_a_description_of_other_code_is_refused() -> None:
    for change, words in (
        ({"kind": "gone"}, "kind 'gone' is unknown"),
        ({"version": 7}, "has version 1 here, not 7"),
        ({"lost": 1}, "Source has no field 'lost' here"),
    ):
        with pytest.raises(BitgridError, match=words):
            Stage.from_description({**Source(1.0).description(), **change}, {})


def test_keys_are_equal_in_every_process_whatever_the_hash_seed() -> None:
    code = (
        "from harness.data import Documents; from methods.quantization.formats import IntAsym\n"
        "from harness.core.stage import to_canonical_json, identify\n"
        "print(Documents('testbed', 'train').key, to_canonical_json(identify(IntAsym(bits=2))))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONHASHSEED": "77", "PATH": ""},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    identity = to_canonical_json(identify(IntAsym(bits=2)))
    assert said == f"{Documents('testbed', 'train').key} {identity}\n"


def test_known_key() -> None:
    """Pinned: a change of the key's recipe would orphan every stored value."""
    assert to_canonical_json(identify(Part())) == '{"size":3}'
    assert Source(1.0).key == "7dfaf5bc8bd4072fc70cdd46"


def test_what_has_no_stable_identity_is_refused() -> None:
    with pytest.raises(TypeError, match="no stable identity"):
        identify(object())
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_canonical_json(float("nan"))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
trees = st.recursive(
    scalars, lambda kids: st.lists(kids, max_size=4) | st.dictionaries(st.text(), kids, max_size=4)
)


@given(trees, trees)
def test_equal_fields_equal_identity_and_the_other_way(one: object, other: object) -> None:
    def plain(thing: object) -> object:  # 1, 1.0 and True are equal in Python, not in a key
        return repr(thing)

    def ordered(thing: object) -> object:
        if isinstance(thing, dict):
            return {name: ordered(thing[name]) for name in sorted(thing)}
        return [ordered(item) for item in thing] if isinstance(thing, list) else thing

    same = plain(ordered(one)) == plain(ordered(other))
    try:
        keys = to_canonical_json(identify(one)), to_canonical_json(identify(other))
    except ValueError:  # infinities have no JSON
        return
    assert (keys[0] == keys[1]) == same


def test_inputs_and_closure() -> None:
    shared = Source(1.0)
    total = Sum((shared, Sum((shared, Source(2.0)))))
    assert [stage.kind for stage in total.inputs] == ["test-source", "test-sum"]
    order = closure([total])
    assert len(order) == 4
    assert order[-1] is total
    for position, stage in enumerate(order):
        assert all(above in order[:position] for above in stage.inputs)


def test_execute_binds_values_and_starts_from_a_clean_state(tmp_path: Path) -> None:
    first, second = Source(1.0), Source(2.0)
    values = {first.key: 10.0, second.key: 20.0}
    assert execute(Sum((first, second)), values, tmp_path) == 33.0
    drawn = execute(Noise(5), {}, tmp_path)
    random.random(), torch.rand(3), numpy.random.rand(2)
    assert execute(Noise(5), {}, tmp_path) == drawn
    assert execute(Noise(6), {}, tmp_path) != drawn


@pytest.mark.parametrize(("error", "checked"), [(ValueError, True), (KeyboardInterrupt, False)])
def test_what_ends_the_process_waits_for_no_check(
    error: type[BaseException], checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    monkeypatch.setattr(execution, "fingerprint", lambda given: looked.append(given) or {})
    monkeypatch.setattr(execution, "recall_fingerprint", lambda given: {})

    @dataclass(frozen=True)
    class Ends(Stage[float]):
        kind: ClassVar[str] = f"test-ends-{error.__name__}"
        above: Input[float]

        def run(self, work: Path) -> float:
            raise error

    source = Source(1.0)
    with pytest.raises(error):
        execute(Ends(source), {source.key: 1.0}, tmp_path)  # type: ignore[arg-type]
    assert bool(looked) == checked


def test_a_value_that_is_not_sound_keeps_its_error_and_says_whose_it_is(tmp_path: Path) -> None:
    class Unsound:
        def check(self) -> None:
            raise SettingError("five levels at two bits", "format.bits")

    @dataclass(frozen=True)
    class Makes(Stage[Unsound]):
        kind: ClassVar[str] = "test-makes-unsound"

        def run(self, work: Path) -> Unsound:
            return Unsound()

    with pytest.raises(SettingError, match="its result is not sound: five levels") as caught:
        execute(Makes(), {}, tmp_path)
    assert caught.value.path == "format.bits"


def test_the_state_is_clean_even_after_a_careless_stage(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Careless(Stage[bool]):
        kind: ClassVar[str] = "test-careless"

        def run(self, work: Path) -> bool:
            clean = torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)
            return clean

    assert execute(Careless(), {}, tmp_path)
    assert execute(Careless(), {}, tmp_path)
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_an_unresolved_input_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not resolved"):
        Sum((Source(1.0),)).run(tmp_path)


def test_a_component_with_a_stage_inside_is_bound_too(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Holder:
        inner: Input[float]

    @dataclass(frozen=True)
    class Uses(Stage[float]):
        kind: ClassVar[str] = "test-uses"
        holder: Holder

        def run(self, work: Path) -> float:
            return value(self.holder.inner)

    source = Source(4.0)
    assert Uses(Holder(source)).inputs == (source,)
    assert execute(Uses(Holder(source)), {source.key: 4.5}, tmp_path) == 4.5


def test_reports_reach_the_listener_only() -> None:
    report(1, 2)
    heard: list[tuple[int, int, float]] = []
    with listening(lambda done, total, metrics: heard.append((done, total, metrics["loss"]))):
        report(1, 2, loss=0.5)
    report(2, 2, loss=0.1)
    assert heard == [(1, 2, 0.5)]


def test_modules_are_those_of_the_class_and_its_components() -> None:
    assert find_code(Sum((Source(1.0),), replace(Part(), size=1))) == (Sum, Part)


def test_the_code_of_an_input_that_is_rebuilt_is_behind_the_value() -> None:
    @dataclass(frozen=True)
    class Rebuilt(Stage[float]):
        kind: ClassVar[str] = "test-rebuilt"
        stored: ClassVar[bool] = False
        part: Input[float]

    assert find_code(Sum((Rebuilt(Source(1.0)),))) == (Sum, Part, Rebuilt)
    assert find_code(Sum((Source(1.0),))) == (Sum, Part)
