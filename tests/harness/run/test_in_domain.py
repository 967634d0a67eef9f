"""A plan says where no text is scored but those that methods are fitted to, and what to add."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.cli.main import main
from harness.run.in_domain import describe_in_domain


def _advise(trained: str, calibrated: str, *read: str) -> tuple[str, ...]:
    """Of a trained, a calibrated and a rounded model that are scored on the texts `read`."""

    def at(key: str) -> dict[str, str]:
        return {"stage": key}

    stages: dict[str, dict[str, Any]] = {
        "learnt": {"kind": "documents", "source": trained},
        "seen": {"kind": "documents", "source": calibrated},
        "ours": {"kind": "train", "tokens": at("learnt")},
        "clip": {"kind": "clipped", "calibration": at("seen")},
        "rtn": {"kind": "round"},
        "task": {"kind": "lm-eval", "model": at("ours"), "task": "piqa"},
    }
    scores = ["task"]
    for text in read:
        stages[f"at-{text}"] = {"kind": "documents", "source": text}
        for model in ("ours", "clip", "rtn"):
            scores.append(f"{model}-{text}")
            inputs = {"model": at(model), "documents": at(f"at-{text}")}
            stages[scores[-1]] = {"kind": "perplexity", **inputs}
    return describe_in_domain(
        [("Ours", "ours"), ("Ours", "ours"), ("Clip", "clip"), ("RTN", "rtn")], scores, stages
    )


@pytest.mark.parametrize(
    ("trained", "calibrated", "read", "who", "beside"),
    [
        ("wikitext2", "wikitext2:validation", ["wikitext2"], "Ours, Clip are", "c4"),
        ("wikitext2:train", "pile-val", ["wikitext2"], "Ours is", "c4"),
        ("pile-val", "c4-new", ["c4"], "Clip is", "wikitext2"),
        (
            "testbed:stories",
            "testbed:code",
            ["testbed:stories"],
            "Ours is",
            "testbed-ppl-arithmetic",
        ),
    ],
)
def test_the_perplexity_of_another_text_is_named(
    trained: str, calibrated: str, read: list[str], who: str, beside: str
) -> None:
    (line,) = _advise(trained, calibrated, *read)
    assert line.startswith(f"in-domain: {who} trained or calibrated on what perplexity reads, ")
    assert f" {read[0]}, and no other text is scored; {beside} under evaluate" in line


@pytest.mark.parametrize(
    ("trained", "calibrated", "read"),
    [
        ("wikitext2", "wikitext2", ["wikitext2", "c4"]),  # which is another text
        ("alpaca", "pile-val", ["wikitext2"]),  # to which nothing is fitted
        ("wikitext2", "wikitext2", []),  # tasks alone
        ("testbed", "testbed", ["testbed"]),  # whose world has no other domain
        ("wikitext2", "c4", ["wikitext2"]),  # no perplexity is known that reads a third
    ],
)
def test_nothing_is_said_where_another_text_is_scored_or_none_is_known(
    trained: str, calibrated: str, read: list[str]
) -> None:
    assert _advise(trained, calibrated, *read) == ()


def test_a_plan_shows_it_and_adds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "grid.yaml"
    lines = [
        *("# Does it hold elsewhere?", "model: testbed-small", "method: awq-clip"),
        "defaults: {format.bits: 2, format.group_size: 64, init.text: 'testbed:stories'}",
    ]
    for evaluate, said in (
        ("[testbed-ppl-stories]", True),
        ("[testbed-ppl-stories, testbed-ppl-code]", False),
    ):
        grid.write_text("\n".join([*lines, f"evaluate: {evaluate}", ""]))
        assert main(["plan", str(grid), "--store", str(tmp_path / "store")]) == 0
        told = " ".join(capsys.readouterr().out.split())
        assert ("in-domain: AWQ-clip is trained or calibrated" in told) is said
        assert f"perplexity {evaluate.count('ppl')}" in told
