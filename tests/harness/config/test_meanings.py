"""What fields mean is told in their authors' words, and of every field in the tree."""

from __future__ import annotations

from dataclasses import dataclass, make_dataclass

from harness.config.meanings import find_owner, list_meanings
from harness.config.settings import list_places, list_settings
from harness.method import METHODS
from methods.quantization.formats import NF
from methods.quantization.mixed import Mixed
from methods.recipe import Recipe


@dataclass(frozen=True)
class _Base:
    """Text about `bits` is no meaning of it."""

    bits: int = 3  # of a weight
    # What is read first,
    # and kept.
    text: str = "a # b"
    plain: int = 0
    first: str = "x"  # type: ignore[misc]
    second: int = 1  # KL's weight


@dataclass(frozen=True)
class _Derived(_Base):
    """Changes a default and a meaning."""

    bits: int = 4
    text: str = "c"  # whatever


def test_a_meaning_is_the_comment_behind_a_field_or_above_it() -> None:
    assert list_meanings(_Base) == {
        "bits": "of a weight",
        "text": "what is read first, and kept",
        "second": "KL's weight",
    }
    assert list_meanings(_Derived) == {**list_meanings(_Base), "text": "whatever"}


def test_a_class_without_a_source_has_none() -> None:
    assert list_meanings(make_dataclass("Made", ["a"])) == {}


def test_the_owner_of_a_path_is_the_part_that_has_it() -> None:
    recipe = Recipe(format=Mixed(NF(bits=4)))
    assert dict(list_settings(recipe))["format.bits"] == 4
    assert find_owner(recipe, "format.bits") is NF  # what is said of a mixed format in general
    assert find_owner(recipe, "format.layers") is Mixed
    assert find_owner(recipe, "format") is Recipe


def test_every_field_of_a_method_and_its_parts_has_a_meaning() -> None:
    methods = {type(e.method) for e in METHODS.load().values() if _is_own(type(e.method))}
    assert Recipe in methods
    fields = {(owner, name) for cls in methods for _, owner, name in list_places(cls)}
    lacking = {
        f"{owner.__name__}.{name}"
        for owner, name in fields
        if _is_own(owner) and name not in list_meanings(owner)
    }
    assert not lacking, "write a comment behind the field"


def _is_own(cls: type) -> bool:
    """Not of another test."""
    return cls.__module__.partition(".")[0] in ("harness", "methods")
