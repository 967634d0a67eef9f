"""Digests of values: every change shows, nothing else does."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.core.fingerprint import digest_tensor, find_change, fingerprint

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


@given(
    size=st.integers(1, 70),
    place=st.integers(0, 69),
    bit=st.integers(0, 7),
    dtype=st.sampled_from(DTYPES[:-1]),
)
def test_one_bit_anywhere_shows(size: int, place: int, bit: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(size).to(dtype)
    before = digest_tensor(tensor)
    raw = tensor.view(torch.uint8)
    raw[place % len(raw)] ^= 1 << bit
    assert digest_tensor(tensor) != before
    raw[place % len(raw)] ^= 1 << bit
    assert digest_tensor(tensor) == before


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4), st.data())
def test_any_other_word_shows(words: list[int], data: st.DataObject) -> None:
    """Its complement too, which shifts that repeat the sign took for the word itself."""
    tensor = torch.tensor(words)
    before, place = digest_tensor(tensor), data.draw(st.integers(0, len(words) - 1))
    others = st.integers(-(2**63), 2**63 - 1).filter(lambda word: word != words[place])
    for other in (~words[place], -words[place] or 1, data.draw(others)):
        if other != words[place] and -(2**63) <= other < 2**63:
            tensor[place] = other
            assert digest_tensor(tensor) != before


@given(st.permutations(range(9)))
def test_the_order_counts(order: list[int]) -> None:
    plain = torch.arange(9, dtype=torch.float64)
    same = order == sorted(order)
    assert (digest_tensor(plain[order]) == digest_tensor(plain)) == same


@pytest.mark.parametrize("dtype", DTYPES)
def test_how_the_data_lies_does_not_count(dtype: torch.dtype) -> None:
    wide = torch.arange(7 * 12).view(7, 12).to(dtype)
    assert digest_tensor(wide[:, 3:8]) == digest_tensor(wide[:, 3:8].clone())
    assert digest_tensor(wide.T) == digest_tensor(wide.T.contiguous())
    flat = wide.flatten()
    for start in range(1, 9):  # not at whole words
        assert digest_tensor(flat[start:]) == digest_tensor(flat[start:].clone())


def test_parts_are_digested_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = torch.randn(1000)
    for at_once in (16, 64):
        monkeypatch.setattr("harness.core.fingerprint._AT_ONCE", at_once)
        before = digest_tensor(tensor)
        for place in range(0, 1000, 37):
            tensor[place] += 1
            assert digest_tensor(tensor) != before
            tensor[place] -= 1
        swapped = tensor.clone()
        swapped[: 2 * at_once], swapped[2 * at_once : 4 * at_once] = (
            tensor[2 * at_once : 4 * at_once],
            tensor[: 2 * at_once].clone(),
        )
        assert digest_tensor(swapped) != before


def test_shape_and_dtype_count() -> None:
    zeros = torch.zeros(4, 4)
    assert digest_tensor(zeros) != digest_tensor(zeros.view(2, 8))
    assert digest_tensor(zeros) != digest_tensor(zeros.int())
    assert digest_tensor(torch.zeros(0)) != digest_tensor(torch.zeros(8))


@dataclass
class _Value:
    ids: torch.Tensor
    scales: dict[str, torch.Tensor]
    words: list[str]


def test_the_part_that_changed_is_named() -> None:
    value = _Value(torch.zeros(3), {"a": torch.ones(2), "b": torch.ones(2)}, ["x", "y"])
    before = fingerprint(value)
    assert find_change(before, fingerprint(value)) is None
    value.scales["b"][1] = 5
    assert find_change(before, fingerprint(value)) == "scales.b"
    value.scales["b"][1] = 1
    value.words.append("z")
    assert find_change(before, fingerprint(value)) == "words"
    value.words.pop()
    value.scales = {"b": value.scales["b"], "a": value.scales["a"]}  # the order is no part of it
    assert find_change(before, fingerprint(value)) is None
