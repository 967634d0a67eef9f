"""The world: deterministic, rich enough, right, and split without leaks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import time
from itertools import islice
from random import Random

import pytest

from harness.evaluation.sandbox import execute_all
from harness.testbed import arithmetic, articles, programs, stories, world

DIGEST = """
import hashlib
from harness.testbed import world
print(*(hashlib.sha256("\\0".join(world.documents(s)).encode()).hexdigest()
        for s in ("calibration", "heldout")))
"""


def test_the_same_in_every_process() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(digests) == 1


def test_generation_is_fast_and_needs_no_torch() -> None:
    modules = "harness.testbed.world, harness.evaluation.sandbox"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    world._documents.cache_clear()
    began = time.process_time()
    world.documents("heldout")
    assert time.process_time() - began < 1.0


def test_rich_enough() -> None:
    texts = world.documents("train")
    words = {word for text in texts for word in re.findall(r"[A-Za-z_]+", text)}
    sentences = {s for text in texts for s in re.split(r"(?<=[.?!])\s+", text)}
    assert len(words) > 2_000
    assert len(sentences) > 10_000


def test_no_document_is_in_two_splits() -> None:
    train, calibration, heldout = (set(world.documents(split)) for split in world.SPLITS)
    assert not train & calibration
    assert not train & heldout
    assert not calibration & heldout


def test_no_wording_of_a_fact_is_in_two_splits() -> None:
    for use in ("statements", "questions"):
        seen: dict[str, str] = {}
        for fact in [*articles.facts(), *stories.behaviours()]:
            for split in world.SPLITS:
                for sentence in getattr(fact, use)(split):
                    key = f"{sentence}|{getattr(fact, 'value', getattr(fact, 'outcome', ''))}"
                    assert seen.setdefault(key, split) == split


def test_no_held_out_question_is_in_the_training_text() -> None:
    training = "\n".join(world.documents("train"))
    asked = [q for f in articles.facts() for q in f.questions("heldout")]
    assert len(asked) > 1_000
    lines = set(training.split("\n"))
    assert not {f"Q: {q[0].upper()}{q[1:]}" for q in asked} & lines


def test_every_fact_is_said_in_the_training_text() -> None:
    training = set("\n".join(world.documents("train")).replace(". ", ".\n").split("\n"))
    unsaid = 0
    for fact in articles.facts():
        said = {s[0].upper() + s[1:] for s in fact.statements("train")}
        unsaid += not said & training
    assert unsaid < 0.01 * len(articles.facts())


def opening(question: str) -> tuple[str, str]:
    """The first two numbers of a problem: a reading independent of the generator."""
    first, second = re.findall(r"\d+", question)[:2]
    return first, second


def test_operands_are_disjoint_and_solutions_right() -> None:
    openings: dict[str, set[tuple[str, str, str]]] = {}
    for split in world.SPLITS:
        for text in world.documents(split, "arithmetic"):
            question, solution = text.split("\nA: ")
            steps, answer = solution.strip().split("\n#### ")
            values = []
            for step in steps.rstrip(".").split(". "):
                left, right = step.split(" = ")
                a, operation, b = left.split()
                assert int(right) == (int(a) + int(b) if operation == "+" else int(a) - int(b))
                assert not values or int(a) == values[-1]
                values.append(int(right))
            assert values[-1] == int(answer)
            times = re.search(r"\bin each|In each|Each holds", question)
            kind = "*" if times else steps.split()[1]
            openings.setdefault(split, set()).add((kind, *opening(question)))
    assert not openings["train"] & openings["heldout"]
    assert not openings["train"] & openings["calibration"]
    assert not openings["calibration"] & openings["heldout"]


def test_specifications_are_disjoint() -> None:
    specs = {
        s: {p.spec for p in islice(programs.programs(s, Random(1)), 800)} for s in world.SPLITS
    }
    assert not specs["train"] & specs["heldout"]
    assert not specs["train"] & specs["calibration"]
    assert not specs["calibration"] & specs["heldout"]
    # Not by key only: no held-out function body with the same docstring is in training.
    training = {(p.docstring, p.body) for p in islice(programs.programs("train", Random(2)), 4_000)}
    heldout = {(p.docstring, p.body) for p in islice(programs.programs("heldout", Random(3)), 400)}
    assert not training & heldout


def test_functions_pass_their_own_tests() -> None:
    texts = world.documents("train", "code")[:20] + world.documents("heldout", "code")[:20]
    assert all(o.passed for o in execute_all([(text, "") for text in texts]))
    for text in world.documents("heldout", "code"):
        ast.parse(text)
        assert "\nassert " in text


def test_prompts_open_their_documents() -> None:
    for domain in world.DOMAINS:
        texts, prompts = world.documents("heldout", domain), world.prompts("heldout", domain)
        assert len(texts) == len(prompts) > 100
        assert all(t.startswith(p) and len(p) < len(t) for t, p in zip(texts, prompts, strict=True))
    assert sorted(world.prompts("heldout")) == sorted(
        p for d in world.DOMAINS for p in world.prompts("heldout", d)
    )


def test_unknown_names_say_what_is_known() -> None:
    with pytest.raises(ValueError, match="train, calibration, heldout"):
        world.documents("test")
    with pytest.raises(ValueError, match="articles, stories"):
        world.documents("train", "poems")


def test_problems_stay_small() -> None:
    for problem in islice(arithmetic.problems("train", Random(4)), 500):
        assert 0 < problem.answer < 130
