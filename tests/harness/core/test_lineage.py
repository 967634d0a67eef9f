"""The texts behind a value, as a graph of stages written out by hand has them."""

from __future__ import annotations

from typing import Any

import pytest

from harness.core.errors import ReportError
from harness.core.lineage import Lineage, is_alike, list_inputs


def _at(key: str) -> dict[str, str]:
    return {"stage": key}


STAGES: dict[str, dict[str, Any]] = {
    "model": {"kind": "pretrained", "source": "m"},
    "pile": {"kind": "documents", "source": "pile-val", "split": "calibration"},
    "blocks": {"kind": "packed", "documents": _at("pile"), "model": _at("model")},
    "clipped": {"kind": "clipped", "model": _at("model"), "ranges": _at("search")},
    "search": {"kind": "clip-search", "model": _at("model"), "calibration": _at("blocks")},
    "wiki": {"kind": "documents", "source": "wikitext2:train", "split": "train", "prompts": True},
    "written": {"kind": "generate", "teacher": _at("model"), "documents": _at("wiki")},
    "alone": {"kind": "generate", "teacher": _at("model"), "documents": None},
    "train": {"kind": "train", "student": _at("clipped"), "tokens": _at("written")},
    "again": {"kind": "train", "student": _at("train"), "tokens": _at("alone")},
    "mixed": {"kind": "joined", "parts": [[_at("blocks"), 3], [_at("alone"), 5]]},
    "both": {"kind": "train", "student": _at("model"), "tokens": _at("mixed")},
    "test": {"kind": "documents", "source": "wikitext2", "split": "heldout"},
    "score": {"kind": "perplexity", "model": _at("again"), "documents": _at("test")},
    "task": {"kind": "lm-eval", "model": _at("again"), "task": "piqa"},
    "lost": {"kind": "round", "model": _at("gone")},
}


@pytest.mark.parametrize(
    ("key", "trained", "calibrated"),
    [
        ("model", [], []),
        ("clipped", [], ["pile-val"]),
        ("train", ["wikitext2:train"], ["pile-val"]),  # what a model continued counts
        ("again", ["wikitext2:train"], ["pile-val"]),  # what it wrote alone has no text
        ("both", ["pile-val"], []),
    ],
)
def test_what_a_model_learnt_from_is_told_from_what_it_was_fitted_to(
    key: str, trained: list[str], calibrated: list[str]
) -> None:
    lineage = Lineage(STAGES)
    assert lineage.list_trained(key) == trained
    assert lineage.list_calibrated(key) == calibrated


def test_the_text_of_a_score_is_what_it_reads_itself() -> None:
    lineage = Lineage(STAGES)
    assert lineage.find_text("score") == "wikitext2"
    assert lineage.find_text("task") is None


def test_older_records_name_classes_and_hold_a_texts_part_apart() -> None:
    old: dict[str, dict[str, Any]] = {
        "d": {"class": "harness.text.Documents", "source": "testbed", "domain": "code"},
        "w": {"class": "harness.text.Documents", "source": "testbed", "domain": None},
        "t": {"class": "methods.train.Train", "tokens": _at("d"), "student": _at("w")},
    }
    lineage = Lineage(old)
    assert lineage.list_trained("t") == ["testbed:code"]
    assert lineage.list_calibrated("t") == ["testbed"]


def test_what_a_missing_stage_decides_is_not_guessed() -> None:
    lineage = Lineage(STAGES)
    for ask in (lineage.list_trained, lineage.list_calibrated, lineage.find_text):
        with pytest.raises(ReportError, match="gone"):
            ask("lost")


def test_inputs_are_found_at_any_depth_and_in_order() -> None:
    assert list(list_inputs(STAGES["mixed"])) == ["blocks", "alone"]
    assert list(list_inputs({"stage": {"a": [{"b": _at("x")}]}, "n": "stage"})) == ["x"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("wikitext2", "wikitext2:validation", True),
        ("wikitext2:train", "wikitext2:test", True),
        ("c4-new", "c4:validation", True),
        ("wikitext2", "wikitext", False),
        ("testbed", "testbed:code", True),  # all domains mixed
        ("testbed:code", "testbed:code", True),
        ("testbed:code", "testbed:stories", False),
        ("file:/a/train.txt", "file:/a/test.txt", False),  # nothing says that they are alike
    ],
)
def test_splits_of_a_text_are_alike_and_its_domains_are_not(
    one: str, other: str, same: bool
) -> None:
    assert is_alike(one, other) is is_alike(other, one) is same
