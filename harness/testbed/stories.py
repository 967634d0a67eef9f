"""Short stories that follow scripts, sentences with a pronoun to resolve, and how things behave.

Three small genres share the `stories` domain, because each teaches a task: what comes next in a
story, whom a pronoun means, what a thing does when it falls, burns or gets wet. The tasks' own
items live in `items.py`; the encyclopedic facts in `articles.py`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from harness.testbed.facts import Split, bucket, listed, world

# A script is five steps; a step has two wordings. {a}, {b} people; {x} a thing of the script.
SCRIPTS: dict[str, tuple[tuple[str, ...], tuple[tuple[str, str], ...]]] = {
    "baking": (
        ("bread", "pie", "cake"),
        (
            ("{a} wanted to bake a {x} for {b}.", "{a} promised {b} a fresh {x}."),
            ("{a} mixed flour and water in a bowl.", "{a} put flour, salt and water in a bowl."),
            ("{a} put the {x} in the hot oven.", "Soon the {x} was in the oven."),
            ("After an hour the {x} was brown.", "The kitchen began to smell of {x}."),
            ("{b} ate the {x} and asked for more.", "{a} and {b} ate the warm {x} together."),
        ),
    ),
    "fishing": (
        ("trout", "pike", "eel"),
        (
            ("{a} and {b} took the boat to catch a {x}.", "{a} asked {b} to help catch a {x}."),
            ("{a} threw the line into the lake.", "They rowed out and {a} threw a line."),
            ("After a long wait the line moved.", "Suddenly something pulled at the line."),
            ("{b} held the net and caught the {x}.", "{a} pulled a big {x} into the boat."),
            ("They cooked the {x} on the shore.", "In the evening they fried the {x}."),
        ),
    ),
    "lost": (
        ("goat", "dog", "horse"),
        (
            ("In the morning the {x} of {a} was gone.", "{a} could not find the {x}."),
            ("{a} called and looked behind every barn.", "{a} searched the whole village."),
            ("{b} had seen tracks near the forest.", "{b} found tracks that led to the trees."),
            ("They followed the tracks and found the {x}.", "Under a tree stood the {x}."),
            ("{a} led the {x} home on a rope.", "{a} thanked {b} and took the {x} home."),
        ),
    ),
    "repair": (
        ("roof", "fence", "door"),
        (
            ("A storm had broken the {x} of {a}.", "After the storm {a} saw that the {x} broke."),
            ("{a} asked {b} for boards and nails.", "{b} came with boards and a box of nails."),
            ("{b} held the board and {a} used the hammer.", "All day they hammered and sawed."),
            ("In the evening the {x} was whole again.", "At last the {x} was mended."),
            ("{a} paid {b} with a sack of corn.", "{a} gave {b} a sack of corn as thanks."),
        ),
    ),
    "letter": (
        ("letter", "parcel", "note"),
        (
            ("{a} wrote a {x} to {b}.", "{a} had a {x} for {b}."),
            ("{a} sealed the {x} with red wax.", "Red wax was dropped on the {x}."),
            ("A rider carried the {x} over the hills.", "The rider took the {x} through the rain."),
            ("Two days later {b} opened the {x}.", "{b} broke the seal and read in silence."),
            ("{b} sat down and wrote an answer.", "That night {b} sent an answer to {a}."),
        ),
    ),
    "market": (
        ("lamp", "coat", "kettle"),
        (
            ("{a} went to the market to buy a {x}.", "{a} needed a new {x}."),
            ("At the stall of {b} stood a fine {x}.", "{b} had a good {x} for sale."),
            (
                "{a} said that the price was too high.",
                "The price was high, and {a} shook the head.",
            ),
            ("{b} laughed and asked for less.", "In the end {b} lowered the price."),
            ("{a} paid and carried the {x} home.", "{a} counted the coins and took the {x}."),
        ),
    ),
    "garden": (
        ("beans", "roses", "turnips"),
        (
            ("{a} wanted to grow {x} behind the house.", "{b} gave {a} seeds for {x}."),
            ("{a} dug the earth with a spade.", "First {a} turned the soil."),
            ("{a} put the seeds in a row.", "The seeds were laid in a straight row."),
            ("Every day {a} watered the small plants.", "Rain came and green leaves appeared."),
            ("In summer {a} picked the {x}.", "In summer {b} came to see the {x}."),
        ),
    ),
    "race": (
        ("cup", "medal", "ribbon"),
        (
            ("{a} and {b} ran a race for the {x}.", "The winner of the race would get a {x}."),
            ("The drum sounded and everyone ran.", "At the sound of the drum they ran."),
            ("{b} was ahead at the bridge.", "At the bridge {b} led by ten steps."),
            ("Near the end {a} passed {b}.", "On the last hill {a} came first."),
            ("The mayor gave {a} the {x}.", "{a} lifted the {x} and the crowd cheered."),
        ),
    ),
    "illness": (
        ("tea", "syrup", "powder"),
        (
            ("{a} had a fever and stayed in bed.", "{a} woke up ill and could not rise."),
            ("{b} sent for the doctor.", "{b} ran to fetch the doctor."),
            ("The doctor felt the pulse and nodded.", "The doctor looked at the tongue of {a}."),
            ("Three times a day {a} took a bitter {x}.", "The doctor left a {x} to be taken."),
            ("After a week {a} was well again.", "Soon {a} could walk and thanked {b}."),
        ),
    ),
    "music": (
        ("song", "dance", "march"),
        (
            ("{a} learned a new {x} for the feast.", "{a} had made a {x} for the feast."),
            ("{b} tuned the strings.", "{b} brought a fiddle and tuned it."),
            ("They practised until midnight.", "For a week they practised in the barn."),
            ("At the feast the hall grew quiet.", "At the feast all eyes were on {a}."),
            ("They played the {x} and people clapped.", "After the {x} everyone clapped."),
        ),
    ),
    "well": (
        ("bucket", "ring", "hammer"),
        (
            ("{a} dropped a {x} into the well.", "The {x} of {a} fell into the well."),
            ("{b} looked down but it was too dark.", "{b} lit a candle and looked down."),
            ("They tied a hook to a long rope.", "{a} fetched a rope with a hook."),
            ("The hook touched something hard.", "Slowly {b} moved the hook in the water."),
            ("They pulled the {x} out of the well.", "Up came the {x}, wet but whole."),
        ),
    ),
    "school": (
        ("map", "poem", "bird"),
        (
            ("The teacher asked {a} to draw a {x}.", "{a} had to bring a {x} to school."),
            ("{a} had forgotten the paper.", "{a} had no paper and no ink."),
            ("{b} shared paper and ink.", "{b} lent {a} a sheet of paper."),
            ("All morning {a} worked on the {x}.", "{a} finished the {x} before noon."),
            ("The teacher hung the {x} on the wall.", "The teacher praised the {x} of {a}."),
        ),
    ),
    "thief": (
        ("hen", "ham", "clock"),
        (
            ("At night {a} heard a noise in the yard.", "A noise woke {a} in the night."),
            ("A thief was stealing the {x}.", "Somebody climbed the wall with the {x}."),
            ("{a} shouted and {b} woke up.", "{a} called for {b} as loud as possible."),
            ("{b} ran after the thief with a stick.", "{b} blocked the gate with a cart."),
            ("The thief dropped the {x} and fled.", "The {x} was saved and the thief fled."),
        ),
    ),
    "snow": (
        ("sled", "wagon", "cart"),
        (
            ("Snow lay deep when {a} left with the {x}.", "{a} set out with the {x} in winter."),
            ("On the pass the {x} got stuck.", "The {x} sank into a drift."),
            ("{a} lit a lantern and waited.", "{a} blew a horn for help."),
            ("{b} saw the light and came with a shovel.", "{b} came over the hill with a shovel."),
            ("They freed the {x} and went to the inn.", "By dawn the {x} was free."),
        ),
    ),
}
OPENERS = ("", "", "", "One day ", "Last year ", "Once ")

# Sentence with two people and a reason for either; the pronoun is always "they".
FRAMES: tuple[tuple[str, str, str], ...] = (
    ("{a} lent {b} a {x}", "had two of them", "had none"),
    ("{a} thanked {b} for the {x}", "had been helped", "had been kind"),
    ("{a} sold {b} a {x}", "needed money", "had saved money"),
    ("{a} taught {b} to use a {x}", "was an expert", "was a beginner"),
    ("{a} hid the {x} from {b}", "wanted to keep it", "often stole things"),
    ("{a} asked {b} about the {x}", "did not know", "knew everything"),
    ("{a} carried the {x} for {b}", "was strong", "was weak"),
    ("{a} beat {b} in the game for the {x}", "played well", "played badly"),
    ("{a} waited for {b} with the {x}", "came early", "came late"),
    ("{a} gave the {x} back to {b}", "had only borrowed it", "was the owner"),
    ("{a} blamed {b} for the broken {x}", "was angry", "had dropped it"),
    ("{a} envied {b} for the {x}", "wanted one too", "had won it"),
    ("{a} followed {b} to find the {x}", "was lost", "knew the way"),
    ("{a} paid {b} to mend the {x}", "could not do it", "was good at repairs"),
    ("{a} warned {b} about the {x}", "had seen the danger", "was in danger"),
    ("{a} showed {b} the new {x}", "was proud", "was curious"),
    ("{a} stole the {x} of {b}", "was a thief", "was asleep"),
    ("{a} wrote {b} a letter about the {x}", "had news", "was far away"),
    ("{a} fed {b} beside the {x}", "had cooked", "was hungry"),
    ("{a} visited {b} with a {x}", "had a free day", "was ill at home"),
)
FRAME_THINGS = listed("lamp;saw;rope;ladder;kettle;boat;drum;book;cart;knife;basket;clock")

# What a thing is made of decides what happens to it.
MATERIALS: dict[str, tuple[str, ...]] = {
    "glass": ("bottle", "mirror", "lens", "vase", "marble"),
    "iron": ("nail", "horseshoe", "anvil", "chain", "key"),
    "wood": ("plank", "spoon", "stool", "log", "wheel"),
    "wool": ("scarf", "blanket", "sock", "cap", "shawl"),
    "wax": ("candle", "seal", "taper"),
    "paper": ("map", "letter", "kite", "ticket"),
    "clay": ("jug", "tile", "bowl", "plate"),
    "salt": ("salt block", "salt crystal"),
    "cork": ("stopper", "float", "raft"),
    "stone": ("millstone", "pebble", "statue", "slab"),
}
EVENTS: dict[str, tuple[tuple[str, ...], dict[str, str], str]] = {
    "fall": (
        (
            "If {t} falls on rock, it {o}.",
            "When you drop {t} on rock, it {o}.",
            "{t} that falls on rock {o}.",
            "Thrown from a tower, {t} {o}.",
        ),
        {"glass": "breaks", "clay": "breaks", "salt": "breaks"},
        "stays whole",
    ),
    "pond": (
        (
            "If you put {t} in a pond, it {o}.",
            "In water {t} {o}.",
            "When {t} drops into the river, it {o}.",
            "{t} in a full bucket {o}.",
        ),
        {"wood": "floats", "cork": "floats", "wax": "floats", "paper": "floats"}
        | {"salt": "dissolves"},
        "sinks",
    ),
    "fire": (
        (
            "If {t} lies in the fire, it {o}.",
            "When you throw {t} into the fire, it {o}.",
            "In a hot oven {t} {o}.",
            "Near a flame {t} soon {o}.",
        ),
        {"wood": "burns", "paper": "burns", "wool": "burns", "cork": "burns", "wax": "melts"},
        "only gets hot",
    ),
    "rain": (
        (
            "If {t} stays in the rain, it {o}.",
            "Left outside in wet weather, {t} {o}.",
            "After a week of rain {t} {o}.",
            "When it rains on {t}, it {o}.",
        ),
        {"iron": "rusts", "paper": "falls apart", "wool": "gets heavy", "salt": "dissolves"},
        "does not change",
    ),
}
EVENT_QUESTIONS: dict[str, tuple[str, ...]] = {
    "fall": (
        "What happens if {t} falls on rock?",
        "You drop {t} on rock. What does it do?",
        "{t} falls from a roof. What then?",
    ),
    "pond": (
        "What happens if {t} is put in a pond?",
        "You throw {t} in the river. What does it do?",
        "{t} lands in water. What then?",
    ),
    "fire": (
        "What happens if {t} lies in the fire?",
        "You put {t} in a fire. What does it do?",
        "{t} is held in a flame. What then?",
    ),
    "rain": (
        "What happens if {t} is left in the rain?",
        "You forget {t} outside in the rain. What does it do?",
        "It rains on {t} for days. What then?",
    ),
}


@dataclass(frozen=True)
class Behaviour:
    """What one thing does in one event."""

    thing: str
    event: str
    outcome: str

    def statements(self, split: Split) -> list[str]:
        return self._of(EVENTS[self.event][0], "say", split)

    def questions(self, split: Split) -> list[str]:
        return self._of(EVENT_QUESTIONS[self.event], "ask", split)

    def _of(self, wordings: tuple[str, ...], use: str, split: Split) -> list[str]:
        held = bucket(f"{use}|{self.thing}|{self.event}", len(wordings))
        calib = (held + 1) % len(wordings)
        chosen = {
            "heldout": [held],
            "calibration": [calib],
            "train": [i for i in range(len(wordings)) if i not in (held, calib)],
        }[split]
        article = "an" if self.thing[0] in "aeiou" else "a"
        texts = [wordings[i].replace("{t}", f"{article} {self.thing}") for i in chosen]
        return [(t[0].upper() + t[1:]).replace("{o}", self.outcome) for t in texts]


@lru_cache(maxsize=1)
def behaviours() -> tuple[Behaviour, ...]:
    return tuple(
        Behaviour(thing, event, outcomes.get(material, default))
        for material, things in MATERIALS.items()
        for thing in things
        for event, (_, outcomes, default) in EVENTS.items()
    )


@dataclass(frozen=True)
class Story:
    script: str
    thing: str
    a: str
    b: str
    wordings: tuple[int, ...]
    opener: str

    def sentence(self, step: int, thing: str | None = None, other: bool = False) -> str:
        """One step's sentence; `other` takes the wording that this story does not use."""
        wording = self.wordings[step] ^ int(other)
        template = SCRIPTS[self.script][1][step][wording]
        return template.format(a=self.a, b=self.b, x=thing or self.thing)

    @property
    def text(self) -> str:
        opening = self.opener + self.sentence(0)
        if self.opener and self.sentence(0).split()[0] in ("The", "In", "A", "After", "At"):
            opening = self.sentence(0)
        return " ".join([opening, *(self.sentence(i) for i in range(1, 5))]) + "\n"


@dataclass(frozen=True)
class Pronoun:
    sentence: str
    question: str
    answer: str
    other: str

    @property
    def text(self) -> str:
        return f"{self.sentence}\nQ: {self.question}\nA: {self.answer}\n"


def stories(split: Split, rng: random.Random) -> Iterator[Story]:
    """Endless stories; a combination of script, thing and wordings belongs to one split."""
    names = world().story_names
    while True:
        script = rng.choice(list(SCRIPTS))
        thing = rng.choice(SCRIPTS[script][0])
        wordings = tuple(rng.randint(0, 1) for _ in range(5))
        if _split(f"story|{script}|{thing}|{wordings}") == split:
            a, b = rng.sample(names, 2)
            yield Story(script, thing, a, b, wordings, rng.choice(OPENERS))


def pronouns(split: Split, rng: random.Random) -> Iterator[Pronoun]:
    """Endless pronoun notes; a combination of frame, reason and thing belongs to one split."""
    names = world().story_names
    while True:
        index = rng.randrange(len(FRAMES))
        first = rng.random() < 0.5
        thing = rng.choice(FRAME_THINGS)
        if _split(f"pronoun|{index}|{first}|{thing}") != split:
            continue
        a, b = rng.sample(names, 2)
        frame, of_a, of_b = FRAMES[index]
        reason = of_a if first else of_b
        situation = frame.format(a=a, b=b, x=thing)
        because = f"they {reason}".replace("they was", "they were")
        answer, other = (a, b) if first else (b, a)
        yield Pronoun(f"{situation} because {because}.", f"Who {reason}?", answer, other)


def documents(split: Split, rng: random.Random) -> Iterator[str]:
    """Endless documents of the three genres."""
    told, resolved = stories(split, rng), pronouns(split, rng)
    known = behaviours()
    while True:
        draw = rng.random()
        if draw < 0.45:
            yield next(told).text
        elif draw < 0.70:
            yield "\n".join(next(resolved).text for _ in range(rng.randint(1, 3)))
        elif draw < 0.85:
            told_behaviours = rng.sample(known, rng.randint(4, 6))
            yield " ".join(rng.choice(b.statements(split)) for b in told_behaviours) + "\n"
        else:
            asked = rng.sample(known, rng.randint(3, 5))
            pairs = (f"Q: {rng.choice(b.questions(split))}\nA: {b.outcome}" for b in asked)
            yield "\n\n".join(pairs) + "\n"


def _split(key: str) -> Split:
    number = bucket(key, 10)
    return "heldout" if number == 0 else "calibration" if number == 1 else "train"
