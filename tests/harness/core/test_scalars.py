"""Scalars by YAML 1.2's core schema, and the fields that they are for."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.config.document import Document, write_yaml
from harness.core.checked import AsWritten, Checked, fit_fields
from harness.core.errors import GridError, SettingError
from harness.core.scalars import Real, Whole, find_kind, forget_text, read_scalar

# The table of section 10.3.2 of the specification 1.2.2, written as it stands there.
SPECIFICATION = {
    "null": r"^(null|Null|NULL|~)$|^$",
    "bool": r"^(true|True|TRUE|false|False|FALSE)$",
    "int": r"^[-+]?[0-9]+$|^0o[0-7]+$|^0x[0-9a-fA-F]+$",
    "float": r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"
    r"|^[-+]?(\.inf|\.Inf|\.INF)$|^(\.nan|\.NaN|\.NAN)$",
}
_TRICKY = "0123456789.:_-+eExXo~=<naftruyINFAoNO "
WORDS = ["yes", "no", "on", "off", "y", "n", "Yes", "NO", "True", "true", "TRUE"]
WORDS += ["null", "~", ".inf", "-.INF", ".nan", "=", "<<"]
PLAIN = st.one_of(
    st.text(_TRICKY, min_size=1, max_size=8),
    st.from_regex(
        r"[-+]?0?[xo]?[0-9_]{1,4}([.:][0-9_]{0,3})?([eE][-+]?[0-9]{1,2})?", fullmatch=True
    ),
    st.sampled_from(WORDS),
).filter(
    # What can stand without quotes at all: no indicator at the start, no comment, no ": ".
    lambda text: (
        text == text.strip()
        and not re.match(r"[-?:](\s|$)|=$|---|\.\.\.", text)
        and ": " not in text
        and not text.endswith(":")
    )
)


def _expected(text: str) -> str:
    return next((kind for kind, form in SPECIFICATION.items() if re.match(form, text)), "str")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scalars") / "x.yaml"


def _load(file: Path, text: str) -> Any:
    file.write_text(text, encoding="utf-8")
    return Document(file).data


class Fields(AsWritten, pydantic.BaseModel):
    """A field of each kind, in the forms in which they occur."""

    text: str | None = None
    texts: list[str] = []
    by_name: dict[str, str | bool | None] = {}
    whole: Annotated[int, pydantic.Field(gt=0)] | None = None
    wholes: list[int] | int = 0
    real: float = 0.0
    flag: bool = False
    either: float | str = 0.0


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PLAIN)
def test_any_scalar_is_what_the_specification_says_and_its_text_is_kept(
    file: Path, text: str
) -> None:
    data = _load(file, f"key: {text}\nlist: [a, {text!r}]\n")
    value = data["key"]
    kinds = {"null": type(None), "bool": bool, "int": Whole, "float": Real, "str": str}
    assert type(value) is kinds[_expected(text)], text
    assert data["list"] == ["a", text]  # in quotes it is text
    if isinstance(value, Whole):
        base = {"0o": 8, "0x": 16}.get(text[:2])
        assert value == (int(text[2:], base) if base else int(text))
    if isinstance(value, Real) and "n" not in text.lower():
        assert value == float(text)
    if not isinstance(value, bool | None):
        assert Fields.model_validate({"text": value}).text == text
    again = _load(file, write_yaml(data))
    assert repr(again) == repr(data)
    assert getattr(again["key"], "text", text) == getattr(value, "text", text)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(PLAIN)
def test_a_key_is_the_text_that_stands_there(file: Path, text: str) -> None:
    if text != "<<":
        assert _load(file, f"{text}: 1\n") == {text: 1}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("190:20:30", "190:20:30"),
        ("0b101", "0b101"),
        ("2026-11-25", "2026-11-25"),
        ("1e-4", 1e-4),
        ("1E-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".1e-3", 1e-4),
        ("0.0001", 1e-4),
        ("-.inf", -math.inf),
        ("no", "no"),
        ("=", "="),
        ("TRUE", True),
        ("tRUE", "tRUE"),
    ],
)
def test_what_yaml_1_1_reads_otherwise(file: Path, text: str, value: object) -> None:
    data = _load(file, f"a: {text}\n")["a"]
    assert data == value and isinstance(data, type(value))


@pytest.mark.parametrize(
    ("field", "written", "value"),
    [
        ("text", "1.10", "1.10"),
        ("text", "007", "007"),
        ("text", "1e5", "1e5"),
        ("text", "0x1F", "0x1F"),
        ("text", "12345678901234567890123", "12345678901234567890123"),
        ("text", "~", None),
        ("texts", "[1.0, .inf, 010, no]", ["1.0", ".inf", "010", "no"]),
        (
            "by_name",
            "{1: 1, b: 1:30, c: true, d: 0, on: }",
            {"1": "1", "b": "1:30", "c": True, "d": "0", "on": None},
        ),
        ("whole", "010", 10),
        ("whole", "1e3", 1000),
        ("whole", "'12'", 12),
        ("wholes", "[1, 0o17]", [1, 15]),
        ("real", "'1e-4'", 1e-4),
        ("real", "3", 3.0),
        ("flag", "true", True),
        ("either", "1.10", 1.1),
        ("either", "1:10", "1:10"),
    ],
)
def test_a_field_has_what_is_meant(file: Path, field: str, written: str, value: object) -> None:
    fields = Fields.model_validate(_load(file, f"{field}: {written}\n"))
    held = getattr(fields, field)
    assert held == value and type(held) is type(value)
    if isinstance(held, list):
        assert [type(part) for part in held] == [type(part) for part in value]  # type: ignore[attr-defined]


REFUSED = {
    "text": ("true",),
    "texts": ("[~]",),
    "whole": ("1:30", "1_000", "true", "2.5", "yes", "'1_0'", "'\u0663'", "1e400"),
    "real": ("1:30", "1_0.5", "false", "'infinity'", "'nan'", "2026-11-25"),
    "flag": ("yes", "no", "on", "1", "0", "1.0", "'true'", "~"),
}


@pytest.mark.parametrize(
    ("field", "written"), [(field, each) for field, bad in REFUSED.items() for each in bad]
)
def test_a_field_refuses_the_rest(file: Path, field: str, written: str) -> None:
    with pytest.raises(pydantic.ValidationError):
        Fields.model_validate(_load(file, f"{field}: {written}\n"))


@dataclass(frozen=True)
class Plain:
    """Not one of ours, as a plugin may have it."""

    count: int = 1
    word: str = ""


@dataclass(frozen=True)
class Nested(Checked):
    plain: Plain = Plain()
    others: tuple[Plain, ...] = ()
    way: Literal["up", "10"] = "up"


def test_classes_inside_are_read_so_too() -> None:
    data = {
        "plain": {"count": Whole("010"), "word": Real("1.10")},
        "others": [{"word": Whole("7")}],
    }
    rest = {"plain": {}, "others": [], "way": "up"}
    fields = fit_fields(Nested, rest | data)
    assert fields["plain"] == Plain(10, "1.10") and fields["others"] == (Plain(1, "7"),)
    for bad, words in (
        ({"plain": {"count": True}}, "plain.count: true should be a whole number"),
        ({"others": [{"count": "1_000"}]}, "'1_000' should be a whole number; did you mean 1000?"),
        ({"plain": {"count": "yes"}}, "plain.count: 'yes' should be a whole number"),
        ({"way": Whole("10")}, "way: 10 should be 'up' or '10'"),
    ):
        with pytest.raises(SettingError, match=re.escape(words)):
            fit_fields(Nested, rest | bad)


ALIASES = "a: &a [0, 0, 0, 0, 0, 0, 0, 0, 0, 0]\n" + "".join(
    f"{name}: &{name} [{', '.join(10 * ['*' + above])}]\n"
    for above, name in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!int 1_000\n", ":1: not YAML: '1_000' is not of type int"),
        ("a: !!bool yes\n", ":1: not YAML: 'yes' is not of type bool"),
        ("a: 1\nb: !!timestamp 2026-11-25\n", ":2: not YAML: could not determine a constructor"),
        ("? [a, b]\n: 1\n", ":1: not YAML: a key should be text"),
        ("1: a\n'1': b\n", ":2: key '1' is given twice"),
        ("a: " + 5000 * "1" + "\n", ":1: not YAML: 11111111111111111111… is too long for a number"),
        ("a: &x [*x]\n", "nested too deeply, or in itself"),
        ("a: " + 3000 * "[" + 3000 * "]", "not YAML: nested too deeply"),
        (ALIASES, "more than 5000 values"),
    ],
)
def test_what_no_file_can_mean(file: Path, text: str, words: str) -> None:
    with pytest.raises(GridError, match=re.escape(words)):
        _load(file, text)


def test_anchors_merges_and_tags(file: Path) -> None:
    text = "a: &a {x: 010, y: 1}\nb: {<<: *a, y: no}\nc: !!float 1\nd: !!str 1.10\n"
    data = _load(file, text)
    assert data == {"a": {"x": 10, "y": 1}, "b": {"x": 10, "y": "no"}, "c": 1.0, "d": "1.10"}
    assert isinstance(data["c"], Real) and data["b"]["x"].text == "010"


def test_numbers_can_be_had_without_their_text() -> None:
    numbers = forget_text({"a": [Whole("010"), Real("1.10")], "b": "x"})
    assert repr(numbers) == "{'a': [10, 1.1], 'b': 'x'}"
    assert {type(each) for each in numbers["a"]} == {int, float}
    assert (find_kind("0x1F"), read_scalar("")) == ("int", None)
