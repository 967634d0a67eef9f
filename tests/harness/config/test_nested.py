"""Components whose fields are components of their own family, lists and mappings of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.document import Document
from harness.config.settings import (
    check_possible,
    configure,
    describe_setting,
    find_families,
    is_possible,
    is_redefined,
    list_places,
    list_settings,
)
from harness.core.checked import fields_adapter
from harness.core.component import Component, Several
from harness.core.errors import SettingError
from harness.core.execution import execute
from harness.core.frozen import FrozenMapping
from harness.core.stage import Input, Stage, closure, find_code, identify, to_canonical_json
from harness.method import Method


@dataclass(frozen=True)
class Grain(Component, family="test-grain"):
    pass


@dataclass(frozen=True)
class Even(Grain):
    name = "even"
    bits: int = 2
    width: int = 128


@dataclass(frozen=True)
class Raw(Grain):
    name = "raw"


@dataclass(frozen=True)
class Mix(Grain):
    name = "mix"
    default: Grain = Even()
    layers: Mapping[str, Grain] = field(default_factory=dict)


@dataclass(frozen=True)
class Sum(Grain):
    name = "sum"
    parts: tuple[Grain, ...] = ()


@dataclass(frozen=True)
class Start(Component, family="test-start"):
    pass


@dataclass(frozen=True)
class Cut(Start):
    name = "cut"
    grid: int = 20
    text: str = "pile"


@dataclass(frozen=True)
class Turn(Start):
    name = "turn"
    size: int = 4


@dataclass(frozen=True)
class Mill(Method):
    grain: Grain = Even()
    start: Several[Start] = ()
    two: tuple[Start, ...] = (Turn(), Cut(grid=5))


LAYERS = {"*.down": "raw", "a.0.*": {"name": "even", "bits": 4}}


def test_a_component_holds_one_of_its_own_family_and_a_mapping_of_them() -> None:
    made = configure(Mill(), {"grain": {"name": "mix", "default": "even", "layers": LAYERS}})
    layers = FrozenMapping({"*.down": Raw(), "a.0.*": Even(4)})
    assert made == Mill(grain=Mix(Even(), layers)) and isinstance(made.grain, Mix)
    assert list(made.grain.layers) == ["*.down", "a.0.*"]
    deep = configure(made, {"grain.default": {"name": "mix", "default": {"name": "even"}}})
    deeper = configure(deep, {"grain.default.default.bits": 3})
    assert deeper == Mill(grain=Mix(Mix(Even(3)), layers))
    # Also where the part that has a default is named nowhere.
    assert configure(Mill(), {"grain": {"name": "mix", "default": {"bits": 3}}}).grain == Mix(
        Even(3)
    )


def test_parts_of_a_component_inside_another_are_set_by_path() -> None:
    mix = Mill(grain=Mix(Even(), FrozenMapping({"b": Raw()})))
    assert configure(mix, {"grain.default.bits": 3}) == replace(
        mix, grain=Mix(Even(3), FrozenMapping({"b": Raw()}))
    )
    assert dict(list_settings(mix))["grain.default.bits"] == 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("cut", (Cut(),)),
        ({"name": "cut", "grid": 3}, (Cut(3),)),
        (["turn", "cut"], (Turn(), Cut())),
        (["cut", {"name": "cut", "text": "x"}], (Cut(), Cut(text="x"))),
        ([], ()),
    ],
)
def test_a_list_of_components_or_one_alone(given: object, expected: tuple[Start, ...]) -> None:
    assert configure(Mill(), {"start": given}) == Mill(start=expected)


def test_a_path_into_a_list_is_about_every_member_that_has_the_field() -> None:
    mill = Mill(start=(Turn(), Cut(), Cut(grid=3)))
    assert configure(mill, {"start.text": "x"}).start == (
        Turn(),
        Cut(text="x"),
        Cut(grid=3, text="x"),
    )
    together = configure(Mill(), {"start": ["turn", "cut"], "start.grid": 7, "start.size": 8})
    assert together.start == (Turn(8), Cut(7))
    # A member keeps what the one of its class had; the order is the new one.
    assert configure(mill, {"start": ["cut", "turn", "cut"]}).start == (
        Cut(),
        Turn(),
        Cut(grid=3),
    )


@pytest.mark.parametrize(
    ("given", "path", "words"),
    [
        ({"start": ["turn", "cot"]}, "start", "start: 'cot' is unknown; did you mean 'cut'"),
        ({"start": [{"name": "cut", "gird": 1}]}, "start.gird", "did you mean 'start.grid'"),
        ({"start": [{"name": "cut", "grid": "x"}]}, "start.grid", "'x' should be a whole number"),
        ({"two": "cut", "two.grid": "x"}, "two.grid", "'x' should be a whole number"),
        ({"start": [3]}, "start", "start: 3 is unknown"),
        ({"two": 3}, "two", "two: 3 should be a list"),
        ({"two.gird": 3}, "two.gird", "no member of the list has 'gird'; did you mean 'grid'"),
        ({"start.grid": 3}, "start.grid", "no member of the list has 'grid'"),
        (
            {"grain": {"name": "mix", "layers": {"a.b": {"name": "even", "bit": 1}}}},
            "grain.layers.a.b.bit",
            "did you mean 'grain.layers.a.b.bits'",
        ),
        (
            {"grain": {"name": "mix", "layers": {"a.b": {"name": "even", "bits": "x"}}}},
            "grain.layers.a.b.bits",
            "grain.layers.a.b.bits: 'x' should be a whole number",
        ),
        (
            {"grain": {"name": "mix", "layers": {"a": "evn"}}},
            "grain.layers.a",
            "grain.layers.a: 'evn' is unknown; did you mean 'even'",
        ),
        ({"grain": {"name": "mix", "layers": "even"}}, "grain.layers", "should be a mapping"),
        ({"grain": {"name": "mix", "layers": {"a": {}}}}, "grain.layers.a", "give its 'name'"),
        ({"grain": {"name": "mix", "default": {"bit": 1}}}, "grain.default.bit", "default.bits"),
        ({"grain": "mix", "grain.layers.a": "raw"}, "grain.layers", "has no parts"),
    ],
)
def test_what_does_not_fit_is_said_with_its_path(
    given: dict[str, object], path: str, words: str
) -> None:
    with pytest.raises(SettingError) as caught:
        configure(Mill(), given)
    assert words in str(caught.value)
    assert caught.value.path == path


def test_paths_are_listed_to_an_end_and_are_possible_beyond_it() -> None:
    paths = [path for path, *_ in list_places(Mill)]
    assert {"grain.default.bits", "grain.layers", "grain.parts.width", "start.grid"} <= set(paths)
    assert len(paths) < 60
    assert "grain.default.default.default.bits" not in paths
    assert is_possible(Mill, "grain.default.default.default.bits")
    assert not is_possible(Mill, "grain.default.default.bit")
    check_possible(Mill, "grain.layers", {"a": "raw", "b": {"bits": 3}})
    with pytest.raises(SettingError, match=r"grain.layers: 'rew' is unknown"):
        check_possible(Mill, "grain.layers", {"a": "rew"})
    with pytest.raises(SettingError, match=r"start: 'cot' is unknown"):
        check_possible(Mill, "start", ["cut", "cot"])
    families = find_families(Mill)
    assert families["grain.layers"] is families["grain.default"] is families["grain.parts"] is Grain
    assert families["start"] is Start


def test_what_a_member_of_a_list_redefines() -> None:
    @dataclass(frozen=True)
    class Fine(Cut):
        name = "fine"
        grid: int = 100

    held = Mill(start=(Turn(), Fine()))
    assert is_redefined(held, "start.grid", Mill())
    assert not is_redefined(held, "start.text", Mill())
    assert not is_redefined(Mill(start=(Turn(), Cut())), "start.grid", Mill(start=(Cut(),)))


def test_values_are_shown_in_short() -> None:
    layers = FrozenMapping({"*.down": Raw(), "a": Even(4)})
    assert describe_setting(Mix(Even(3), layers)) == "mix"
    assert describe_setting(layers) == "{*.down: raw, a: even bits=4}"
    assert describe_setting(Mill().two) == "[turn, cut grid=5]"
    assert [describe_setting(each) for each in ((), (1, 0.5))] == ["[]", "[1, 0.5]"]


def _walk(schema: Any) -> Iterator[Any]:
    if isinstance(schema, Mapping):
        yield schema
    for part in schema.values() if isinstance(schema, Mapping) else schema:
        if isinstance(part, Mapping | list):
            yield from _walk(part)


def test_the_schema_for_editors_refers_to_itself() -> None:
    adapter: pydantic.TypeAdapter[Any] = fields_adapter(Mill)
    schema = adapter.json_schema()
    names = {part["$ref"].rpartition("/")[2] for part in _walk(schema) if "$ref" in part}
    assert names <= schema["$defs"].keys()
    choices = schema["$defs"]["GrainChoice"]["anyOf"]
    assert choices[0] == {"enum": ["even", "mix", "raw", "sum"]}
    mix = schema["$defs"]["Mix"]["properties"]
    assert mix["name"] == {"const": "mix"}
    assert mix["layers"]["additionalProperties"] == {"$ref": "#/$defs/GrainChoice"}
    one, several = schema["properties"]["start"]["anyOf"]
    assert one == several["items"] == {"$ref": "#/$defs/StartChoice"}
    assert "anyOf" not in schema["properties"]["two"]


@dataclass(frozen=True)
class Held(Stage[str]):
    kind: ClassVar[str] = "test-nested-held"
    grain: Grain
    start: tuple[Start, ...]
    above: Mapping[str, Input[str]] = FrozenMapping()

    def run(self, work: Path) -> str:
        return ",".join(f"{name}={each}" for name, each in self.above.items())


def test_a_stage_with_them_comes_back_from_its_description() -> None:
    layers = {"*.down": Raw(), "a.0.*": Sum((Even(4), Mix(Even(3))))}
    stage = Held(Mix(Even(), layers), (Turn(), Cut(3)))
    whole = Held(Raw(), (), FrozenMapping({"x": stage}))
    made: dict[str, Stage[Any]] = {}
    for each in closure([whole]):
        described = json.loads(to_canonical_json(each.description()))
        made[each.key] = Stage.from_description(described, made)
    assert made == {stage.key: stage, whole.key: whole}
    assert hash(made[whole.key]) == hash(whole)
    assert isinstance(made[stage.key].grain.layers, FrozenMapping)  # type: ignore[attr-defined]


def test_stages_and_code_in_mappings_are_found(tmp_path: Path) -> None:
    stage = Held(Mix(Even(), {"a": Sum((Raw(),))}), (Cut(),))
    assert set(find_code(stage)) == {Held, Mix, Even, Sum, Raw, Cut}
    whole = Held(Raw(), (), FrozenMapping({"x": stage}))
    assert whole.inputs == (stage,)
    assert execute(whole, {stage.key: "found"}, tmp_path) == "x=found"


def test_order_is_part_of_a_key() -> None:
    one, other = (Mix(Even(), dict(pairs)) for pairs in (LISTED, LISTED[::-1]))
    assert one != other
    assert to_canonical_json(identify(one)) != to_canonical_json(identify(other))
    assert to_canonical_json(identify(one)) == to_canonical_json(
        identify(Mix(Even(), dict(LISTED)))
    )


LISTED = [("a", Raw()), ("b", Even())]
entries = st.lists(
    st.tuples(st.text(max_size=3), st.integers()), max_size=5, unique_by=lambda p: p[0]
)


@given(entries, entries)
def test_frozen_mappings_are_equal_where_entries_and_order_are(
    one: list[tuple[str, int]], other: list[tuple[str, int]]
) -> None:
    first, second = FrozenMapping(one), FrozenMapping(other)
    assert list(first.items()) == one
    assert (first == second) == (one == other)
    assert one != other or hash(first) == hash(second)
    assert (to_canonical_json(identify(first)) == to_canonical_json(identify(second))) == (
        one == other
    )


def test_the_line_of_a_path_whose_keys_have_dots(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("m:\n  layers:\n    a: 1\n    a.b:\n      bits: x\n    a.b.c: 3\n  list: [1]\n")
    document = Document(file)
    for path, line in [
        ("layers.a.b.bits", 5),
        ("layers.a.b.c", 6),
        ("layers.a.b.d", 4),
        ("layers.q", 2),
        ("list", 7),
        ("", 1),
    ]:
        assert document.find(document.descend(("m",), path))[1] == line, path


@dataclass(frozen=True)
class Cloth(Component, family="test-cloth"):
    pass


@dataclass(frozen=True)
class Plain(Cloth):
    name = "plain"
    bits: int = 2
    width: int = 128


@dataclass(frozen=True)
class Bare(Cloth):
    name = "bare"


@dataclass(frozen=True)
class Cover(Cloth):
    """What is said of cloths in general is said of the one inside."""

    name = "cover"
    stands_in: ClassVar[str] = "inside"
    inside: Cloth = Plain(9)


@dataclass(frozen=True)
class Loom(Method):
    cloth: Cloth = Plain()


def test_what_stands_in_for_the_replaced_one_keeps_it_and_is_spoken_to() -> None:
    held = Loom(Plain(3, 64))
    for written, expected in [
        ("cover", Plain(3, 64)),
        ({"name": "cover", "inside": {"bits": 4}}, Plain(4, 64)),
        ({"name": "cover", "inside": "bare"}, Bare()),
    ]:
        assert configure(held, {"cloth": written}) == Loom(Cover(expected))
    covered = Loom(Cover(Plain(3, 64)))
    assert configure(covered, {"cloth.bits": 5}) == Loom(Cover(Plain(5, 64)))
    assert configure(covered, {"cloth": "plain"}) == held
    assert dict(list_settings(covered))["cloth.width"] == 64
    assert is_possible(Loom, "cloth.width") and not is_possible(Loom, "cloth.wdth")
    with pytest.raises(SettingError, match=r"'cloth.inside.wdth' is unknown; did you mean"):
        configure(covered, {"cloth.wdth": 3})
