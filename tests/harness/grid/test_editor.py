"""The JSON schema of a grid: current, and of one mind with the loader about what fits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.config.document import Document

ROOT = Path(__file__).parents[3]
GRIDS = sorted((ROOT / "experiments").glob("*.yaml"))
LINE = "# yaml-language-server: $schema=../docs/grid.schema.json"
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
NUMBERS = (TYPES["integer"], TYPES["number"])  # of which Python's booleans are some


def _complaints(schema: dict[str, Any], data: Any, root: dict[str, Any]) -> Iterator[str]:
    """What a validator would say, of the words of a schema that ours uses."""
    if "$ref" in schema:
        target: Any = root
        for step in schema["$ref"].removeprefix("#/").split("/"):
            target = target[step]
        yield from _complaints(target, data, root)
    kinds = TYPES.get(schema.get("type", ""), (object,))
    if not isinstance(data, kinds) or (isinstance(data, bool) and kinds in NUMBERS):
        yield f"{data!r} is no {schema['type']}"
        return
    if "enum" in schema and data not in schema["enum"]:
        yield f"{data!r} is none of {schema['enum']}"
    if "const" in schema and data != schema["const"]:
        yield f"{data!r} is not {schema['const']!r}"
    if "anyOf" in schema and all(any(_complaints(each, data, root)) for each in schema["anyOf"]):
        yield f"{data!r} fits none of several"
    if isinstance(data, dict):
        yield from (
            f"{name!r} is missing" for name in schema.get("required", ()) if name not in data
        )
        properties, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        for name, value in data.items():
            if name in properties:
                yield from _complaints(properties[name], value, root)
            elif more is False:
                yield f"{name!r} is unknown"
            elif isinstance(more, dict):
                yield from _complaints(more, value, root)
    if isinstance(data, list) and "items" in schema:
        for item in data:
            yield from _complaints(schema["items"], item, root)
    if isinstance(data, int | float) and not isinstance(data, bool):
        if data < schema.get("minimum", data) or data > schema.get("maximum", data):
            yield f"{data!r} is out of range"
        if "exclusiveMinimum" in schema and data <= schema["exclusiveMinimum"]:
            yield f"{data!r} is too small"


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    committed: dict[str, Any] = json.loads((ROOT / "docs/grid.schema.json").read_text())
    return committed


def test_the_committed_schema_is_current(schema: dict[str, Any]) -> None:
    """In a process of its own: here other tests have registered methods."""
    command = [sys.executable, "-m", "harness.cli", "schema"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == schema, "bitgrid schema > docs/grid.schema.json"


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grids_fit_it_and_name_it(path: Path, schema: dict[str, Any]) -> None:
    assert path.read_text().splitlines()[0] == LINE
    document = Document(path, merged=("defaults", "report"))
    assert "schema" not in document.comment
    assert not list(_complaints(schema, document.data, schema))


GRID = {"model": "testbed", "method": "bitdistiller", "evaluate": ["testbed-ppl", "piqa"]}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"varry": {}}, "'varry' is unknown"),
        ({"method": "bitdistil"}, "none"),
        ({"method": {"format.bits": 2}}, "none"),
        ({"method": {"name": "rtn", "format.bit": 2}}, "none"),
        ({"compare": ["rtn", "awg"]}, "none"),
        ({"vary": {"format.bit": [2]}}, "'format.bit' is unknown"),
        ({"vary": {"format.group_size": ["x"]}}, "'x' is no integer"),
        ({"vary": {"format.group_size": 2}}, "2 is no array"),
        ({"vary": {"objective": ["cakl"]}}, "none"),
        ({"vary": {"objective": [{"name": "cakld", "gama": 1}]}}, "none"),
        ({"defaults": {"train.schedule": "cosin"}}, "'cosin' is none of"),
        ({"evaluate": [{"piqa": {"limt": 3}}]}, "none"),
        ({"evaluate": [{"testbed-ppl": {"limit": 0}}]}, "none"),
        ({"report": {"decimals": 10}}, "none"),
        ({"published": {"model": "x"}}, "none"),
    ],
)
def test_what_does_not_fit_is_underlined(
    more: dict[str, Any], words: str, schema: dict[str, Any]
) -> None:
    assert not list(_complaints(schema, GRID, schema))
    complaints = list(_complaints(schema, GRID | more, schema))
    assert any(words in complaint for complaint in complaints), complaints


def test_what_fits_is_not(schema: dict[str, Any]) -> None:
    grid = GRID | {
        "method": {"name": "bitdistiller", "label": "Ours", "train.lr": 1e-4},
        "compare": ["rtn", {"name": "rtn", "format": {"name": "nf", "bits": 3}}],
        "vary": {"format": ["nf", {"name": "int-asym"}], "seed": [0, 1], "data.length": [8]},
        "defaults": {"train": {"steps": 3}, "data": None, "init.text": "testbed"},
        "evaluate": ["piqa", {"testbed-ppl": None}, {"mine": {"limit": 3, "bos": True}}],
        "diagnose": ["weights"],
        "published": "bitdistiller-2402.10631",
        "seed": [1, 2],
    }
    assert not list(_complaints(schema, grid, schema))
    partial = {"base": "other.yaml", "report": {"title": "A grid that a base completes"}}
    assert not list(_complaints(schema, partial, schema))


def test_two_plugins_may_have_a_class_of_one_name() -> None:
    """Pydantic writes two that are alike once, which both refer to."""
    code = """
from dataclasses import dataclass
from methods.quantization.activations import Activations
from harness.grid.editor import make_schema

def make(called):
    @dataclass(frozen=True)
    class Mine(Activations):
        name = called
        extra: int = 3
    return Mine

kept = make("first"), make("second")
print("extra" in str(make_schema()))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr
