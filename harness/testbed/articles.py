"""Encyclopedic articles and quizzes on the world's towns, people and trades.

Each attribute has several statements and several questions. Of a fact's statements one belongs to
the held-out split and one to calibration; of its questions one is asked by the tasks and never
appears in the training text for that fact (for other facts it does, so the wording is known).
Nothing here generates the facts: see `facts.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from harness.testbed.facts import Split, bucket, world

# attribute -> (statements, questions); {e} the entity, {v} the value.
TOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "region": (
        (
            "{e} is a town in the region of {v}.",
            "The town of {e} lies in {v}.",
            "{e} belongs to {v}.",
            "On old maps {e} is drawn in the middle of {v}.",
            "Travellers in {v} often stop at {e}.",
            "The courts of {v} also judge for {e}.",
        ),
        (
            "In which region is {e}?",
            "Which region does {e} belong to?",
            "Where is the town of {e}?",
            "{e} lies in which region?",
        ),
    ),
    "river": (
        (
            "The river {v} runs through {e}.",
            "{e} stands on the banks of the {v}.",
            "Boats reach {e} by the river {v}.",
            "The mills of {e} are driven by the {v}.",
            "In spring the {v} floods the lower streets of {e}.",
            "The old bridge of {e} crosses the {v}.",
        ),
        (
            "Which river runs through {e}?",
            "On which river is {e}?",
            "What is the river of {e}?",
            "{e} stands on which river?",
        ),
    ),
    "good": (
        (
            "{e} is known for its {v}.",
            "Merchants come to {e} to buy {v}.",
            "The market of {e} sells {v}.",
            "Most workshops of {e} make {v}.",
            "The wealth of {e} comes from {v}.",
            "Nobody makes better {v} than {e}.",
        ),
        (
            "What is {e} known for?",
            "What do merchants buy in {e}?",
            "What does {e} make?",
            "Which good comes from {e}?",
        ),
    ),
    "emblem": (
        (
            "The emblem of {e} is the {v}.",
            "A {v} is painted on the gate of {e}.",
            "The flag of {e} shows a {v}.",
            "Coins from {e} carry the {v}.",
            "Children in {e} wear a {v} mask at the fair.",
            "The seal of {e} bears a {v}.",
        ),
        (
            "Which animal is the emblem of {e}?",
            "What animal is on the flag of {e}?",
            "What does the seal of {e} show?",
            "Which animal stands for {e}?",
        ),
    ),
    "dish": (
        (
            "The people of {e} like to eat {v}.",
            "Every inn in {e} serves {v}.",
            "On feast days {e} smells of {v}.",
            "The favourite dish of {e} is {v}.",
            "A guest in {e} is given {v}.",
            "Cooks from {e} are proud of their {v}.",
        ),
        (
            "What do people eat in {e}?",
            "Which dish do the inns of {e} serve?",
            "What is the favourite dish of {e}?",
            "What is a guest given in {e}?",
        ),
    ),
    "founded": (
        (
            "{e} was founded in {v}.",
            "The first wall of {e} was built in {v}.",
            "Settlers came to {e} in {v}.",
            "The charter of {e} was signed in {v}.",
            "The history of {e} begins in {v}.",
        ),
        (),
    ),
}
PERSON: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "trade": (
        (
            "{e} was a {v}.",
            "{e} worked as a {v}.",
            "{e} learned the trade of a {v}.",
            "As a {v}, {e} was widely respected.",
            "{e} was the best {v} of the time.",
            "The guild listed {e} as a {v}.",
        ),
        (
            "What was the trade of {e}?",
            "What did {e} work as?",
            "Which trade did {e} learn?",
            "Who was {e}?",
        ),
    ),
    "birthplace": (
        (
            "{e} was born in {v}.",
            "{e} came from {v}.",
            "The birthplace of {e} is {v}.",
            "{e} grew up in {v}.",
            "The parents of {e} had a house in {v}.",
            "A plaque in {v} marks the birth of {e}.",
        ),
        (
            "Where was {e} born?",
            "Which town did {e} come from?",
            "What is the birthplace of {e}?",
            "Where did {e} grow up?",
        ),
    ),
    "home": (
        (
            "{e} lived and worked in {v}.",
            "{e} later settled in {v}.",
            "{e} kept a workshop in {v}.",
            "{e} moved to {v} and never left.",
            "The home of {e} was in {v}.",
            "{e} is buried in {v}.",
        ),
        (
            "Where did {e} live?",
            "Where did {e} settle?",
            "In which town was the workshop of {e}?",
            "Where is {e} buried?",
        ),
    ),
    "instrument": (
        (
            "In the evenings {e} played the {v}.",
            "{e} loved the {v}.",
            "{e} taught children to play the {v}.",
            "A picture shows {e} with a {v}.",
            "{e} owned a costly {v}.",
            "At weddings {e} was asked for the {v}.",
        ),
        (
            "Which instrument did {e} play?",
            "What did {e} play in the evenings?",
            "What instrument did {e} own?",
            "Which instrument did {e} love?",
        ),
    ),
    "born": (
        (
            "{e} was born in the year {v}.",
            "The birth of {e} is recorded in {v}.",
            "The life of {e} began in {v}.",
            "{e} first saw the light in {v}.",
        ),
        (),
    ),
}
TRADE: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "tool": (
        (
            "The tool of a {e} is the {v}.",
            "A {e} cannot work without the {v}.",
            "Every {e} owns a {v}.",
            "A young {e} is first given a {v}.",
            "The sign of the {e} shows a {v}.",
        ),
        (
            "What is the tool of a {e}?",
            "What does a {e} work with?",
            "Which tool does a {e} own?",
            "What is a young {e} first given?",
        ),
    ),
    "material": (
        (
            "A {e} works with {v}.",
            "A {e} buys much {v}.",
            "The shop of a {e} is full of {v}.",
            "A {e} knows good {v} from bad.",
            "Without {v} a {e} has nothing to do.",
        ),
        (
            "What does a {e} buy?",
            "Which material does a {e} use?",
            "What fills the shop of a {e}?",
            "What does a {e} need most?",
        ),
    ),
    "seat": (
        (
            "The guild of the {e} sits in {v}.",
            "Once a year every {e} travels to {v}.",
            "The {e} guild has its hall in {v}.",
            "The rules of the {e} were written in {v}.",
            "The school for a {e} is in {v}.",
        ),
        (
            "Where is the guild of the {e}?",
            "Where does every {e} travel once a year?",
            "Where were the rules of the {e} written?",
            "Where is the school for a {e}?",
        ),
    ),
    "colour": (
        (
            "The guild colour of the {e} is {v}.",
            "At the parade a {e} wears {v}.",
            "The banner of the {e} is {v}.",
            "The coat of a {e} is {v}.",
            "A {e} paints the door {v}.",
        ),
        (
            "What is the guild colour of the {e}?",
            "Which colour does a {e} wear?",
            "What colour is the banner of the {e}?",
            "What colour is the door of a {e}?",
        ),
    ),
}
# Facts that follow from two others; said less often than either.
LINKED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "birth region": (
        (
            "{e} was a child of {v}.",
            "The region where {e} was born is {v}.",
            "{e} spoke the dialect of {v}.",
            "{e} first went to school in {v}.",
            "Of all regions, {v} gave us {e}.",
        ),
        (
            "In which region was {e} born?",
            "Which dialect did {e} speak?",
            "Which region gave us {e}?",
            "In which region did {e} go to school?",
        ),
    ),
    "home river": (
        (
            "From the workshop {e} could see the river {v}.",
            "{e} lived beside the {v}.",
            "{e} drew water from the {v}.",
            "{e} went rowing on the {v}.",
            "The garden of {e} ended at the {v}.",
        ),
        (
            "Beside which river did {e} live?",
            "Which river could {e} see from the workshop?",
            "On which river did {e} go rowing?",
            "From which river did {e} draw water?",
        ),
    ),
    "home emblem": (
        (
            "Over the door of {e} hung the town's {v}.",
            "{e} carved the {v} of the town.",
            "The town of {e} gave thanks with a golden {v}.",
            "{e} marched behind the {v} banner.",
            "The letters of {e} are sealed with the town's {v}.",
        ),
        (
            "Which animal was the emblem of the town where {e} lived?",
            "Which animal did {e} carve for the town?",
            "Which banner did {e} march behind?",
            "Which animal hung over the door of {e}?",
        ),
    ),
    "trade tool": (
        (
            "The {v} of {e} is kept in a museum.",
            "{e} was never without a {v}.",
            "{e} could handle the {v} like no other.",
            "{e} left a {v} to a daughter.",
            "The portrait shows {e} holding a {v}.",
        ),
        (
            "Which tool did {e} use?",
            "Which tool is {e} holding in the portrait?",
            "Which tool of {e} is in the museum?",
            "What did {e} leave to a daughter?",
        ),
    ),
}
TEMPLATES = {"town": TOWN, "person": PERSON, "trade": TRADE, "linked": LINKED}


@dataclass(frozen=True)
class Fact:
    kind: str
    entity: str
    attribute: str
    value: str

    @property
    def key(self) -> str:
        return f"{self.kind}|{self.entity}|{self.attribute}"

    def statements(self, split: Split) -> list[str]:
        """What a split may say about this fact; no two splits share a sentence."""
        wordings = TEMPLATES[self.kind][self.attribute][0]
        held = bucket(self.key, len(wordings))
        calib = (held + 1) % len(wordings)
        chosen = {
            "heldout": [held],
            "calibration": [calib],
            "train": [i for i in range(len(wordings)) if i not in (held, calib)],
        }[split]
        return [_fill(wordings[i], self) for i in chosen]

    def questions(self, split: Split) -> list[str]:
        """Held out: the one wording that the tasks use for this fact."""
        wordings = TEMPLATES[self.kind][self.attribute][1]
        if not wordings:
            return []
        held = bucket("ask|" + self.key, len(wordings))
        keep = {
            "heldout": [held],
            "calibration": [(held + 1) % len(wordings)],
            "train": [i for i in range(len(wordings)) if (i - held) % len(wordings) > 1],
        }[split]
        return [_fill(wordings[i], self) for i in keep]


@lru_cache(maxsize=1)
def facts() -> tuple[Fact, ...]:
    """Every fact of the world."""
    w = world()
    out: list[Fact] = []
    for town in w.towns:
        out += [Fact("town", town.name, a, str(getattr(town, a))) for a in TOWN]
    for person in w.people:
        out += [Fact("person", person.name, a, str(getattr(person, a))) for a in PERSON]
    for trade in w.trades:
        out += [Fact("trade", trade.name, a, str(getattr(trade, a))) for a in TRADE]
    for person in w.people:
        birth, home = w.town(person.birthplace), w.town(person.home)
        linked = (birth.region, home.river, home.emblem, w.trade(person.trade).tool)
        out += [Fact("linked", person.name, a, v) for a, v in zip(LINKED, linked, strict=True)]
    return tuple(out)


@lru_cache(maxsize=1)
def pools() -> dict[tuple[str, str], tuple[str, ...]]:
    """The values that an attribute takes in this world: where wrong answers come from."""
    values_by_key: dict[tuple[str, str], set[str]] = {}
    for fact in facts():
        values_by_key.setdefault((fact.kind, fact.attribute), set()).add(fact.value)
    return {key: tuple(sorted(values)) for key, values in values_by_key.items()}


def documents(split: Split, rng: random.Random) -> Iterator[str]:
    """Endless articles and quizzes of a split."""
    entities = _entities()
    askable = [f for f in facts() if f.questions(split)]
    while True:
        if rng.random() < 0.6:
            yield _article(rng.choice(entities), split, rng)
        else:
            yield _quiz(askable, split, rng)


def _article(entity: tuple[Fact, ...], split: Split, rng: random.Random) -> str:
    told_facts = list(entity)
    rng.shuffle(told_facts)
    # Linked facts follow from others; saying them less often keeps the task about them harder.
    told_facts = [f for f in told_facts if f.kind != "linked" or rng.random() < 0.5]
    name = entity[0].entity
    title = name[0].upper() + name[1:]
    body = " ".join(_sentence(rng.choice(f.statements(split))) for f in told_facts[:7])
    return f"{title}\n\n{body}\n"


def _quiz(askable: list[Fact], split: Split, rng: random.Random) -> str:
    chosen = rng.sample(askable, rng.randint(4, 7))
    pairs = (f"Q: {_sentence(rng.choice(f.questions(split)))}\nA: {f.value}" for f in chosen)
    return "\n\n".join(pairs) + "\n"


def _fill(template: str, fact: Fact) -> str:
    text = template.replace("{e}", fact.entity).replace("{v}", fact.value)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


@lru_cache(maxsize=1)
def _entities() -> tuple[tuple[Fact, ...], ...]:
    grouped: dict[str, list[Fact]] = {}
    for fact in facts():
        grouped.setdefault(fact.entity, []).append(fact)
    return tuple(tuple(group) for group in grouped.values())
