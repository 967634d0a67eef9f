"""What hostile grids are made of (`hostile_grids`): scalars, labels, names and paths as YAML has
them, and values that a JSON schema allows."""

from __future__ import annotations

from random import Random
from typing import Any, TypeAlias

Json: TypeAlias = dict[str, Any]

# What may stand in place of any value.
SCALARS = [
    *("true", "false", "null", "~", "yes", "-1", "0", "1", "3", "0.5", "1e308", "-1e308", "1e999"),
    *(".nan", ".inf", "-.inf", "1000000000", "9223372036854775808", "1:30", "1_000", "2026-11-26"),
    *("9" * 5000, "-" + "9" * 4200, "0x" + "f" * 5000, "0." + "1" * 5000, "1e" + "9" * 400),
    *("''", "' '", "'\u200b'", '"a\\0b"', '"\\ud800"', '"\\u202eabc"', '"\\x1b[31mred"', '"a\\nb"'),
    *(
        "x" * 100_000,
        "x " * 20_000,
        "~nosuchuser/x",
        "~",
        "/" + "a/" * 2500,
        "a" * 5000,
        "../" * 99,
    ),
    *("[]", "{}", "[1, 2]", "{a: 1}", "[" * 20 + "]" * 20, "[" * 500 + "]" * 500, "&a [*a]", "*b"),
    *("!!int abc", "!!float abc", "!!bool 3", "!!null x", "!!binary '*'", "!!timestamp x"),
    *("!!python/object:os.system x", "!!set {a}", "!!map [1]", "!!seq {a: 1}", "!!str [1]", "!x y"),
    *('"\\U00110000"', '"\\uZZZZ"', "|\n  text\n", ">-\n  folded\n", "<<", "=", "?", "{<<: 3}"),
    *(
        "testbed",
        "file:/dev/zero",
        "file:/etc",
        "file:~nosuchuser/x.txt",
        "org/" + "a" * 300,
        "1e400",
    ),
]
KEYS = ["model", "method", "vary", "compare", "defaults", "evaluate", "seed", "report", "published"]
KEYS += ["base", "mirror", "dtype", "attention", "diagnose", "label", "max_points", "name", "limit"]
LABELS = [
    '""',
    '"   "',
    '"\\t"',
    '"\\0"',
    '"\\u202eevil"',
    '"\\ud83d"',
    '"\\u200b"',
    '"a\\u2028b"',
    '"\\x1b[2J"',
    "x" * 100000,
    "x" * 121,
    '"=cmd()"',
    '"a|b"',
    '"`a`"',
    '"é\\u0301"',
    "true",
    '"\\u2066a\\u2069"',
    "[a]",
    "1.10",
    '"a\\nb"',
    '"\\\\input{x}"',
]
NAMES = ["x" * 100_000, '"\\u202ertn"', '"\\0"', '"rtn\\n"', '"\\udc00"', "ｒtn", "''"]
PATHS = [
    "~nosuchuser/x",
    '"a\\0b"',
    "/" + "a" * 5000,
    "a/" * 2500,
    "x" * 300,
    "/proc/self/mem",
    "/dev/zero",
    "/dev/stdin",
    ".",
    "..",
    "/",
    "//",
    "./nowhere.gguf",
    "loop",
    "closed",
    "pipe",
]


def draw(schema: Json, root: Json, random: Random, depth: int) -> Any:
    """A value that a schema allows, with few parts; deep down the simplest."""
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        return draw(target, root, random, depth)
    if "anyOf" in schema or "oneOf" in schema:
        return draw(random.choice(schema.get("anyOf") or schema["oneOf"]), root, random, depth)
    if "enum" in schema:
        return random.choice(schema["enum"])
    if "const" in schema:
        return schema["const"]
    kind = schema.get("type")
    if kind == "object":
        names = sorted(schema.get("properties", {}))
        chosen = random.sample(names, min(len(names), random.randrange(4 if depth < 4 else 1)))
        chosen = [*dict.fromkeys([*schema.get("required", []), *chosen])]
        return {n: draw(schema["properties"][n], root, random, depth + 1) for n in chosen}
    if kind == "array":
        items = schema.get("items", {"type": "string"})
        return [draw(items, root, random, depth + 1) for _ in range(random.randrange(1, 4))]
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", -5), schema.get("maximum", 5)
        number = random.choice((low, high, 1, 2, 3, 4, low - 1, high + 1, (low + high) / 2))
        return int(number) if kind == "integer" else number
    return {"boolean": random.random() < 0.5, "null": None}.get(str(kind), random.choice("ab"))
