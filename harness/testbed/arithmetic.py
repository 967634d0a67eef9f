"""Arithmetic word problems solved step by step, ending in `#### N`.

A problem is two or three steps of addition, subtraction or repeated addition on small numbers. The
split follows from the first step's operands, so no held-out pair is ever seen in training as the
opening of a problem. Other kinds of mathematics are not covered.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from harness.testbed.facts import Split, bucket, listed, world

THINGS = listed(
    "pears;eggs;coins;nails;books;ropes;fish;bricks;candles;beads;buttons;plums;jars;sacks;"
    "hats;keys;stones;shells;spoons;loaves;onions;feathers;barrels;stamps"
)
CONTAINERS = listed("boxes;bags;rows;baskets;crates;shelves")

_OPEN_PLUS = (
    "{n} has {a} {t}. {m} gives {n} {b} more.",
    "{n} has {a} {t} and buys {b} more.",
    "{n} finds {a} {t} and {m} finds {b}. They put them together.",
    "There are {a} {t} on the table. {n} adds {b}.",
)
_OPEN_MINUS = (
    "{n} has {a} {t}. {n} gives {b} to {m}.",
    "{n} has {a} {t} and sells {b}.",
    "There are {a} {t} on the table. {n} takes {b}.",
    "{n} had {a} {t} but lost {b}.",
)
_OPEN_TIMES = (
    "{n} has {a} {c} with {b} {t} in each.",
    "{n} fills {a} {c}. Each holds {b} {t}.",
    "There are {a} {c}. In each {n} counts {b} {t}.",
)
_THEN_PLUS = (
    "Then {d} more come.",
    "Then {m} brings {d} more.",
    "Later {d} are added.",
)
_THEN_MINUS = (
    "Then {d} are lost.",
    "Then {m} takes {d}.",
    "Later {d} are sold.",
)
_ASK = (
    "How many {t} are there now?",
    "How many {t} are there in the end?",
    "How many {t} are left?",
)


@dataclass(frozen=True)
class Problem:
    question: str
    steps: tuple[str, ...]
    answer: int

    @property
    def prompt(self) -> str:
        return f"Q: {self.question}\nA:"

    @property
    def text(self) -> str:
        return f"{self.prompt} {' '.join(self.steps)}\n#### {self.answer}\n"


def split_of(operation: str, a: int, b: int) -> Split:
    """The split that a problem opening with `a operation b` belongs to."""
    number = bucket(f"{operation}{a},{b}", 10)
    return "heldout" if number == 0 else "calibration" if number == 1 else "train"


def problems(split: Split, rng: random.Random) -> Iterator[Problem]:
    """Endless problems of a split."""
    while True:
        operation = rng.choice("++--*")
        if operation == "+":
            a, b = rng.randint(2, 60), rng.randint(2, 36)
        elif operation == "-":
            a = rng.randint(8, 96)
            b = rng.randint(2, min(a - 1, 50))
        else:
            a, b = rng.randint(2, 4), rng.randint(3, 22)
        if split_of(operation, a, b) == split:
            yield _problem(operation, a, b, rng)


def documents(split: Split, rng: random.Random) -> Iterator[str]:
    for problem in problems(split, rng):
        yield problem.text


def _problem(operation: str, a: int, b: int, rng: random.Random) -> Problem:
    n, m = rng.sample(world().story_names, 2)
    slots = {"n": n, "m": m, "t": rng.choice(THINGS), "c": rng.choice(CONTAINERS)}
    opening = rng.choice({"+": _OPEN_PLUS, "-": _OPEN_MINUS, "*": _OPEN_TIMES}[operation])
    sentences = [opening.format(a=a, b=b, **slots)]
    steps: list[str] = []
    if operation == "*":
        total = b
        for _ in range(a - 1):
            steps.append(f"{total} + {b} = {total + b}.")
            total += b
    else:
        total = a + b if operation == "+" else a - b
        steps.append(f"{a} {operation} {b} = {total}.")
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        plus = total < 60 if total < 12 or total > 88 else rng.random() < 0.5
        d = rng.randint(2, 30) if plus else rng.randint(2, min(total - 1, 30))
        if plus and total + d > 99:
            d = 99 - total
        if d < 2:
            break
        sentences.append(rng.choice(_THEN_PLUS if plus else _THEN_MINUS).format(d=d, **slots))
        result = total + d if plus else total - d
        steps.append(f"{total} {'+' if plus else '-'} {d} = {result}.")
        total = result
    sentences.append(rng.choice(_ASK).format(**slots))
    return Problem(" ".join(sentences), tuple(steps), total)
