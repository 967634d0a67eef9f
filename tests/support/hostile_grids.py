"""Grids that clumsy fingers or a hostile mind would write, by kind, out of random numbers.

    path = write_grid("alias bomb", Random(7), folder)       # the grid's file, and what it needs
    KINDS                                                    # the names of all kinds

What is expected of each is the same: it is refused in one line, or it is a valid grid and means
what it says (`check_accepted`). `tests/harness/grid/test_hostile.py` tries some hundred in one
process, `benchmarks/hostile_grids.py` thousands in processes of their own.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import yaml

from harness.config.document import Document
from harness.config.settings import list_settings
from harness.core.scalars import forget_text
from harness.grid.editor import make_schema
from harness.grid.points import list_points
from harness.grid.reading import read_grid
from tests.support.hostile_values import KEYS, LABELS, NAMES, PATHS, SCALARS, Json, draw

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
BASE = """# Does it hurt?
model: testbed-small
method: bitdistiller
vary: {objective: [cakld, kl], train.lr: [1e-4]}
compare: [bf16, {name: rtn, label: Nearest}]
defaults: {format.bits: 3, format.group_size: 64, init.text: testbed, data.text: testbed,
           data.length: 128, data.sequences: 64, train.steps: 4, train.batch_size: 4}
evaluate: [testbed-ppl, {testbed_knowledge: {limit: 20}}]
"""


def write_grid(kind: str, random: Random, folder: Path) -> Path:
    """A grid of a kind in a folder of its own, with the files that it needs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "grid.yaml"
    content = _WRITERS[kind](random, folder)
    if isinstance(content, str):
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
    elif isinstance(content, bytes):
        path.write_bytes(content)
    return path


def check_accepted(path: Path) -> None:
    """Assert that a grid that was taken is a valid one, and means what it says.

    Every axis has all its values in a method, and every default stands in one or is overruled; no
    number is a truth value, or not finite.
    """
    document, file = read_grid(path)
    points = list_points(document, file)
    held = [dict(list_settings(point.method)) for point in points]
    for settings in held:
        for name, value in settings.items():
            assert not isinstance(value, float) or math.isfinite(value), name
    for axis, values in file.vary.items():
        if axis in ("seed", "model"):
            shown = [point.seed if axis == "seed" else point.source for point in points]
        else:
            shown = [settings.get(axis, ...) for settings in held]
        for value in values:
            if not isinstance(value, dict | list):
                assert any(_means(value, each) for each in shown), (axis, value)
    for name, value in file.defaults.items():
        given = [settings[name] for settings in held if name in settings]
        if given and name not in file.vary and not isinstance(value, dict | list):
            own = [point.contender.own for point in points]
            overruled = any(name in each for each in own)
            assert overruled or any(_means(value, each) for each in given), (name, value)


def _means(value: Any, held: Any) -> bool:
    """Whether a field holds what a file says: a number is no truth value, a name a component."""
    value = forget_text(value)
    name = getattr(type(held), "name", None)
    if isinstance(value, bool) or isinstance(held, bool):
        return value is held
    return bool(value == held or name == value or str(value) == str(held))


@cache
def _schema() -> Json:
    return make_schema()


def _mutate(random: Random, folder: Path) -> str:
    """One of the project's grids with values, keys and letters replaced."""
    path = random.choice(sorted(EXPERIMENTS.glob("*.yaml")))
    data = forget_text(Document(path, merged=("defaults", "report")).data)
    data["model"] = "testbed" if "quickstart" in path.stem or "testbed" in path.stem else "none"
    text = yaml.safe_dump(data, sort_keys=False, width=10_000)
    lines = text.splitlines()
    for _ in range(random.choice((1, 1, 2, 3))):
        at = random.randrange(len(lines))
        how = random.randrange(6)
        if how <= 2 and ": " in lines[at]:
            lines[at] = lines[at].partition(": ")[0] + ": " + random.choice(SCALARS)
        elif how == 3:
            lines.insert(at, random.choice(lines))
        elif how == 4:
            del lines[at]
            lines = lines or ["a"]
        else:
            line = lines[at]
            spot = random.randrange(len(line) + 1)
            odd = random.choice(
                ("\t", ":", "- ", "[", "}", "\x00", "\u202e", "é", "#", "&", "*", "!")
            )
            lines[at] = line[:spot] + odd + line[spot + random.randrange(2) :]
    return "# What?\n" + "\n".join(lines) + "\n"


def _follow_schema(random: Random, folder: Path) -> str:
    """A grid that the schema allows, more or less: a value in sixteen is any."""
    schema = _schema()
    data: Json = {"model": "testbed-small", "method": "rtn", "evaluate": ["testbed-ppl"]}
    for name in random.sample(sorted(schema["properties"]), random.randrange(1, 4)):
        if name not in ("base", "mirror", "trust_remote_code"):
            data[name] = draw(schema["properties"][name], schema, random, 0)
    marks: dict[str, str] = {}
    data = _replace_some(data, random, marks)
    text = yaml.safe_dump(data, sort_keys=False, width=10_000)
    for mark, scalar in marks.items():
        text = text.replace(mark, scalar)
    return text


def _replace_some(data: Any, random: Random, marks: dict[str, str]) -> Any:
    if isinstance(data, dict):
        return {name: _replace_some(value, random, marks) for name, value in data.items()}
    if isinstance(data, list):
        return [_replace_some(value, random, marks) for value in data]
    if random.random() < 0.06:
        mark = f"MARK{len(marks)}MARK"
        marks[mark] = random.choice([each for each in SCALARS if "\n" not in each])
        return mark
    return data


def _put_value(random: Random, folder: Path) -> str:
    """One value of a grid is another."""
    name = random.choice(
        ["train.lr", "train.steps", "format.bits", "format.group_size", "objective"]
    )
    name = random.choice(
        [name, "data.length", "data.text", "init.shrink", "train.betas", "init.grid"]
    )
    value = random.choice(SCALARS)
    where = random.randrange(4)
    if where == 0:
        return BASE.replace("defaults: {", f"defaults: {{{name}: {value}, ", 1)
    if where == 1:
        return BASE.replace("vary: {", f"vary: {{{name}: [{value}], ", 1)
    if where == 2:
        return BASE.replace("limit: 20", f"limit: {value}")
    return BASE + f"{random.choice([*KEYS, 'seed', 'seed', 'mirror', 'dtype'])}: {value}\n"


def _alias(random: Random, folder: Path) -> str:
    return BASE + random.choice(
        (
            "report: &a {rows: *a}\n",
            "diagnose: &a [*a, *a]\n",
            "report: &a {<<: *a}\n",
            "report: &a {<<: [*a, *a]}\n",
            "a: &a [1]\nb: [*a, *a, *c]\n",
            "report: &a {title: &b {x: *a, y: *b}}\n",
            "? &a [*a]\n: 1\n",
        )
    )


def _alias_bomb(random: Random, folder: Path) -> str:
    width, depth = random.choice(((10, 8), (2, 40), (9, 30), (100, 5)))
    flavour = random.randrange(3)
    opening = {0: "[0]", 1: "{k: 0}", 2: "{<<: {k: 0}}"}[flavour]
    lines = [f"a0: &a0 {opening}"]
    for level in range(1, depth):
        parts = ", ".join([f"*a{level - 1}"] * width)
        body = f"{{<<: [{parts}]}}" if flavour else f"[{parts}]"
        lines.append(f"a{level}: &a{level} {body}")
    return BASE + "\n".join(lines) + "\n"


def _deep(random: Random, folder: Path) -> str:
    depth = random.choice((30, 60, 1000, 30_000))
    opening, closing = random.choice((("[", "]"), ("{a: ", "}"), ("- ", ""), ("? ", "")))
    return BASE + "report:\n  " + opening * depth + "1" + closing * depth + "\n"


def _many_points(random: Random, folder: Path) -> str:
    axes = ["train.steps", "train.batch_size", "data.length", "data.sequences", "seed", "init.grid"]
    chosen = random.sample(axes, random.randrange(3, 7))
    if random.random() < 0.3:
        chosen.append("trian.lr")
    size = random.choice((13, 40, 300))
    inside = ", ".join(f"{axis}: [{', '.join(map(str, range(8, 8 + size)))}]" for axis in chosen)
    lift = random.choice(("", "", "max_points: 1000000000000\n", "max_points: true\n"))
    return BASE.replace("vary: {", f"vary: {{{inside}, ") + lift


def _bases(random: Random, folder: Path) -> str:
    depth, width = random.choice(((20, 2), (30, 2), (40, 1), (6, 6), (3, 30)))
    shape = random.randrange(3)
    for level in range(depth):
        names = [f"b{level + 1}.yaml"] * width if level + 1 < depth else []
        if shape == 1 and not names:
            names = ["grid.yaml"]
        text = f"base: [{', '.join(names)}]\n" if names else ""
        (folder / f"b{level}.yaml").write_text(text + (BASE if not names else "seed: 1\n"))
    if shape == 2:
        return BASE + f"base: {random.choice(SCALARS)}\n"
    return f"base: [{', '.join(['b0.yaml'] * width)}]\n"


def _label(random: Random, folder: Path) -> str:
    label = random.choice(LABELS)
    return BASE.replace("label: Nearest", f"label: {label}")


def _name(random: Random, folder: Path) -> str:
    odd = random.choice(NAMES)
    return random.choice(
        (
            BASE.replace("method: bitdistiller", f"method: {odd}"),
            BASE.replace("testbed-ppl", odd),
            BASE.replace("objective:", f"{odd}:"),
            BASE.replace("compare: [bf16", f"compare: [{odd}"),
            BASE.replace("[cakld, kl]", f"[cakld, {odd}]"),
            BASE.replace("model: testbed-small", f"model: {odd}"),
            BASE + f"{odd}: 1\n",
            BASE + f"published: {odd}\n",
        )
    )


def _path(random: Random, folder: Path) -> str:
    odd = random.choice(PATHS)
    (folder / "loop").symlink_to("loop")
    (folder / "closed").mkdir(mode=0)
    os.mkfifo(folder / "pipe")
    return random.choice(
        (
            BASE.replace("model: testbed-small", f"model: {odd}"),
            BASE + f"base: {odd}\n",
            BASE + f"mirror: {odd}\n",
            BASE + f"published: {odd}\n",
            BASE.replace("data.text: testbed", f"data.text: {_prefix(odd)}"),
            BASE.replace("vary: {", f"vary: {{train.teacher: [{odd}], teacher: [{odd}], "),
        )
    )


def _prefix(odd: str) -> str:
    return odd.replace('"', '"file:', 1) if odd.startswith('"') else f"file:{odd}"


def _file(random: Random, folder: Path) -> bytes | None:
    """The grid itself is no file, or not one of text."""
    path = folder / "grid.yaml"
    kind = random.randrange(11)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(random.choice(("/dev/zero", "/dev/null", "grid.yaml", "none", "/dev/tty")))
    elif kind == 3:
        with path.open("wb") as file:
            file.truncate(10**10)
    elif kind == 4:
        path.write_bytes(BASE.encode())
        path.chmod(0)
    else:
        return (
            b"",
            BASE.encode("utf-16"),
            random.randbytes(5000),
            b"\xff" * 200_000,
            b"# " + b"x" * 10**7,
            BASE.encode() * 2,
        )[kind - 5]
    return None


def _model(random: Random, folder: Path) -> str:
    """A local model whose configuration says what no model has."""
    model = folder / "model"
    model.mkdir()
    source = _testbed_folder()
    facts = json.loads((source / "config.json").read_text())
    for file in source.iterdir():
        if file.name != "config.json":
            (model / file.name).symlink_to(file)
    numbers = sorted(key for key, value in facts.items() if type(value) in (int, float))
    key = random.choice([*numbers, "num_hidden_layers", "hidden_size", "vocab_size"])
    odd: list[Any] = [1_000_000, 10**9, 10**12, 10**30, -1, 0, "x", None, True, [1], {"a": 1}, 1.5]
    odd += [float("nan"), float("inf"), "9" * 5000, "\ud800"]
    facts[key] = random.choice(odd)
    if random.random() < 0.3:
        facts |= {"layer_types": ["full_attention"] * random.choice((1, 100_000))}
    text = json.dumps(facts)
    if random.random() < 0.2:
        text = random.choice(("", "[" * 100_000, '{"a":' * 5000, "null", "[]", "\0", "9" * 5000))
        text = random.choice((text, text, " " * 2**23))
    (model / "config.json").write_text(text)
    return BASE.replace("model: testbed-small", f"model: {model}")


@cache
def _testbed_folder() -> Path:
    from harness.models.sources import find_source

    folder = find_source("testbed-small").folder()
    assert folder is not None
    return folder


def _beside(random: Random, folder: Path) -> str:
    """What is wrong although something else overrules it."""
    return random.choice(
        (
            BASE.replace("vary: {", "vary: {seed: [0, 1], ") + "seed: 3\n",
            BASE.replace("vary: {", "vary: {model: [testbed-small], ").replace(
                "model: testbed-small\n", "model: nowhere\n"
            ),
            BASE.replace("defaults: {", f"defaults: {{train.lr: {random.choice(SCALARS)}, "),
            BASE.replace("defaults: {", f"defaults: {{objective: {random.choice(SCALARS)}, "),
            BASE.replace("defaults: {", "defaults: {objective.gamma: false, "),
            BASE.replace("method: bitdistiller", "method: {name: bitdistiller, train.lr: -1}"),
            BASE.replace("compare: [bf16", "compare: [{name: rtn, format.bits: 3}, bf16"),
        )
    )


_WRITERS: dict[str, Callable[[Random, Path], str | bytes | None]] = {
    "grids of the project, mutated": _mutate,
    "grids by the schema": _follow_schema,
    "one value replaced": _put_value,
    "recursive aliases": _alias,
    "alias bombs": _alias_bomb,
    "deep nesting": _deep,
    "too many points": _many_points,
    "fans and circles of bases": _bases,
    "odd labels": _label,
    "odd names": _name,
    "odd paths": _path,
    "no file of text": _file,
    "a model's configuration": _model,
    "wrong, and overruled": _beside,
}
KINDS = tuple(_WRITERS)
