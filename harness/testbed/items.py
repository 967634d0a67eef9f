"""The tasks' items: questions on the held-out side of the world, as lm-eval data sets.

Each function is a `custom_dataset` of one YAML in `tasks/`: it returns the splits `test` and, where
the task shows examples, `fewshot`. The items are drawn once from a fixed seed, so item i is the
same everywhere. Choices are the answers' texts, scored as continuations (cloze), not letters.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from itertools import islice
from typing import Any

from datasets import Dataset, DatasetDict

from harness.testbed import arithmetic, articles, programs, stories
from harness.testbed.facts import SEED, bucket

N_CHOICE = 200
N_GENERATED = 120
SHOTS = 5

Item = dict[str, Any]


def knowledge(**_: object) -> DatasetDict:
    """Facts of towns, people and trades, asked in a form that training does not have."""
    return _split(_fact_items("knowledge", lambda fact: fact.kind != "linked"))


def harder(**_: object) -> DatasetDict:
    """Facts that follow from two others: the river at the home of a person, and the like."""
    return _split(_fact_items("harder", lambda fact: fact.kind == "linked"))


def physical(**_: object) -> DatasetDict:
    """What a thing does in an event: the outcome against another outcome of the same event."""
    rng = _rng("physical")
    # As many surprising outcomes as default ones, so that always saying the default gains nothing.
    known = list(stories.behaviours())
    rng.shuffle(known)
    special = [b for b in known if b.outcome != stories.EVENTS[b.event][2]]
    default = [b for b in known if b.outcome == stories.EVENTS[b.event][2]]
    items = []
    for behaviour in islice(_alternate(special, default), N_CHOICE):
        _wordings, outcomes, usual = stories.EVENTS[behaviour.event]
        others = sorted({*outcomes.values(), usual} - {behaviour.outcome})
        if usual in others and rng.random() < 0.7:
            others = [usual]
        question = behaviour.questions("heldout")[0]
        items.append(_item(rng, f"Q: {question}\nA:", behaviour.outcome, [rng.choice(others)]))
    return DatasetDict({"test": Dataset.from_list(items)})


def story(**_: object) -> DatasetDict:
    """The next sentence, against a step already told, one with another thing, another story's."""
    rng = _rng("story")
    items = []
    for told in islice(stories.stories("heldout", rng), 10 * N_CHOICE):
        things, steps = stories.SCRIPTS[told.script]
        at = [i for i in range(2, 5) if "{x}" in steps[i][told.wordings[i]]]
        if not at:
            continue
        step = rng.choice(at)
        context = " ".join(told.sentence(i) for i in range(step))
        script = rng.choice([s for s in stories.SCRIPTS if s != told.script])
        foreign = stories.Story(script, told.thing, told.a, told.b, told.wordings, "")
        wrong = [
            told.sentence(step, thing=rng.choice([t for t in things if t != told.thing])),
            told.sentence(rng.randrange(step), other=True),
            foreign.sentence(step),
        ]
        items.append(_item(rng, context, told.sentence(step), wrong))
        if len(items) == N_CHOICE:
            break
    return DatasetDict({"test": Dataset.from_list(items)})


def pronoun(**_: object) -> DatasetDict:
    """Whom "they" means, given the reason: either of the two people of the sentence."""
    rng = _rng("pronoun")
    items = [
        _item(rng, f"{p.sentence}\nQ: {p.question}\nA:", p.answer, [p.other])
        for p in islice(stories.pronouns("heldout", rng), N_CHOICE)
    ]
    return DatasetDict({"test": Dataset.from_list(items)})


def word_problems(**_: object) -> DatasetDict:
    """Word problems whose opening operands training never showed together."""
    rng = _rng("arithmetic")
    items = [
        {"prompt": p.prompt, "solution": " ".join(p.steps), "answer": str(p.answer)}
        for p in islice(arithmetic.problems("heldout", rng), N_GENERATED)
    ]
    return DatasetDict({"test": Dataset.from_list(items)})


def functions(**_: object) -> DatasetDict:
    """Functions whose specification training never showed, one an item, with six tests."""
    rng = _rng("code")
    seen: set[str] = set()
    items = []
    for program in programs.programs("heldout", rng, n_tests=16):
        if program.spec in seen:
            continue
        seen.add(program.spec)
        items.append(
            {
                "prompt": program.prompt,
                "canonical_solution": program.body,
                "tests": "\n".join(_telling(program.tests)),
                "spec": program.spec,
            }
        )
        if len(items) == N_GENERATED:
            return DatasetDict({"test": Dataset.from_list(items)})
    raise AssertionError("unreachable: programs() does not end")


# The tasks ask for facts in a form that no training document has: a line "entity, attribute:".
_NAMED = {
    "good": "goods",
    "seat": "guild",
    "birth region": "region of birth",
    "home river": "river at home",
    "home emblem": "animal of the home town",
    "trade tool": "tool",
}


def _fact_items(task: str, wanted: Callable[[articles.Fact], bool]) -> list[Item]:
    rng = _rng(task)
    asked = [f for f in articles.facts() if wanted(f) and f.questions("heldout")]
    items = []
    for fact in rng.sample(asked, N_CHOICE + SHOTS):
        prompt = f"{fact.entity}, {_NAMED.get(fact.attribute, fact.attribute)}:"
        items.append(_item(rng, prompt, fact.value, _confusable(fact)))
    return items


def _confusable(fact: articles.Fact) -> list[str]:
    """Three wrong answers: what is true of the entities whose names look most like this one."""

    def likeness(other: articles.Fact) -> tuple[int, str]:
        return (-len(_bigrams(fact.entity) & _bigrams(other.entity)), other.entity)

    same = [f for f in articles.facts() if (f.kind, f.attribute) == (fact.kind, fact.attribute)]
    values = dict.fromkeys(f.value for f in sorted(same, key=likeness))
    return [value for value in values if value != fact.value][:3]


@cache
def _bigrams(text: str) -> frozenset[str]:
    return frozenset(text[i : i + 2] for i in range(len(text) - 1))


def _telling(tests: tuple[str, ...]) -> list[str]:
    """Six tests, those with results of their own first: many an empty list tells little."""
    first_of_result = {test.split(" == ")[1]: test for test in reversed(tests)}
    return list(dict.fromkeys([*reversed(first_of_result.values()), *tests]))[:6]


def _item(rng: random.Random, prompt: str, answer: str, wrong: list[str]) -> Item:
    choices = [answer, *wrong]
    rng.shuffle(choices)
    return {"prompt": prompt, "choices": choices, "label": choices.index(answer)}


def _split(items: list[Item]) -> DatasetDict:
    """The last few items serve as examples; they are never scored."""
    return DatasetDict(
        {
            "test": Dataset.from_list(items[:-SHOTS]),
            "fewshot": Dataset.from_list(items[-SHOTS:]),
        }
    )


def _alternate(first: list[Any], second: list[Any]) -> list[Any]:
    return [x for pair in zip(first, second, strict=False) for x in pair]


def _rng(task: str) -> random.Random:
    return random.Random(bucket(f"items|{SEED}|{task}", 2**31))
