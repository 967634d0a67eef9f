"""What the YAML files beside this one refer to: data sets, and scoring of generated text.

lm-eval loads this file by path, outside the package; everything of substance is in
`harness.testbed.items` and `harness.evaluation.sandbox`.
"""

from __future__ import annotations

import re
from typing import Any

from harness.evaluation.sandbox import execute
from harness.testbed.items import (
    functions,
    harder,
    knowledge,
    physical,
    pronoun,
    story,
    word_problems,
)

__all__ = [
    "functions",
    "harder",
    "knowledge",
    "physical",
    "pronoun",
    "score_arithmetic",
    "score_code",
    "story",
    "word_problems",
]

_ANSWER = re.compile(r"####\s*(-?\d+)")


def score_arithmetic(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Exact match of the number after `####`; no such number is a wrong answer."""
    match = _ANSWER.search(results[0])
    return {"exact_match": float(match is not None and match.group(1) == doc["answer"])}


def score_code(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether prompt and completion together pass the item's tests in the sandbox."""
    code = doc["prompt"] + results[0]
    return {"pass@1": float(execute(code, tests=doc["tests"]).passed)}
