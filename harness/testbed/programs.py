"""Small Python functions with a docstring and tests.

A specification is a filter, a map and a reduction over a list or over the words of a string, or a
short formula; which split it belongs to follows from the specification, so the tasks ask only for
combinations that training never showed. Only expressions of the language are covered.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.testbed.facts import Split, bucket, listed

_VERBS = listed(
    "fold;pick;weigh;sift;stack;merge;trim;scan;pack;sort_out;count_up;blend;carve;draw;fetch;"
    "gather;hoist;join_up;knit;lift;mark;order;press;rake;spin;take;turn;wash;wind;work"
)
_NOUNS = listed(
    "apples;beams;cards;drops;edges;flags;grains;hills;items;jars;keys;lanes;marks;notes;orders;"
    "pairs;rows;seeds;tiles;units;votes;waves;yards;bolts;coins;lamps;nets;pots;rings;stones"
)


@dataclass(frozen=True)
class Part:
    """One ingredient: how the docstring says it (wordings) and what Python writes."""

    key: str
    said: tuple[str, ...]
    code: str


def _numbers() -> dict[str, list[Part]]:
    filters = [
        Part("all", ("all numbers", "the numbers"), ""),
        Part("even", ("the even numbers",), "x % 2 == 0"),
        Part("odd", ("the odd numbers",), "x % 2 == 1"),
        Part("positive", ("the positive numbers",), "x > 0"),
        Part("negative", ("the negative numbers",), "x < 0"),
    ]
    maps = [
        Part("same", ("",), "x"),
        Part("square", (" squared",), "x * x"),
        Part("negate", (" negated",), "-x"),
        Part("abs", (" without sign",), "abs(x)"),
    ]
    for k in range(2, 10):
        filters += [
            Part(f"over{k}", (f"the numbers above {k}", f"the numbers over {k}"), f"x > {k}"),
            Part(f"under{k}", (f"the numbers below {k}", f"the numbers under {k}"), f"x < {k}"),
            Part(f"multiple{k}", (f"the multiples of {k}",), f"x % {k} == 0"),
        ]
        maps += [
            Part(f"times{k}", (f" times {k}", f" multiplied by {k}"), f"x * {k}"),
            Part(f"plus{k}", (f" plus {k}", f" increased by {k}"), f"x + {k}"),
            Part(f"minus{k}", (f" minus {k}", f" reduced by {k}"), f"x - {k}"),
        ]
    reductions = [
        Part("list", ("a list of",), "[{}]"),
        Part("sum", ("the sum of", "the total of"), "sum({})"),
        Part("count", ("the count of",), "len([{}])"),
        Part("sorted", ("a sorted list of",), "sorted({})"),
        Part("max", ("the largest of",), "max({})"),
        Part("min", ("the smallest of",), "min({})"),
    ]
    return {"filter": filters, "map": maps, "reduce": reductions}


def _words() -> dict[str, list[Part]]:
    filters = [Part("all", ("all words", "the words"), "")]
    filters += [
        Part(f"start{c}", (f"the words that start with {c}",), f'w.startswith("{c}")')
        for c in "abcdeghmst"
    ]
    filters += [
        Part(f"longer{k}", (f"the words longer than {k}",), f"len(w) > {k}") for k in range(2, 7)
    ]
    filters += [Part(f"has{c}", (f"the words that contain {c}",), f'"{c}" in w') for c in "aeiorn"]
    maps = [
        Part("same", ("",), "w"),
        Part("upper", (" in upper case",), "w.upper()"),
        Part("reverse", (" reversed",), "w[::-1]"),
        Part("title", (" capitalized",), "w.capitalize()"),
        Part("length", (" as lengths",), "len(w)"),
        Part("first", (" as first letters",), "w[0]"),
        Part("last", (" as last letters",), "w[-1]"),
    ]
    reductions = [
        Part("list", ("a list of",), "[{}]"),
        Part("count", ("the count of",), "len([{}])"),
        Part("sorted", ("a sorted list of",), "sorted({})"),
        Part("set", ("the set of",), "set({})"),
    ]
    return {"filter": filters, "map": maps, "reduce": reductions}


_PARTS = {"numbers": _numbers(), "words": _words()}
_LEXICON = listed(
    "amber barn candle door early garden hammer island morning nest orange path river stone tree "
    "us water at in red bed cat dog egg goat hen map sun tea",
    " ",
)


@dataclass(frozen=True)
class Program:
    name: str
    spec: str
    docstring: str
    signature: str
    body: str
    tests: tuple[str, ...]

    @property
    def prompt(self) -> str:
        # Without the newline: it belongs to the same token as the indentation that follows.
        return f'def {self.name}({self.signature}):\n    """{self.docstring}"""'

    @property
    def text(self) -> str:
        return self.prompt + "\n" + self.body + "\n" + "\n".join(self.tests) + "\n"


def split_of(spec: str) -> Split:
    """The split that a specification belongs to."""
    number = bucket("code|" + spec, 10)
    return "heldout" if number == 0 else "calibration" if number == 1 else "train"


def programs(split: Split, rng: random.Random, n_tests: int = 2) -> Iterator[Program]:
    """Endless programs of a split, each passing its own tests."""
    while True:
        kind = rng.choice(("numbers", "numbers", "words", "formula"))
        make = _formula if kind == "formula" else _comprehension
        program = make(kind, split, rng, n_tests)
        if program is not None:
            yield program


def documents(split: Split, rng: random.Random) -> Iterator[str]:
    for program in programs(split, rng):
        yield program.text


def _comprehension(kind: str, split: Split, rng: random.Random, n_tests: int) -> Program | None:
    parts = _PARTS[kind]
    # Half of the draws leave out the filter or the map, so that each is also seen alone.
    keep = rng.choice(parts["filter"]) if rng.random() < 0.75 else parts["filter"][0]
    change = rng.choice(parts["map"]) if rng.random() < 0.75 else parts["map"][0]
    reduce = rng.choice(parts["reduce"])
    spec = f"{kind}|{keep.key}|{change.key}|{reduce.key}"
    if split_of(spec) != split:
        return None
    variable, source, signature = (
        ("x", "xs", "xs") if kind == "numbers" else ("w", "s.split()", "s")
    )
    condition = f" if {keep.code}" if keep.code else ""
    body = "    return " + reduce.code.format(
        f"{change.code} for {variable} in {source}{condition}"
    )
    docstring = (
        f"Return {rng.choice(reduce.said)} {rng.choice(keep.said)} in {signature}"
        f"{',' if change.code != variable else ''}{rng.choice(change.said)}."
    )
    return _finish(spec, docstring, signature, body, rng, n_tests, _INPUTS[kind])


def _formula(kind: str, split: Split, rng: random.Random, n_tests: int) -> Program | None:
    operation = rng.choice(("plus", "minus", "times"))
    then = rng.choice(("plus", "minus", "squared", "none"))
    k, j = rng.randint(2, 9), rng.randint(2, 9)
    spec = f"formula|{operation}{k}|{then}{j if then in ('plus', 'minus') else ''}"
    if split_of(spec) != split:
        return None
    sign = {"plus": "+", "minus": "-", "times": "*"}
    value = f"x {sign[operation]} {k}"
    description = f"x {operation} {k}"
    if then in ("plus", "minus"):
        value, description = f"{value} {sign[then]} {j}", f"{description}, then {then} {j}"
    elif then == "squared":
        value, description = f"({value}) ** 2", f"{description}, then squared"
    return _finish(
        spec, f"Return {description}.", "x", f"    return {value}", rng, n_tests, _INPUTS[kind]
    )


def _finish(
    spec: str,
    docstring: str,
    signature: str,
    body: str,
    rng: random.Random,
    n_tests: int,
    draw: Callable[[random.Random], object],
) -> Program | None:
    name = f"{rng.choice(_VERBS)}_{rng.choice(_NOUNS)}"
    scope: dict[str, Callable[[object], object]] = {}
    exec(f"def {name}({signature}):\n{body}\n", scope)  # our own text, built three lines above
    tests = []
    for _ in range(n_tests):
        argument = draw(rng)
        try:
            result = scope[name](argument)
        except ValueError:  # max or min of nothing: the specification says nothing about it
            continue
        shown = f'"{argument}"' if isinstance(argument, str) else repr(argument)
        if isinstance(result, set) and not result:
            shown_result = "set()"
        elif isinstance(result, set):
            # A set's own order follows the process's hash seed; the corpus must not.
            shown_result = "{" + ", ".join(repr(v) for v in sorted(result)) + "}"
        else:
            shown_result = repr(result)
        tests.append(f"assert {name}({shown}) == {shown_result}".replace("'", '"'))
    if not tests:
        return None
    return Program(name, spec, docstring, signature, body, tuple(dict.fromkeys(tests)))


def _numbers_input(rng: random.Random) -> list[int]:
    return [rng.randint(-9, 20) for _ in range(rng.randint(3, 5))]


def _words_input(rng: random.Random) -> str:
    return " ".join(rng.sample(_LEXICON, rng.randint(2, 4)))


_INPUTS: dict[str, Callable[[random.Random], object]] = {
    "numbers": _numbers_input,
    "words": _words_input,
    "formula": lambda rng: rng.randint(0, 12),
}
