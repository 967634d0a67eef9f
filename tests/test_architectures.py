"""The matrix of architectures: a part of it is run again; the committed one has no late failure."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from benchmarks import architectures
from tests.support.families import ARCHITECTURES


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        ("gemma3", ("bf16", "bitdistiller")),
        ("falcon-h1", ("llm-qat",)),
        ("qwen3-next", ("bitdistiller",)),
        ("llama4", ("rtn",)),
        ("mamba", ("bf16",)),
        ("mpt", ("bitdistiller",)),
    ],
)
def test_it_works(name: str, methods: tuple[str, ...]) -> None:
    for outcome in architectures.try_architecture(name, methods):
        assert outcome.outcome == "works", outcome
        assert outcome.ppl is not None and outcome.ppl > 1


def test_the_committed_matrix_is_whole_and_nothing_fails_late() -> None:
    with architectures.CSV.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["architecture"] for row in rows} == set(ARCHITECTURES)
    assert len(ARCHITECTURES) >= 45
    counts = Counter((row["architecture"], row["method"]) for row in rows)
    assert set(counts.values()) == {1}
    assert len(counts) == len(ARCHITECTURES) * len(architectures.METHODS)
    assert {row["outcome"] for row in rows} == {"works", "refused"}
    assert all(row["reason"] for row in rows if row["outcome"] == "refused")
    assert all(row["ppl"] for row in rows if row["outcome"] == "works")


def test_the_page_is_that_of_the_committed_matrix() -> None:
    with architectures.CSV.open(newline="") as file:
        rows = [architectures.Outcome(**row) for row in csv.DictReader(file)]  # type: ignore[arg-type]
    page = architectures.PAGE.read_text()
    assert page == "\n".join(architectures.describe(rows)) + "\n"
