"""The invented world's facts: towns, people and trades with a few attributes each.

Everything here is data made from a seed; how it is said stands in `articles.py`. A fact is
(entity, attribute, value); `bucket` decides, without any state, which wording of a fact belongs to
which split.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Split = Literal["train", "calibration", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "calibration", "heldout")

SEED = 2402
N_TOWNS, N_PEOPLE, N_STORY_NAMES = 96, 128, 160


def listed(text: str, mark: str = ";") -> tuple[str, ...]:
    """The entries of a written list."""
    return tuple(text.split(mark))


GOODS = listed(
    "blue paper;salt cheese;river glass;copper bells;black honey;reed baskets;walnut oil;"
    "red brick;smoked eel;linen sails;bone combs;juniper soap;tin whistles;barley beer;"
    "felt hats;amber beads;plum brandy;oak barrels;goose quills;wool carpets;clay pipes;"
    "silk thread;iron stoves;mustard seed"
)
ANIMALS = listed(
    "heron;otter;stag;badger;owl;pike;hare;raven;fox;lynx;swan;toad;ram;falcon;beaver;adder"
)
DISHES = listed(
    "pea soup;onion tart;baked carp;rye dumplings;lamb stew;apple fritters;beet salad;"
    "fried mushrooms;barley porridge;duck pie;cabbage rolls;honey cake;trout broth;potato bread;"
    "chestnut mash;cherry pudding"
)
INSTRUMENTS = listed(
    "fiddle;harp;drum;flute;horn;lute;bagpipe;zither;organ;cello;tambourine;dulcimer"
)
# Each trade with its tool and its material: fixed, so that the trades are sensible English.
TRADES: dict[str, tuple[str, str]] = {
    "cooper": ("croze", "oak"),
    "glazier": ("cutting wheel", "glass"),
    "weaver": ("shuttle", "yarn"),
    "mason": ("chisel", "granite"),
    "printer": ("press", "ink"),
    "tanner": ("scraper", "hides"),
    "potter": ("wheel", "clay"),
    "baker": ("peel", "flour"),
    "miller": ("millstone", "grain"),
    "smith": ("anvil", "iron"),
    "tailor": ("needle", "cloth"),
    "carpenter": ("plane", "pine"),
    "chandler": ("mould", "tallow"),
    "cobbler": ("awl", "leather"),
    "fisher": ("net", "twine"),
    "brewer": ("kettle", "hops"),
    "dyer": ("vat", "indigo"),
    "roper": ("hook", "hemp"),
    "jeweller": ("loupe", "silver"),
    "gardener": ("spade", "compost"),
    "surveyor": ("chain", "parchment"),
    "clockmaker": ("tweezers", "brass"),
    "bookbinder": ("awl press", "vellum"),
    "thatcher": ("rake", "straw"),
}
GUILD_COLOURS = listed("white;green;yellow;scarlet;purple;grey;orange;brown;silver;crimson")


def bucket(key: str, size: int) -> int:
    """A stable number below `size` for a key: the same in every process and hash seed."""
    return zlib.crc32(f"{SEED}|{key}".encode()) % size


@dataclass(frozen=True)
class Town:
    name: str
    region: str
    river: str
    good: str
    emblem: str
    dish: str
    founded: int


@dataclass(frozen=True)
class Person:
    name: str
    trade: str
    birthplace: str
    home: str
    instrument: str
    born: int


@dataclass(frozen=True)
class Trade:
    name: str
    tool: str
    material: str
    seat: str
    colour: str


@dataclass(frozen=True)
class World:
    towns: tuple[Town, ...]
    people: tuple[Person, ...]
    trades: tuple[Trade, ...]
    story_names: tuple[str, ...]

    def town(self, name: str) -> Town:
        return _by_name(self.towns)[name]

    def trade(self, name: str) -> Trade:
        return _by_trade(self.trades)[name]


@lru_cache(maxsize=1)
def world() -> World:
    """The one world that the testbed describes."""
    rng = random.Random(SEED)
    taken: set[str] = set()
    towns_named = [_name(rng, 2, 3, taken, _TOWN_ENDS) for _ in range(N_TOWNS)]
    regions = [_name(rng, 2, 2, taken, ("land", "mark", "shire", "vale")) for _ in range(8)]
    rivers = [_name(rng, 1, 2, taken, ("a", "e", "ow", "en")) for _ in range(16)]
    towns = tuple(
        Town(
            name,
            rng.choice(regions),
            rng.choice(rivers),
            rng.choice(GOODS),
            rng.choice(ANIMALS),
            rng.choice(DISHES),
            rng.randint(1100, 1650),
        )
        for name in towns_named
    )
    trades = tuple(
        Trade(name, tool, material, rng.choice(towns_named), rng.choice(GUILD_COLOURS))
        for name, (tool, material) in TRADES.items()
    )
    first = [_name(rng, 2, 2, taken, _FIRST_ENDS) for _ in range(64)]
    last = [_name(rng, 2, 2, taken, _LAST_ENDS) for _ in range(N_PEOPLE)]
    people = []
    for i in range(N_PEOPLE):
        birthplace, home = rng.sample(towns_named, 2)
        people.append(
            Person(
                f"{first[i % 64]} {last[i]}",
                rng.choice(list(TRADES)),
                birthplace,
                home,
                rng.choice(INSTRUMENTS),
                rng.randint(1660, 1900),
            )
        )
    story_names = tuple(_name(rng, 1, 2, taken, _FIRST_ENDS) for _ in range(N_STORY_NAMES))
    return World(towns, tuple(people), trades, story_names)


_ONSETS = listed("b br d dr f fl g gr h j k kl l m n p pr r s sk sl st t tr th v w z", " ")
_VOWELS = listed("a e i o u ae ei ou", " ")
_CODAS = ("", "", "", "l", "n", "r", "s", "m", "rn", "ll", "nd", "st")
_TOWN_ENDS = ("ford", "wick", "ham", "mora", "by", "stead", "dal", "port", "ness", "burg")
_FIRST_ENDS = ("a", "o", "en", "is", "ia", "el", "in", "us", "et", "ana")
_LAST_ENDS = ("bek", "son", "ski", "man", "dottir", "ley", "wright", "well", "hart", "mond")


def _name(rng: random.Random, low: int, high: int, taken: set[str], ends: tuple[str, ...]) -> str:
    """An unused invented name: up to `high` syllables, the last one from `ends`."""
    while True:
        parts = [
            rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
            for _ in range(rng.randint(low, high) - 1)
        ]
        if not parts:
            parts = [rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice("lnrstm")]
        name = ("".join(parts) + rng.choice(ends)).capitalize()
        if name not in taken and 3 <= len(name) <= 12:
            taken.add(name)
            return name


@lru_cache(maxsize=1)
def _by_name(towns: tuple[Town, ...]) -> dict[str, Town]:
    return {town.name: town for town in towns}


@lru_cache(maxsize=1)
def _by_trade(trades: tuple[Trade, ...]) -> dict[str, Trade]:
    return {trade.name: trade for trade in trades}
